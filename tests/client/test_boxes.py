"""Boxes by hand through the SDK, with a real Triton: such a face is swapped or covered, and never left visible."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from visard import BoxOutsidePhoto, Client, NoFace, Options
from visard.boxes import MAX_BOXES, parse_box
from visard_preprocess.photo import read_photo

BLIND = 0.95  # a threshold at which the detector does not see the astronaut
HEAD, WALL = (150.0, 20.0, 300.0, 190.0), (20.0, 350.0, 120.0, 460.0)


@pytest.fixture
def client(tiny_server):
    with Client(tiny_server.grpc_url, workers=2) as client:
        yield client


def test_a_face_that_the_detector_misses_is_swapped_in_its_box(client, astronaut):
    with pytest.raises(NoFace, match="boxes around"):
        client.anonymize(astronaut, Options(detector_threshold=BLIND))
    result = client.anonymize(astronaut, Options(detector_threshold=BLIND, boxes=[HEAD]))
    (face,) = result.all_faces
    assert (face.box, face.outcome, face.reason, result.faces_found) == (HEAD, "swapped", None, 1)
    changed = np.abs(result.photo.astype(int) - read_photo(astronaut))
    assert changed[84:175, 175:267].mean() > 10


def test_what_cannot_be_swapped_in_a_box_is_covered(client, astronaut):
    result = client.anonymize(astronaut, Options(boxes=[WALL, (400, 30, 410, 40)]))
    assert Counter((face.outcome, face.reason) for face in result.all_faces) == {
        ("swapped", None): 1,
        ("covered", "unclear"): 1,
        ("covered", "too_small"): 1,
    }
    assert [face.box for face in result.all_faces[1:]] == [WALL, (400, 30, 410, 40)]  # the detected face comes first
    left, top, right, bottom = map(int, WALL)
    assert (
        np.abs(result.photo[top:bottom, left:right].astype(int) - read_photo(astronaut)[top:bottom, left:right])
        .any(axis=2)
        .mean()
        > 0.9
    )


def test_a_box_over_a_detected_face_changes_nothing(client, astronaut):
    plain, boxed = (client.anonymize(astronaut, Options(boxes=boxes)) for boxes in ((), (HEAD, HEAD)))
    assert [face.box for face in boxed.all_faces] == [face.box for face in plain.all_faces]
    assert np.array_equal(boxed.photo, plain.photo)


def test_the_largest_face_alone_and_those_drawn_by_hand(client, astronaut):
    two = np.hstack([read_photo(astronaut)[:300]] * 2)
    result = client.anonymize(two, Options(faces="largest", boxes=[(20, 200, 120, 290)]))
    assert [face.outcome for face in result.all_faces] == ["swapped", "visible", "covered"]


def test_boxes_are_added_and_removed_without_detecting_anew(client, astronaut):
    found = client.find(astronaut, Options(detector_threshold=BLIND))
    assert found.faces == ()
    drawn = client.find(found, Options(boxes=[WALL, HEAD]))  # the threshold of now has no meaning
    assert [(face.box, face.by_hand) for face in drawn.faces] == [(WALL, True), (HEAD, True)]
    assert drawn.genders[0] is None
    assert drawn.genders[1].label in ("female", "male")
    fewer = client.find(drawn, Options(boxes=[HEAD]))
    assert fewer.faces == (drawn.faces[1],)  # the same object: nothing was looked at again
    assert fewer.genders == drawn.genders[1:]
    assert np.array_equal(fewer.aligned[0], drawn.aligned[1])
    result = client.anonymize_found(drawn, ["leave", "cover"])
    assert [(face.outcome, face.reason) for face in result.all_faces] == [("visible", "chosen"), ("covered", "chosen")]


@pytest.mark.parametrize("box", [(-1, 0, 90, 90), (0, -0.5, 90, 90), (0, 0, 512.5, 90), (0, 0, 90, 4000)])
def test_a_box_that_leaves_the_photo_is_refused(client, astronaut, box):
    with pytest.raises(BoxOutsidePhoto, match="leaves the photo of 512×512 pixels"):
        client.anonymize(astronaut, Options(boxes=[box]))


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([(0, 0, 10)], "must have left, top, right and bottom"),
        ([("0", "0", "10", "10")], "must have left"),
        ([(0, 0, True, 10)], "must have left"),
        ([(0, 0, float("nan"), 10)], "must have left"),
        ([(0, 0, float("inf"), 10)], "must have left"),
        ([3], "must have left"),
        ("0,0,10,10", "must be a sequence"),
        (7, "must be a sequence"),
        ([(10, 0, 5, 10)], "at least one pixel"),
        ([(5, 5, 5, 5)], "at least one pixel"),
        (
            [(0.1, 0.1, 0.3, 0.3)],
            "at least one pixel wide and high, in that order: left, top, right and bottom in pixels",
        ),
        ([(0, 0, 9, 9)] * (MAX_BOXES + 1), "at most 100, not 101"),
    ],
)
def test_what_is_no_box_is_refused_before_a_photo_is_read(boxes, words):
    with pytest.raises(ValueError, match=r"^boxes must (be|have)") as error:
        Options(boxes=boxes)
    assert words in str(error.value)
    with pytest.raises(ValueError, match="boxes must"):
        replace(Options(), boxes=boxes)


def test_a_box_as_text():
    assert parse_box(" 1, 2.5,30,4e1") == (1.0, 2.5, 30.0, 40.0)
    for text in ("", "1,2,3", "1,2,3,x", "1,2,3,4,5", "1;2;3;4", "1,2,nan,9"):
        with pytest.raises(ValueError, match="boxes must have left"):
            parse_box(text)
