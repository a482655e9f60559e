"""What becomes of a face: the judgement of one swap, and the words for a photo that is withheld."""

from __future__ import annotations

import numpy as np
import pytest

from visard.judgement import judged
from visard.options import Options
from visard.policy import withheld
from visard.result import ApparentGender, FaceResult
from visard_errors import FaceTooSmall, NotHidden, UncertainGender
from visard_preprocess.geometry import Quad


def face_result(*, gender, confidence, after, distance=None, target="male"):
    image = np.zeros((512, 512, 3), np.uint8)
    return FaceResult(
        index=0,
        box=(0, 0, 1, 1),
        quad=Quad(centre=(0, 0), x_axis=(1, 0)),
        aligned=image,
        swapped=image,
        target=target,
        gender=None if gender is None else ApparentGender(label=gender, confidence=confidence),
        swapped_gender=ApparentGender(label=after, confidence=0.9),
        similarity_percent=0,
        pixel_cosine=0,
        identity_distance=distance,
    )


@pytest.mark.parametrize(
    ("direction", "gender", "confidence", "after", "distance", "reason"),
    [
        ("opposite", "female", 0.9, "male", None, None),
        ("opposite", "female", 0.9, "male", 0.7, None),
        ("opposite", "female", 0.9, "male", 0.5, "still_recognised"),
        ("opposite", "female", 0.9, "female", 0.9, "not_flipped"),
        ("opposite", "female", 0.7, "male", 0.9, "uncertain"),
        ("opposite", "female", 0.7, "female", 0.5, "uncertain"),
        ("to_male", "female", 0.7, "male", 0.9, None),  # nothing was guessed
        ("to_male", None, None, "male", None, None),
        ("to_male", None, None, "female", None, "not_flipped"),
    ],
)
def test_judgement(direction, gender, confidence, after, distance, reason):
    face = face_result(gender=gender, confidence=confidence, after=after, distance=distance)
    assert judged(face, direction, Options(min_confidence=0.8)).reason == reason


@pytest.mark.parametrize(
    ("reasons", "error", "words"),
    [
        (["not_flipped", "too_small", "not_flipped"], FaceTooSmall, r"2 × the swap did not flip it; 1 × too small"),
        (["not_flipped", "uncertain"], UncertainGender, "min_confidence"),
        (["still_recognised"], NotHidden, "1 × still recognised"),
    ],
)
def test_a_withheld_photo_says_why(reasons, error, words):
    with pytest.raises(error, match=words):
        raise withheld(reasons)
