"""Faces that a person pointed out by a box, because the detector missed them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from visard_preprocess.align import MIN_FACE_PX, Face
from visard_preprocess.detect import Detection
from visard_preprocess.geometry import five_point_quad
from visard_preprocess.upright import look_again, pose_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from visard_preprocess.align import FaceFinder
    from visard_preprocess.geometry import Box

# Where YuNet puts its five points in its box: median over 24 portraits.
_POINTS = np.array([(0.27, 0.37), (0.73, 0.37), (0.5, 0.57), (0.3, 0.73), (0.7, 0.73)])

# Some draw the face, others the head with its hair, which is about twice as wide and twice as high.
_SAME_FACE_AREAS = 5.0


def face_in(finder: FaceFinder, photo: NDArray[np.uint8], box: Box, others: Iterable[Face] = ()) -> Face:
    """Make a face of a box that was drawn around one.

    Landmarks are placed as in a face that was detected. Where they cannot be trusted, or what is seen in the box is
    another face, the box is all that is known of it.

    Args:
        finder: of the calling thread.
        photo: (H, W, 3) uint8 RGB.
        box: within the photo.
        others: faces that are known already.

    Returns:
        A face whose box is the one that was drawn.
    """
    size = np.array([box[2] - box[0], box[3] - box[1]])
    points = np.array(box[:2]) + _POINTS * size - 0.5
    face = Face(
        box=box,
        landmarks=None,
        confidence=0.0,
        quad=five_point_quad(points),
        points=points,
        confirmed=False,
        by_hand=True,
    )
    if face.too_small:
        return face
    drawn = pose_of(Detection(box=box, score=0.0, points=points))
    seen = finder.face_of(photo, look_again(photo, drawn) or drawn, 0.0)
    if seen.size_px < MIN_FACE_PX or not same_face(seen.box, box) or any(same_face(seen.box, o.box) for o in others):
        return face
    return replace(seen, box=box, by_hand=True)


def same_face(a: Box, b: Box) -> bool:
    """Whether two boxes are around one face: the middle of each lies in the other, and their sizes are alike."""
    smaller, larger = sorted((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return larger <= _SAME_FACE_AREAS * smaller and _middle_in(a, b) and _middle_in(b, a)


def _middle_in(inner: Box, outer: Box) -> bool:
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    return outer[0] < x < outer[2] and outer[1] < y < outer[3]
