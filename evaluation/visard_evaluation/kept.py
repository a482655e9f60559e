"""What an anonymised face should keep of its original: how open mouth and eyes are, the light, the skin tone.

Pure functions of pictures and points, without models. Where somebody looks is not measured: the iris within the
landmarks' eye, by its darkness, agreed between a person's two eyes no better than r = 0.23 over 68 photographs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from visard_evaluation.drift import lab
from visard_evaluation.painting import face_mask

_LUMA = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709
_NOT_SKIN = (range(17, 22), range(22, 27), range(36, 42), range(42, 48), range(48, 60))  # brows, eyes, lips
_MARGIN = 0.08  # of the distance between the eyes, around what is not skin
_DIRECTED = 8.0  # grey levels per half face: light that differs less from side to side has no direction to keep


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How far a result is from its original in what should be kept.

    Attributes:
        mouth_opening: change of the gap between the lips, percent of the distance between the eyes before.
        eye_opening: change of the gap between the lids, mean of both eyes, likewise.
        light_levels: mean absolute difference of the light over the skin, a plane fitted to each side's luminance, in
            grey levels (0..255).
        light_direction_degrees: how far the direction turned in which that plane rises, 0..180; None where the
            original's light has none.
        skin_delta_e: distance of the skin's mean colours, CIE 1976 ΔE.
    """

    mouth_opening: float
    eye_opening: float
    light_levels: float
    light_direction_degrees: float | None
    skin_delta_e: float


def compare_kept(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    landmarks: NDArray[np.float64],
    landmarks_after: NDArray[np.float64],
) -> Kept:
    """Compare an aligned face with its result.

    Args:
        before: (512, 512, 3) uint8 RGB.
        after: the same place of the result.
        landmarks: (68, 2) before.
        landmarks_after: (68, 2) after.
    """
    unit = _eye_distance(landmarks) / 100
    skin = skin_mask(landmarks, len(before)) & skin_mask(landmarks_after, len(after))
    y, x = np.nonzero(skin)
    centre, half_face = np.array([x.mean(), y.mean()]), np.ptp(landmarks[:17, 0]) / 2
    plane = np.column_stack([np.ones(len(x)), (np.column_stack([x, y]) - centre) / half_face])
    lights = [np.linalg.lstsq(plane, picture[skin] @ _LUMA, rcond=None)[0] for picture in (before, after)]
    (old, new), turned = (light[1:] for light in lights), None
    if np.hypot(*old) >= _DIRECTED:
        turned = float(np.degrees(abs(np.angle(complex(*new) / complex(*old)))))
    colours = [lab(picture[skin].mean(axis=0)) for picture in (before, after)]
    return Kept(
        mouth_opening=abs(_mouth_gap(landmarks_after) - _mouth_gap(landmarks)) / unit,
        eye_opening=abs(_lid_gap(landmarks_after) - _lid_gap(landmarks)) / unit,
        light_levels=float(np.abs(plane @ (lights[1] - lights[0])).mean()),
        light_direction_degrees=turned,
        skin_delta_e=float(np.linalg.norm(colours[1] - colours[0])),
    )


def skin_mask(landmarks: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """(size, size) where an aligned face shows skin: its outline without brows, eyes and lips."""
    features = Image.new("1", (size, size))
    draw, margin = ImageDraw.Draw(features), _MARGIN * _eye_distance(landmarks)
    for part in _NOT_SKIN:
        points = landmarks[list(part)]
        draw.polygon([tuple(point) for point in points], fill=1)
        outline = [tuple(point) for point in (*points, points[0])]
        draw.line(outline, fill=1, width=round(2 * margin), joint="curve")
    return face_mask(landmarks, size) & ~np.asarray(features)


def _eye_distance(landmarks: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(landmarks[36:42].mean(axis=0) - landmarks[42:48].mean(axis=0)))


def _mouth_gap(landmarks: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(landmarks[62] - landmarks[66]))  # the middles of the inner lips


def _lid_gap(landmarks: NDArray[np.float64]) -> float:
    upper, lower = landmarks[[37, 38, 43, 44]], landmarks[[41, 40, 47, 46]]
    return float(np.linalg.norm(upper - lower, axis=1).mean())
