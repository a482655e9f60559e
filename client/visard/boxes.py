"""Boxes that a person drew around faces which the detector missed: read, checked, and made faces of.

A box is left, top, right and bottom in pixels of the photo as it is seen, upright, from its top left corner: as results
have them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from visard_errors import BoxOutsidePhoto

if TYPE_CHECKING:
    from os import PathLike

    from visard.pipeline import Found

Box = tuple[float, float, float, float]

MAX_BOXES = 100  # in one photo

_WHAT = "left, top, right and bottom in pixels of the upright photo"


def parse_box(text: str) -> Box:
    """Read ``left,top,right,bottom``.

    Raises:
        ValueError: it is something else; see `check_boxes`.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    (box,) = check_boxes([numbers if len(numbers) == 4 else text])
    return box


def check_boxes(boxes: Any) -> tuple[Box, ...]:
    """Refuse what cannot be boxes in any photo.

    Args:
        boxes: any sequence of sequences of four numbers.

    Raises:
        ValueError: it is none; a box has no numbers, or less than one pixel; there are too many.
    """
    if isinstance(boxes, str) or not isinstance(boxes, Iterable):
        raise ValueError(f"boxes must be a sequence of boxes, each of {_WHAT}, not {boxes!r}")
    checked = tuple(_checked(box) for box in boxes)
    if len(checked) > MAX_BOXES:
        raise ValueError(f"boxes must be at most {MAX_BOXES}, not {len(checked)}")
    return checked


def check_inside(boxes: Iterable[Box], width: int, height: int) -> None:
    """Refuse boxes that leave the photo.

    Raises:
        BoxOutsidePhoto: one does.
    """
    for box in boxes:
        left, top, right, bottom = box
        if left < 0 or top < 0 or right > width or bottom > height:
            raise BoxOutsidePhoto(
                f"the box {_said(box)} leaves the photo of {width}×{height} pixels: give {_WHAT}, and cut it off at "
                "the photo's edge"
            )


def with_boxes(found: Found, boxes: tuple[Box, ...], landmarks_model: str | PathLike[str] | None = None) -> Found:
    """Put the faces in these boxes beside those that were detected, in the place of earlier ones by hand.

    A box over a face that is known already adds none.

    Args:
        found: a photo and its faces.
        boxes: checked.
        landmarks_model: see `visard.Options`.

    Raises:
        BoxOutsidePhoto: one leaves the photo.
    """
    from visard_preprocess.align import finder
    from visard_preprocess.by_hand import face_in, same_face

    height, width = found.photo.shape[:2]
    check_inside(boxes, width, height)
    before = {face.box: index for index, face in enumerate(found.faces) if face.by_hand}
    detected = len(found.faces) - len(before)
    faces, genders = list(found.faces[:detected]), list(found.genders[:detected])
    aligned = {index: crop for index, crop in found.aligned.items() if index < detected}
    for box in boxes:
        if any(same_face(face.box, box) for face in faces):
            continue
        if (known := before.get(box)) is None:
            faces.append(face_in(finder(landmarks_model), found.photo, box, faces))
            genders.append(None)
        else:
            if known in found.aligned:
                aligned[len(faces)] = found.aligned[known]
            faces.append(found.faces[known])
            genders.append(found.genders[known])
    return replace(found, faces=tuple(faces), genders=tuple(genders), aligned=aligned)


def _checked(box: Any) -> Box:
    numbers = tuple(box) if isinstance(box, Iterable) and not isinstance(box, str) else ()
    real = all(isinstance(number, Real) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != 4 or not real or not all(map(math.isfinite, numbers)):
        raise ValueError(f"boxes must have {_WHAT}, not {box!r}")
    left, top, right, bottom = map(float, numbers)
    if right - left < 1 or bottom - top < 1:
        raise ValueError(
            f"boxes must be at least one pixel wide and high, in that order: {_WHAT}, not {_said(numbers)}"
        )
    return left, top, right, bottom


def _said(box: Iterable[float]) -> str:
    return ",".join(f"{edge:g}" for edge in box)
