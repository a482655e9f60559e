"""The FFHQ square: against the procedure as it was published, and by what must hold for any face."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from visard_preprocess.geometry import CROP_SIZE, Quad, crop, ffhq_quad
from visard_testing.textbook import textbook_corners, textbook_crop

coordinates = st.floats(-3000, 3000)
quads = st.builds(
    lambda x, y, angle, half: Quad(centre=(x, y), x_axis=(half * np.cos(angle), half * np.sin(angle))),
    coordinates,
    coordinates,
    st.floats(-np.pi, np.pi),
    st.floats(10, 2000),
)
points = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=5).map(np.array)


def some_landmarks(seed=0):
    """Points roughly where a face has them: eyes above the mouth."""
    landmarks = np.random.default_rng(seed).normal((500, 400), 3, (68, 2))
    landmarks[36:42] += (-60, -40)
    landmarks[42:48] += (60, -40)
    landmarks[48] += (-40, 80)
    landmarks[54] += (40, 80)
    return landmarks


@pytest.fixture(scope="module")
def photo(astronaut):
    return np.array(Image.open(astronaut).convert("RGB"))


# --- the square -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_the_closed_form_is_the_published_procedure(seed):
    landmarks = some_landmarks(seed)
    quad = ffhq_quad(landmarks)
    np.testing.assert_allclose(quad.corners, textbook_corners(landmarks), atol=1e-9)
    edges = np.diff(np.vstack([quad.corners, quad.corners[:1]]), axis=0)
    np.testing.assert_allclose(np.linalg.norm(edges, axis=1), quad.side)


@given(st.floats(-np.pi, np.pi), st.floats(0.1, 10), st.tuples(coordinates, coordinates))
def test_a_turned_and_scaled_face_has_the_turned_and_scaled_square(angle, scale, shift):
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    landmarks = some_landmarks()
    np.testing.assert_allclose(
        ffhq_quad(landmarks @ turn + shift).corners, ffhq_quad(landmarks).corners @ turn + shift, atol=1e-6
    )


def test_coinciding_landmarks_have_no_square():
    with pytest.raises(ValueError, match="coincide"):
        ffhq_quad(np.ones((68, 2)))


# --- there and back -------------------------------------------------------------------------------------------------


@given(quads, points, st.integers(1, 2000))
def test_there_and_back_is_exact(quad, points, size):
    np.testing.assert_allclose(quad.to_crop(quad.to_photo(points, size), size), points, atol=1e-6)
    np.testing.assert_allclose(quad.to_photo(quad.to_crop(points, size), size), points, atol=1e-6)


@given(quads, st.integers(1, 2000))
def test_corners_of_the_crop_are_corners_of_the_quad(quad, size):
    edge = size - 0.5  # pixel-index coordinates: the crop reaches from −½ to size − ½
    crop_corners = np.array([(-0.5, -0.5), (-0.5, edge), (edge, edge), (edge, -0.5)])
    np.testing.assert_allclose(quad.to_photo(crop_corners, size), quad.corners, atol=1e-6)


def test_pixels_follow_the_stated_formula():
    quad = Quad(centre=(100.0, 50.0), x_axis=(30.0, 40.0))
    x, y, c = np.array([30.0, 40.0]), np.array([-40.0, 30.0]), np.array([100.0, 50.0])
    i, j, n = 7, 300, 512
    expected = c - x - y + 2 * x * (i + 0.5) / n + 2 * y * (j + 0.5) / n
    np.testing.assert_allclose(quad.to_photo(np.array([i, j]), n), expected)


# --- the crop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [60, 300])
@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
def test_a_ramp_shows_no_shift(half, angle):
    # Brightness is position, so that a crop that is half a pixel off is off by a known number of levels. Rising and
    # falling ramps together, because Pillow's bilinear filter rounds down.
    slope, middle = 60 / half, 500
    position = np.arange(1001) - middle
    dither = np.random.default_rng(0).random((1001, 1001))
    quad = Quad(centre=(middle + 0.3, middle - 0.4), x_axis=(half * np.cos(angle), half * np.sin(angle)))
    grid = np.stack(np.meshgrid(np.arange(CROP_SIZE), np.arange(CROP_SIZE)), axis=-1)
    expected = 128 + slope * (quad.to_photo(grid) - middle)
    shift = []
    for sign in (1, -1):
        ramp = np.clip(128 + sign * slope * position, 0, 255)
        levels = np.stack([ramp[None, :] + dither, ramp[:, None] + dither, dither], axis=-1)
        cut = crop(np.clip(levels, 0, 255).astype(np.uint8), quad)[..., :2]
        mirrored = expected if sign == 1 else 256 - expected
        shift.append(sign * (cut - mirrored).mean(axis=(0, 1)) / slope)
    half_a_pixel = 0.5 * max(1, quad.side / CROP_SIZE)
    assert np.abs(np.mean(shift, axis=0)).max() < 0.1 * half_a_pixel


@pytest.mark.parametrize(
    ("centre", "half", "angle"),
    [
        ((256, 256), 90, 0.2),  # inside, enlarged
        ((222, 200), 170, 0.0),  # inside
        ((240, 130), 150, -0.3),  # over the upper edge
        ((30, 480), 120, 0.1),  # over a corner
        ((256, 256), 300, 0.0),  # larger than the photo
        ((256, 254), 253, 0.0),  # within four pixels of the edge: padded too
    ],
)
def test_the_crop_is_the_textbooks(photo, centre, half, angle):
    quad = Quad(centre=centre, x_axis=(half * np.cos(angle), half * np.sin(angle)))
    ours, textbook = crop(photo, quad).astype(int), textbook_crop(photo, quad.corners)
    assert np.abs(ours - textbook).mean() < 0.5
    assert np.quantile(np.abs(ours - textbook), 0.99) <= 3


def test_a_large_face_is_the_textbooks_but_for_its_half_pixel(photo):
    large = np.asarray(Image.fromarray(photo).resize((2500, 2500), Image.Resampling.BICUBIC))
    quad = Quad(centre=(1250.0, 1245.0), x_axis=(1050.0, 120.0))
    # From a side of 2048 on, the textbook halves the photo first and with it the pixel indices, though it is their
    # centres that scale: its face lies half a photo pixel further to the lower right. Taken back here.
    textbook = textbook_crop(large, quad.corners - 0.5)
    assert np.abs(crop(large, quad).astype(int) - textbook).mean() < 0.5


@pytest.mark.parametrize(
    "name",
    ["00_webmorphr.stim_001_03.jpg", "45_webmorphr.stim_lisa4.jpg", "51_face_recognition_obama_partial_face2.jpg"],
)
def test_the_crop_of_a_real_photo_is_the_textbooks(shared_photos, name):
    from visard_preprocess.align import finder
    from visard_preprocess.photo import read_photo

    photo = read_photo(shared_photos[name]["path"])
    quad = finder().find(photo)[0].quad
    assert np.abs(crop(photo, quad).astype(int) - textbook_crop(photo, quad.corners)).mean() < 0.5


def test_fine_stripes_do_not_alias():
    stripes = np.zeros((2000, 2000, 3), np.uint8)
    stripes[:, ::2] = 255
    for angle in (0.0, 0.1):
        quad = Quad(centre=(1000.0, 1000.0), x_axis=(700 * np.cos(angle), 700 * np.sin(angle)))
        assert crop(stripes, quad).std() < 3  # without a filter: 90 and more


def test_other_sizes_show_the_same(photo):
    quad = Quad(centre=(230.0, 180.0), x_axis=(100.0, 10.0))
    small = Image.fromarray(crop(photo, quad)).resize((128, 128), Image.Resampling.BOX)
    assert np.abs(crop(photo, quad, 128).astype(int) - np.asarray(small)).mean() < 2


def test_a_quad_beside_the_photo_is_refused(photo):
    with pytest.raises(ValueError, match="does not touch"):
        crop(photo, Quad(centre=(-900.0, 100.0), x_axis=(50.0, 0.0)))


def test_one_pixel_can_be_cut():
    cut = crop(np.full((1, 1, 3), 77, np.uint8), Quad(centre=(0.0, 0.0), x_axis=(5.0, 0.0)))
    assert (cut == 77).all()
