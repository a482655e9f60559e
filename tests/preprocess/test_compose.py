"""Blending: every face's core shows its own swap, everything else stays, and nothing of the original comes back."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from visard_preprocess.compose import FaceSwap, compose
from visard_preprocess.geometry import Quad, crop

UPRIGHT = Quad(centre=(222.0, 140.0), x_axis=(100.0, 0.0))
TURNED = Quad(centre=(300.5, 210.25), x_axis=(70.0, 45.0))


@pytest.fixture(scope="module")
def photo(astronaut):
    return np.array(Image.open(astronaut).convert("RGB"))


def plain(value):
    return np.full((512, 512, 3), value, np.uint8)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def unit_distance(quad, shape):
    """(H, W): 0 at the centre of the quad, 1 at its edges."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.maximum(*np.abs(quad.to_unit(x, y)))


def core(quad, shape):
    """(H, W) bool: brows to mouth, where a face is recognised."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    u, v = quad.to_unit(x, y)
    return (np.abs(u) < 0.4) & (v > -0.3) & (v < 0.6)


# --- one face -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quad", [UPRIGHT, TURNED, Quad(centre=(240.0, 20.0), x_axis=(150.0, -30.0))])
def test_an_unchanged_face_leaves_the_photo_as_it_was(photo, quad):
    aligned = crop(photo, quad)
    result = compose(photo, [FaceSwap(quad=quad, aligned=aligned, swapped=aligned)])
    assert np.abs(result.astype(int) - photo).mean() < 1
    # A shift of half a pixel would be seen as a lower correlation than with the photo itself.
    here = unit_distance(quad, photo.shape) < 0.8
    errors = {
        (dx, dy): np.abs(np.roll(result, (dy, dx), (0, 1)).astype(int) - photo)[here].mean()
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
    }
    assert min(errors, key=errors.__getitem__) == (0, 0)


@pytest.mark.parametrize("count", [1, 3])
def test_blocks_leave_no_trace(photo, monkeypatch, count):
    """Blocks that lie within a face, outside or across its edge are those of the picture that is blended in one go."""
    large = Quad(centre=(250.3, 260.2), x_axis=(190.0, 60.0))  # has whole blocks within and without
    swaps = [
        FaceSwap(quad=quad, aligned=crop(photo, quad), swapped=noise(512, 512)) for quad in (large, TURNED, UPRIGHT)
    ][:count]
    monkeypatch.setattr("visard_preprocess.compose._BLOCK", 32)
    blocks = compose(photo, swaps)
    monkeypatch.setattr("visard_preprocess.compose._BLOCK", 4096)
    np.testing.assert_array_equal(blocks, compose(photo, swaps))


@pytest.mark.parametrize("quad", [UPRIGHT, TURNED, Quad(centre=(0.0, 511.0), x_axis=(0.0, 90.0))])
def test_pixels_outside_the_crop_stay_identical(photo, quad):
    before = photo.copy()
    result = compose(photo, [FaceSwap(quad=quad, aligned=crop(photo, quad), swapped=plain((255, 0, 255)))])
    outside = unit_distance(quad, photo.shape) >= 1
    np.testing.assert_array_equal(result[outside], photo[outside])
    assert (result[~outside] != photo[~outside]).any(axis=-1).mean() > 0.95
    np.testing.assert_array_equal(photo, before)


@pytest.mark.parametrize("half", [40.0, 180.0, 700.0])
def test_nothing_of_the_original_is_left_in_the_core(half):
    size = int(2.5 * half)
    photo = noise(size, size)
    quad = Quad(centre=(size / 2, size / 2), x_axis=(half, 0.0))
    result = compose(photo, [FaceSwap(quad=quad, aligned=plain(90), swapped=plain(90))])
    # A constant swap over noise: any pixel of the original would be seen as a deviation.
    assert (result[core(quad, photo.shape)] == 90).all()


def test_a_face_smaller_than_the_crop_is_reduced_with_a_filter(photo):
    quad = Quad(centre=(200.3, 200.7), x_axis=(28.0, 6.0))
    board = plain(0)
    board[(np.indices((512, 512)).sum(axis=0) % 2).astype(bool)] = 255
    result = compose(photo, [FaceSwap(quad=quad, aligned=plain(128), swapped=board)])
    assert result[core(quad, photo.shape)].std() < 3  # without a filter: 100 and more


def test_colours_do_not_jump_at_the_seam():
    photo = np.full((400, 400, 3), (120, 90, 60), np.uint8)
    quad = Quad(centre=(200.0, 200.0), x_axis=(120.0, 40.0))
    brighter = plain((160, 130, 100))
    result = compose(photo, [FaceSwap(quad=quad, aligned=crop(photo, quad), swapped=brighter)]).astype(int)
    distance = unit_distance(quad, photo.shape)
    assert np.abs(result - photo)[distance > 0.93].max() <= 2  # meets the photo at the edge
    assert np.abs(result - brighter[0, 0].astype(int))[distance < 0.4].max() <= 1  # keeps its own colour inside
    assert np.abs(np.diff(result, axis=0)).max() <= 4  # and gets there without a step
    assert np.abs(np.diff(result, axis=1)).max() <= 4


def test_colour_matching_carries_no_face_back(photo):
    swapped = crop(photo, TURNED)
    aligned = crop(photo, UPRIGHT)
    other_face = aligned.copy()
    other_face[32:-32, 32:-32] = noise(448, 448)  # all but the ring where colours are measured
    results = [
        compose(photo, [FaceSwap(quad=UPRIGHT, aligned=before, swapped=swapped)]) for before in (aligned, other_face)
    ]
    np.testing.assert_array_equal(*results)


def test_other_crops_are_refused():
    with pytest.raises(ValueError, match="512"):
        FaceSwap(quad=UPRIGHT, aligned=plain(0), swapped=np.zeros((256, 256, 3), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        FaceSwap(quad=UPRIGHT, aligned=plain(0), swapped=np.zeros((512, 512, 3)))


# --- many faces -----------------------------------------------------------------------------------------------------

NEIGHBOURS = {
    "side by side": (
        Quad(centre=(200.0, 250.0), x_axis=(120.0, 0.0)),
        Quad(centre=(340.0, 240.0), x_axis=(120.0, 0.0)),
    ),
    "turned": (Quad(centre=(200.0, 250.0), x_axis=(110.0, 40.0)), Quad(centre=(340.0, 290.0), x_axis=(115.0, -30.0))),
    "one above": (Quad(centre=(250.0, 150.0), x_axis=(100.0, 0.0)), Quad(centre=(260.0, 320.0), x_axis=(120.0, 0.0))),
    "a child in front": (
        Quad(centre=(220.0, 180.0), x_axis=(150.0, 0.0)),
        Quad(centre=(340.0, 330.0), x_axis=(60.0, 5.0)),
    ),
}


@pytest.mark.parametrize("pair", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_face_shows_its_own_swap_though_crops_overlap(pair, order):
    photo = noise(512, 512)
    values = (40, 210)
    # Aligned and swapped agree at the edges, so that colours need no matching and the constants stay constant.
    swaps = [FaceSwap(quad=pair[k], aligned=plain(values[k]), swapped=plain(values[k])) for k in order]
    result = compose(photo, swaps).astype(int)
    for quad, value in zip(pair, values, strict=True):
        assert np.abs(result - value)[core(quad, photo.shape)].max() <= 12
        assert np.abs(result - value)[core(quad, photo.shape)].mean() <= 1


@pytest.mark.parametrize("pair", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_a_neighbours_crop_does_not_bring_an_original_face_back(pair):
    # The photo is black but for face A, white. A is swapped to black; B's crop still holds the white original of A.
    photo = np.zeros((512, 512, 3), np.uint8)
    a, b = pair
    photo[core(a, photo.shape)] = 255
    unchanged = crop(photo, b)
    result = compose(
        photo,
        [
            FaceSwap(quad=a, aligned=plain(0), swapped=plain(0)),
            FaceSwap(quad=b, aligned=unchanged, swapped=unchanged),
        ],
    )
    assert result[core(a, photo.shape)].mean() < 2
    assert result[core(a, photo.shape)].max() < 16


def test_the_order_of_faces_does_not_matter(photo):
    rng = np.random.default_rng(1)
    swaps = []
    for _ in range(6):
        quad = Quad(centre=tuple(rng.uniform(100, 400, 2)), x_axis=tuple(rng.uniform(-90, 90, 2)))
        swaps.append(FaceSwap(quad=quad, aligned=crop(photo, quad), swapped=plain(rng.integers(0, 256, 3))))
    results = [compose(photo, [swaps[k] for k in rng.permutation(6)]).astype(int) for _ in range(3)]
    for result in results[1:]:
        assert np.abs(result - results[0]).max() <= 3  # roundings of a pixel that several faces cover


def test_no_faces_and_faces_elsewhere_change_nothing(photo):
    beside = Quad(centre=(-900.0, 100.0), x_axis=(50.0, 0.0))
    for swaps in ([], [FaceSwap(quad=beside, aligned=plain(0), swapped=plain(255))]):
        result = compose(photo, swaps)
        np.testing.assert_array_equal(result, photo)
        assert not np.shares_memory(result, photo)


def test_a_crowd_from_a_real_photo_stays_as_it_was(shared_photos):
    from visard_preprocess.align import finder
    from visard_preprocess.photo import read_photo

    photo = read_photo(shared_photos["48_dlib_bald_guys.jpg"]["path"])
    faces = finder().find(photo)
    assert len(faces) >= int(shared_photos["48_dlib_bald_guys.jpg"]["faces_seen_by_dlib_hog"])
    crops = [crop(photo, face.quad) for face in faces]
    swaps = [FaceSwap(quad=face.quad, aligned=cut, swapped=cut) for face, cut in zip(faces, crops, strict=True)]
    assert np.abs(compose(photo, swaps).astype(int) - photo).mean() < 2
