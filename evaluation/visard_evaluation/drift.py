"""What changed that should not have: landmarks, the head's pose, and the picture outside the face.

Pure functions of pictures and points, without models. Identical pictures drift by exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visard_preprocess.geometry import CROP_SIZE, Quad

if TYPE_CHECKING:
    from collections.abc import Sequence

# A generic head for pose: 14 points of ISR Coimbra's anthropometric head, in centimetres, as head-pose programs over
# dlib's landmarks use them; here with x to the right of the picture, y down and z away from the viewer. Tried on real
# faces with fewer points: frontal photographs come out straighter with these (mean pitch −2° instead of −11°).
_POSE_POINTS = [17, 21, 22, 26, 36, 39, 42, 45, 31, 35, 48, 54, 57, 8]
_HEAD = -np.array(
    [
        *((6.825897, 6.760612, 4.402142), (1.330353, 7.122144, 6.903745)),  # brow in the left half of the picture
        *((-1.330353, 7.122144, 6.903745), (-6.825897, 6.760612, 4.402142)),
        *((5.311432, 5.485328, 3.987654), (1.789930, 5.393625, 4.413414)),  # corners of the eye there
        *((-1.789930, 5.393625, 4.413414), (-5.311432, 5.485328, 3.987654)),
        *((2.005628, 1.409845, 6.165652), (-2.005628, 1.409845, 6.165652)),  # wings of the nose
        *((2.774015, -2.080775, 5.048531), (-2.774015, -2.080775, 5.048531)),  # corners of the mouth
        *((0.0, -3.116408, 6.097667), (0.0, -7.415691, 4.070434)),  # lower lip, chin
    ]
)

# The face in an FFHQ crop, in unit coordinates (−1..1): an ellipse from hairline to chin over the landmarks of real
# faces. Everything outside is hair, neck, clothes and place.
_FACE_CENTRE_V = 0.15
_FACE_RADII = (0.6, 0.75)

_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])
_LINEAR_SRGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How a head is turned, in degrees; 0 where it looks straight at the viewer.

    Attributes:
        yaw: to the side.
        pitch: up or down.
        roll: clockwise in the picture.
    """

    yaw: float
    pitch: float
    roll: float

    def drift(self, other: Pose) -> Pose:
        """Absolute difference of each angle, 0..180."""
        return Pose(
            **{
                angle: abs((getattr(self, angle) - getattr(other, angle) + 180) % 360 - 180)
                for angle in ("yaw", "pitch", "roll")
            }
        )


def landmark_drift_percent(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Mean distance of (68, 2) landmarks before and after, in percent of the distance between the eyes before."""
    eyes = before[36:42].mean(axis=0) - before[42:48].mean(axis=0)
    return float(np.linalg.norm(after - before, axis=1).mean() / np.linalg.norm(eyes) * 100)


def head_pose(landmarks: NDArray[np.float64]) -> Pose:
    """Estimate a head's pose from (68, 2) landmarks.

    Scaled orthographic projection: the 2×3 matrix that brings a generic head's points nearest to the landmarks by
    least squares, made orthogonal by its singular value decomposition, as roll (z), then yaw (y), then pitch (x). A
    person is not the generic head: a face that becomes longer reads as a nod, so a drift in pitch is partly one in
    shape.
    """
    points, head = landmarks[_POSE_POINTS], _HEAD - _HEAD.mean(axis=0)
    projection = (np.linalg.pinv(head) @ (points - points.mean(axis=0))).T
    u, _, vt = np.linalg.svd(projection, full_matrices=False)
    rows = u @ vt
    rotation = np.vstack([rows, np.cross(rows[0], rows[1])])
    return Pose(
        yaw=float(np.degrees(np.arcsin(np.clip(-rotation[2, 0], -1, 1)))),
        pitch=float(np.degrees(np.arctan2(rotation[2, 1], rotation[2, 2]))),
        roll=float(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]))),
    )


def drift_around_face(
    before: NDArray[np.uint8], after: NDArray[np.uint8], quad: Quad, size: tuple[int, ...]
) -> tuple[float, float]:
    """Compare two crops outside the face.

    Args:
        before: (512, 512, 3) uint8 RGB, aligned.
        after: the same part of the anonymised photo.
        quad: where it lies in the photo.
        size: (height, width) of the photo; a crop that leaves it continues by reflection, which is no background.

    Returns:
        Mean absolute difference in grey levels (0..255); distance of the mean colours, CIE 1976 ΔE. Zeros where the
        photo ends with the face.
    """
    grid = np.stack(np.meshgrid(np.arange(CROP_SIZE), np.arange(CROP_SIZE)), axis=-1)
    x, y = np.moveaxis(quad.to_photo(grid), -1, 0)
    mask = _not_face() & (x >= 0) & (y >= 0) & (x <= size[1] - 1) & (y <= size[0] - 1)
    if not mask.any():
        return 0.0, 0.0
    old, new = before[mask], after[mask]
    colours = [lab(pixels.mean(axis=0)) for pixels in (old, new)]
    return _mean_difference(old, new), float(np.linalg.norm(colours[1] - colours[0]))


def drift_beyond_crops(before: NDArray[np.uint8], after: NDArray[np.uint8], quads: Sequence[Quad]) -> float | None:
    """Compare two photos outside all crops: mean absolute difference in grey levels, None where there is no outside.

    Args:
        before: (H, W, 3) uint8 RGB.
        after: the same photo anonymised.
        quads: of all faces.
    """
    beyond = ~_covered(before.shape[:2], quads)
    return _mean_difference(before[beyond], after[beyond]) if beyond.any() else None


def _mean_difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float((np.maximum(a, b) - np.minimum(a, b)).mean())


@cache
def _not_face() -> NDArray[np.bool_]:
    """(512, 512) where an FFHQ crop is not face."""
    unit = (np.arange(CROP_SIZE) + 0.5) * 2 / CROP_SIZE - 1
    u, v = unit[None, :], unit[:, None]
    outside: NDArray[np.bool_] = (u / _FACE_RADII[0]) ** 2 + ((v - _FACE_CENTRE_V) / _FACE_RADII[1]) ** 2 > 1
    return outside


def _covered(size: tuple[int, ...], quads: Sequence[Quad]) -> NDArray[np.bool_]:
    """(H, W) where a pixel lies in one of the quads, or less than a pixel beside it."""
    covered = np.zeros(size, bool)
    for quad in quads:
        low, high = (
            np.floor(quad.corners.min(axis=0)).astype(int) - 1,
            np.ceil(quad.corners.max(axis=0)).astype(int) + 2,
        )
        left, top, right, bottom = max(low[0], 0), max(low[1], 0), min(high[0], size[1]), min(high[1], size[0])
        if left < right and top < bottom:
            u, v = quad.to_unit(np.arange(left, right)[None, :], np.arange(top, bottom)[:, None])
            covered[top:bottom, left:right] |= np.maximum(np.abs(u), np.abs(v)) <= 1 + 2 / quad.side
    return covered


def lab(colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """One sRGB colour in 0..255 to CIELAB under D65."""
    unit = colour / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    xyz = _LINEAR_SRGB_TO_XYZ @ linear / _WHITE_D65
    x, y, z = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
