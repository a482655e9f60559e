"""Boxes drawn by hand become faces: with landmarks where these can be trusted, and only known as boxes elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from visard_preprocess.align import finder
from visard_preprocess.by_hand import face_in, same_face
from visard_preprocess.photo import read_photo

FACE, HEAD = (175, 84, 267, 175), (150, 20, 300, 190)  # the astronaut's, as two people might draw them


@pytest.fixture(scope="module")
def photo(astronaut):
    return read_photo(astronaut)


@pytest.mark.parametrize("box", [FACE, HEAD, (160, 60, 250, 190)])
def test_the_landmarks_are_those_of_the_face_however_it_is_drawn(photo, box):
    (detected,) = finder().find(photo)
    face = face_in(finder(), photo, box)
    assert (face.box, face.by_hand, face.confirmed, detected.by_hand) == (box, True, True, False)
    np.testing.assert_allclose(face.landmarks, detected.landmarks, atol=0.03 * detected.size_px)
    np.testing.assert_allclose(face.quad.centre, detected.quad.centre, atol=3)


def test_a_box_around_no_face_has_none(photo):
    wall = face_in(finder(), photo, (20, 350, 120, 460))
    assert not (wall.confirmed and wall.landmarks is not None)
    assert wall.box == (20, 350, 120, 460)


def test_a_face_in_the_corner_of_a_large_box_is_not_taken_for_what_was_drawn(photo):
    large = face_in(finder(), photo, (0, 0, 512, 512))
    assert (large.landmarks, large.confirmed) == (None, False)


def test_a_known_face_next_to_the_box_is_not_taken_for_what_was_drawn(photo):
    (detected,) = finder().find(photo)
    assert face_in(finder(), photo, HEAD, (detected,)).landmarks is None


@pytest.mark.parametrize("box", [(190, 90, 225, 125), (0, 0, 1, 1), (511, 0, 512, 512), (0, 0, 512, 30)])
def test_a_narrow_or_tiny_box_is_a_face_too_small(photo, box):
    face = face_in(finder(), photo, box)
    assert face.too_small
    assert face.landmarks is None


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (FACE, True),
        (HEAD, True),
        ((200, 110, 290, 200), True),
        ((230, 84, 322, 175), False),  # somebody next to her
        ((210, 120, 230, 140), False),  # a part of the face
        ((60, 0, 380, 300), False),  # far more than a head
    ],
)
def test_which_boxes_are_around_one_face(other, same):
    assert same_face(FACE, other) is same
    assert same_face(other, FACE) is same
