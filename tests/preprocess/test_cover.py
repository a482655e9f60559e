"""A cover keeps nothing of a head but a few coarse colours, or not even these; nothing else of the photo changes."""

from __future__ import annotations

import numpy as np
import pytest

from visard_preprocess.align import finder
from visard_preprocess.cover import cover
from visard_preprocess.photo import read_photo

BOX = (200.0, 150.0, 300.0, 250.0)
INSIDE = np.s_[140:260, 190:310]  # within the ellipse


STYLES = ("soft", "mosaic", "solid")


def covered(photo, *boxes, style="soft"):
    result = photo.copy()
    cover(result, boxes or [BOX], style)
    return result


@pytest.mark.parametrize("style", STYLES)
def test_a_covered_face_is_found_no_more_and_the_rest_is_untouched(astronaut, monkeypatch, style):
    monkeypatch.setattr("visard_preprocess.cover.secrets.randbits", lambda bits: 3)  # one cloud of many
    photo = read_photo(astronaut)
    (face,) = finder().find(photo)
    result = covered(photo, face.box, style=style)
    assert finder().find(result) == ()
    left, top, right, bottom = (round(edge) for edge in face.box)
    size = right - left
    changed = (result != photo).any(axis=-1)
    assert changed[top:bottom, left:right].mean() > 0.98
    far = np.ones_like(changed)
    far[max(0, top - size) : bottom + size, max(0, left - size) : right + size] = False
    assert not changed[far].any()


@pytest.mark.parametrize("style", ["soft", "mosaic"])
def test_two_faces_of_the_same_coarse_colours_cannot_be_told_apart(style):
    """Dark and bright stripes, or the other way round: what is under the cover differs in every pixel by 128 levels."""
    stripes = np.full((512, 512, 3), 40, np.uint8)
    stripes[::2] = 168
    results = {}
    for name, photo in (("stripes", stripes), ("negative", 208 - stripes)):
        clouds = np.stack([covered(photo, style=style)[INSIDE] for _ in range(40)]).astype(float)
        results[name] = clouds.mean(axis=0)
    random = np.abs(results["stripes"] - results["negative"]).mean()
    assert random < 8  # the mean of forty clouds, each of them random by up to 16 levels, on both sides
    rows = results["stripes"].mean(axis=(1, 2))
    assert np.abs(np.diff(rows)).mean() < 1.5  # no stripe shows


@pytest.mark.parametrize("style", ["soft", "mosaic"])
def test_a_cover_is_drawn_anew_each_time(style):
    photo = np.full((512, 512, 3), 120, np.uint8)
    assert not np.array_equal(covered(photo, style=style), covered(photo, style=style))


def test_a_mosaic_has_sixteen_colours_at_most(astronaut):
    photo = read_photo(astronaut)
    box = finder().find(photo)[0].box
    result = covered(photo, box, style="mosaic")
    changed = (result != photo).any(axis=-1)
    assert len(np.unique(result[changed], axis=0)) <= 16


def test_a_solid_cover_is_the_same_whatever_was_there(astronaut):
    photo = read_photo(astronaut)
    negative = covered(255 - photo, style="solid")
    heads = covered(photo, style="solid") == negative
    assert np.array_equal(heads, covered(np.zeros_like(photo), style="solid") > 0)
    assert heads[INSIDE].all()


@pytest.mark.parametrize(
    "box",
    [(-30, -30, 10, 10), (70, 50, 120, 100), (200, 200, 240, 240), (3, 3, 4, 4), (0, 0, 80, 60), (-500, 0, 900, 9)],
)
@pytest.mark.parametrize("style", STYLES)
def test_at_the_edge_outside_and_larger_than_the_photo(box, style):
    photo = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    result = covered(photo, box, style=style)
    assert result.shape == photo.shape
    if box[0] >= 200:
        assert np.array_equal(result, photo)
