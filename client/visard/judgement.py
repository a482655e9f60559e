"""What a swap is worth: scores beside the original, and whether it counts, is tried once more, or does not count.

Pure functions of their arguments, which hold no connection. The words are those of `visard.policy`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visard import scoring
from visard.policy import SECOND_TRY
from visard.result import ApparentGender, FaceResult, Gender
from visard.wire import GENDERS, Direction, Swap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visard.options import Options
    from visard.pipeline import Prepared
    from visard_preprocess.align import Face

TARGETS: dict[Direction, Gender] = {"to_male": "male", "to_female": "female"}


def score(prepared: Prepared, swaps: Sequence[Swap], options: Options) -> list[FaceResult]:
    """Compare swapped faces with the originals; without their identity, which `judge` is given.

    Args:
        prepared: what `prepare` returned.
        swaps: the server's answers in the order of `prepared.faces`.
        options: whose landmarks are used.
    """
    from visard_preprocess.align import finder

    faces = [
        score_face(face, aligned, swap, direction, index=index, known=known)
        for index, face, aligned, swap, direction, known in zip(
            prepared.indices,
            prepared.faces,
            prepared.aligned,
            swaps,
            prepared.directions,
            prepared.genders,
            strict=True,
        )
    ]
    look = finder(options.landmarks_model)
    return [
        face if look.takes_its_place(face.swapped, face.aligned) else replace(face, reason="implausible")
        for face in faces
    ]


def judged(face: FaceResult, direction: Direction, options: Options) -> FaceResult:
    """Say why a swap is not good enough, if it is not.

    Args:
        face: scored, with its identity distance where identity is a criterion.
        direction: that the server was asked for; where the caller gave it, no certainty is needed.
        options: `min_confidence`.
    """
    reason = face.reason
    if direction == "opposite" and face.gender is not None and face.gender.confidence < options.min_confidence:
        reason = "uncertain"
    elif not face.flipped:
        reason = "not_flipped"
    elif face.same_person:
        reason = "still_recognised"
    return replace(face, reason=reason)


def judge(
    prepared: Prepared, faces: Sequence[FaceResult], distances: Sequence[float] | None, options: Options
) -> list[FaceResult]:
    """Add their identity distances to scored faces, and say of each why it is not good enough, if it is not.

    Args:
        prepared: whose faces they are, in its order.
        faces: what `score` returned.
        distances: see `identity_distance`; None where identity is no criterion.
        options: as for `judged`.
    """
    if distances is not None:
        faces = [replace(face, identity_distance=distance) for face, distance in zip(faces, distances, strict=True)]
    return [judged(face, direction, options) for face, direction in zip(faces, prepared.directions, strict=True)]


def for_second_try(faces: Sequence[FaceResult]) -> dict[int, FaceResult]:
    """Choose those that another persona may help: place in `faces` → the face, for `Prepared.again`."""
    return {place: face for place, face in enumerate(faces) if face.reason in SECOND_TRY}


def after_second_try(faces: Sequence[FaceResult], seconds: Mapping[int, FaceResult]) -> list[FaceResult]:
    """Put second tries that are good enough in the place of the first; the others change nothing.

    Args:
        faces: judged.
        seconds: place in `faces` → the second try, judged.
    """
    good = {place: face for place, face in seconds.items() if face.reason is None}
    return [good.get(place, face) for place, face in enumerate(faces)]


def score_face(
    face: Face,
    aligned: NDArray[np.uint8],
    swap: Swap,
    direction: Direction,
    *,
    index: int = 0,
    known: ApparentGender | None = None,
) -> FaceResult:
    """Compare one swapped face with its original, all but their identity.

    Args:
        face: where it lies in the photo.
        aligned: (512, 512, 3) uint8 RGB, the original face.
        swap: the server's answer.
        direction: that the server was asked for.
        index: which of the photo's faces it is.
        known: its apparent gender, where it was asked for before and not again.
    """
    gender = None if swap.gender is None else ApparentGender.from_probabilities(swap.gender)
    similarity_percent, pixel_cosine = scoring.similarity(aligned, swap.swapped)
    return FaceResult(
        index=index,
        box=face.box,
        quad=face.quad,
        aligned=aligned,
        swapped=swap.swapped,
        target=TARGETS[direction] if gender is None else _opposite(gender.label),
        gender=gender or known,
        swapped_gender=ApparentGender.from_probabilities(swap.swapped_gender),
        similarity_percent=similarity_percent,
        pixel_cosine=pixel_cosine,
        identity_distance=None,
    )


def identity_distance(aligned: NDArray[np.uint8], swapped: NDArray[np.uint8], options: Options) -> float:
    """Measure how far the descriptors of two aligned faces lie apart.

    Args:
        aligned: (512, 512, 3) uint8 RGB.
        swapped: likewise.
        options: which landmarks are used.
    """
    return scoring.identity_distance(descriptor(aligned, options), descriptor(swapped, options))


def descriptor(aligned: NDArray[np.uint8], options: Options) -> NDArray[np.float64]:
    """Describe whose face it is, for dlib's recogniser: (128,), see `visard_preprocess.align.FaceFinder.descriptor`.

    Args:
        aligned: (512, 512, 3) uint8 RGB.
        options: whose landmarks are used.
    """
    from visard_preprocess.align import finder

    return finder(options.landmarks_model).descriptor(aligned)


def _opposite(gender: Gender) -> Gender:
    return "male" if gender == GENDERS[0] else "female"
