"""Turns the surroundings of one face upright, so that a detector and a predictor of upright faces can look at them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visard_preprocess.detect import TILE, Detection, look_at
from visard_preprocess.geometry import Box, Quad, crop, five_point_quad, part_of

if TYPE_CHECKING:
    from collections.abc import Callable

# The predictor learned from the boxes of dlib's HOG, squares from the brows to the chin. Where HOG does not see what
# YuNet sees, such a square is put in its place: median over 128 faces that both see.
_EDGE, _LOWER = 0.96, 0.046  # of the square root of the area of YuNet's box

# Radians. YuNet's points tell half of a tilt and less. Heads that seem tilted by no more than this are shown to dlib's
# HOG and the predictor as they are.
UPRIGHT = math.radians(10)
_TILT = 1.5  # what the points tell is taken so many times

PATCH_FACE_PX = 300  # the predictor answers in whole pixels of the copy it sees
_PATCH_MARGIN = 0.5  # of the box's edge: landmarks may leave the box

# Places of bare skin: the middle of some landmarks, moved up by so many lengths of the bridge of the nose. A square
# around each reaches so far, of the distance between the eyes.
_PLACES = (
    ((2, 31), 0.0),  # cheeks
    ((14, 35), 0.0),
    ((5, 48), 0.0),  # beside the mouth
    ((11, 54), 0.0),
    ((8, 57), 0.0),  # chin
    ((28,), 0.0),  # nose
    ((27,), 0.9),  # forehead
    ((19, 37), 0.7),
    ((24, 44), 0.7),
)
_REACH, _REDUCED = 0.16, 4

_AGAIN, _AS_IT_IS = 0.3, 0.05  # scores of a face that is looked at again at four angles: the least, and what is better


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """How a face lies in the photo.

    Attributes:
        box: as HOG would have it, see `align.Face`.
        turn: radians, clockwise as seen on the screen.
        points: as in `align.Face`.
    """

    box: Box
    turn: float = 0.0
    points: NDArray[np.float64] = field(default_factory=lambda: np.zeros((5, 2)))

    @property
    def turned(self) -> bool:
        """Whether it has to be turned upright before HOG and the predictor can see it."""
        return abs(self.turn) > UPRIGHT


@dataclass(frozen=True, kw_only=True, eq=False)
class Patch:
    """A face's surroundings, upright and at one size for every face.

    Attributes:
        picture: RGB.
        box: of the face, in pixels of the picture.
        scale: pixels of the picture for one of the photo.
        turn: by which it was turned back, in radians.
        to_photo: maps points in pixel-index coordinates of the picture into the photo.
    """

    picture: Image.Image
    box: Box
    scale: float
    turn: float
    to_photo: Callable[[NDArray[np.float64]], NDArray[np.float64]]


def cut_out(photo: NDArray[np.uint8], pose: Pose) -> Patch:
    """Cut a face out, turned upright where it needs to be.

    Args:
        photo: (H, W, 3) uint8 RGB.
        pose: how the face lies in it.
    """
    box, edge = pose.box, pose.box[2] - pose.box[0]
    scale = PATCH_FACE_PX / edge
    if pose.turned:
        quad = _around(pose, pose.turn)
        size = round(quad.side * scale)
        margin = _PATCH_MARGIN * PATCH_FACE_PX
        return Patch(
            picture=Image.fromarray(crop(photo, quad, size)),
            box=(margin, margin, size - margin, size - margin),
            scale=scale,
            turn=pose.turn,
            to_photo=lambda points: quad.to_photo(points, size),
        )
    height, width = photo.shape[:2]
    margin = _PATCH_MARGIN * edge
    left, top = max(0, math.floor(box[0] - margin)), max(0, math.floor(box[1] - margin))
    right, bottom = min(width, math.ceil(box[2] + margin)), min(height, math.ceil(box[3] + margin))
    part = part_of(photo, left, top, right, bottom)
    picture = resize(part, scale)
    scales = np.array([picture.width / part.width, picture.height / part.height])
    low, high = ((np.array(corner) - (left, top)) * scales for corner in (box[:2], box[2:]))
    return Patch(
        picture=picture,
        box=(*map(float, low), *map(float, high)),  # type: ignore[arg-type]
        scale=scale,
        turn=0.0,
        to_photo=lambda points: (points + 0.5) / scales - 0.5 + (left, top),
    )


def pose_of(seen: Detection, frame: Quad | None = None, size: int = 0) -> Pose:
    """Have what YuNet saw as HOG would have it.

    Args:
        seen: in the photo, or in a crop of it.
        frame: what was cropped, if anything.
        size: edge of the crop in pixels.
    """
    left, top, right, bottom = seen.box
    centre, edge = np.array(centre_of(seen.box)), math.sqrt((right - left) * (bottom - top))
    turn, points = five_point_quad(seen.points).angle, seen.points
    if frame is not None:
        centre = frame.to_photo(centre - 0.5, size) + 0.5
        edge *= frame.side / size
        turn, points = frame.angle + _TILT * turn, frame.to_photo(points, size)
    centre = centre + _LOWER * edge * np.array([-math.sin(turn), math.cos(turn)])
    return Pose(box=square(centre, _EDGE * edge), turn=math.remainder(turn, 2 * math.pi), points=points)


def look_again(photo: NDArray[np.uint8], pose: Pose) -> Pose | None:
    """Look at a face at four angles at once, and tell how it really lies; None where it is not seen again.

    YuNet sees heads at any angle, and places the points of them all as if they were upright.

    Args:
        photo: (H, W, 3) uint8 RGB.
        pose: how the face seems to lie in it.
    """
    size = TILE // 2
    picture = crop(photo, _around(pose, 0.0), size)
    quarters = [np.rot90(picture, quarter) for quarter in range(4)]
    scores, boxes, points = look_at(np.vstack([np.hstack(quarters[:2]), np.hstack(quarters[2:])]), _AGAIN)
    best: dict[int, int] = {}
    for index in np.argsort(scores):  # the best last
        x, y = (boxes[index, :2] + boxes[index, 2:]) / 2
        column, row = int(x // size), int(y // size)
        if max(abs(x - (column + 0.5) * size), abs(y - (row + 0.5) * size)) < size / 4:
            best[2 * row + column] = int(index)
    if not best:
        return None
    quarter = max(best, key=lambda each: scores[best[each]] + (_AS_IT_IS if each == 0 else 0.0))
    index, corner = best[quarter], np.array([quarter % 2, quarter // 2]) * size
    seen = Detection(
        box=tuple((boxes[index].reshape(2, 2) - corner).ravel()),
        score=float(scores[index]),
        points=points[index] - 0.5 - corner,
    )
    return pose_of(seen, _around(pose, quarter * math.pi / 2), size)


def motley(picture: Image.Image, landmarks: NDArray[np.float64]) -> float:
    """Tell how far the colours of a face differ from place to place, in levels of chroma.

    Forehead, bridge of the nose, cheeks, corners of the mouth and chin have one skin, whatever the light; a mask, a
    hand's sleeve or what stands before half of it has another colour at two of them at least.

    Args:
        picture: RGB, the face upright.
        landmarks: (68, 2), in pixels of the picture.
    """
    chroma = np.asarray(picture.reduce(_REDUCED).convert("YCbCr"))[..., 1:].astype(np.float64)
    points = (landmarks + 0.5) / _REDUCED
    up = points[27] - points[30]
    reach = max(1.0, _REACH * float(np.linalg.norm(points[36:42].mean(axis=0) - points[42:48].mean(axis=0))))
    colours = []
    for some, above in _PLACES:
        low, high = (np.rint(points[list(some)].mean(axis=0) + above * up + side) for side in (-reach, reach))
        (left, top), (right, bottom) = np.maximum(low, 0).astype(int), np.maximum(high, 0).astype(int)
        if (part := chroma[top:bottom, left:right]).size:
            colours.append(part.mean(axis=(0, 1)))
    if len(colours) < 3:
        return 0.0  # nearly all of it lies outside the photo
    away = np.linalg.norm(np.array(colours) - np.median(colours, axis=0), axis=1)
    return float(np.sort(away)[-2])


def _around(pose: Pose, turn: float) -> Quad:
    """A face's surroundings, of the same width for every face, at an angle."""
    half = (0.5 + _PATCH_MARGIN) * (pose.box[2] - pose.box[0])
    x, y = centre_of(pose.box)
    return Quad(centre=(x - 0.5, y - 0.5), x_axis=(half * math.cos(turn), half * math.sin(turn)))


def resize(image: Image.Image, scale: float) -> Image.Image:
    """An image of so many times as many pixels along each edge."""
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def centre_of(box: Box) -> tuple[float, float]:
    """(x, y) of its middle."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def square(centre: NDArray[np.float64], edge: float) -> Box:
    """The box around a point, (2,), with edges of this length."""
    x, y = map(float, centre)
    return x - edge / 2, y - edge / 2, x + edge / 2, y + edge / 2
