"""Faces as 75 points: the 68 landmarks and a forehead, their modes, masks, and smooth maps from one shape to another.

Everything is measured in pixels of the aligned 512-pixel crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from visard_preprocess.geometry import CROP_SIZE

Shape = NDArray[np.float64]  # (75, 2): x before y

N_POINTS = 75
KEPT_MODES = [0, 1, 3, 6]  # taken from a face: turning, tilt and distance, rolling, the open mouth; see `ShapeModel`

OPEN_MOUTH = 0.05  # gap between the inner lips, in distances between the outer corners of the eyes

_JAW = [2, 4, 6, 8, 10, 12, 14]
_FOREHEAD_WIDTH, _FOREHEAD_HEIGHT = 0.92, 0.62  # of the jaw's, mirrored about the line of the eyes
OUTLINE = [*range(17), *range(74, 67, -1)]
_LIPS = ((61, 67), (62, 66), (63, 65))  # upper and lower inner lip, one above the other
_LOWER_LIP = [55, 56, 57, 58, 59, 65, 66, 67]
_UPPER_LIP = [49, 50, 51, 52, 53, 61, 62, 63]
_KNOTS = 40
_LIDS = (((37, 41), (38, 40)), ((43, 47), (44, 46)))  # upper and lower, of either eye

# Mirrored, a face has its points in another order.
MIRROR = [
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65,
    *range(74, 67, -1),
]  # fmt: skip


def with_forehead(landmarks: NDArray[Any]) -> Shape:
    """Add seven points above the brows: the jaw, flattened, mirrored about the line of the eyes.

    Args:
        landmarks: (68, 2), in the order of dlib's predictor.
    """
    points = np.asarray(landmarks, np.float64)
    left, right = points[36:42].mean(0), points[42:48].mean(0)
    along = (right - left) / np.linalg.norm(right - left)
    down = np.array([-along[1], along[0]])
    jaw = points[_JAW] - (left + right) / 2
    across, height = _FOREHEAD_WIDTH * (jaw @ along), _FOREHEAD_HEIGHT * np.abs(jaw @ down)
    return np.vstack([points, (left + right) / 2 + np.outer(across, along) - np.outer(height, down)])


def mirrored(shape: Shape) -> Shape:
    """The shape of the mirrored picture."""
    turned_over: Shape = (np.array([CROP_SIZE - 1, 0]) + np.array([-1, 1]) * shape)[MIRROR]
    return turned_over


def mouth_gap(shape: Shape) -> float:
    """How far the lips are apart, in distances between the outer corners of the eyes."""
    gap = np.mean([np.linalg.norm(shape[upper] - shape[lower]) for upper, lower in _LIPS])
    return float(gap / np.linalg.norm(shape[36] - shape[45]))


def turned(shape: Shape) -> float:
    """How far a face is turned to the side: 0 is frontal, 0.5 a profile, by where the nose lies between the cheeks."""
    return float(abs((shape[30, 0] - shape[0, 0]) / (shape[16, 0] - shape[0, 0] + 1e-6) - 0.5))


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """Principal components of many faces' shapes.

    Attributes:
        mean: (75, 2).
        modes: (M, 150) orthonormal, the strongest first. Of people in the wild, the first five are, in this order,
            turning, distance and tilt, length, rolling and turning again; the seventh opens the mouth. Length tells
            people apart, and the second turning hardly changes a pose.
    """

    mean: Shape = field(repr=False)
    modes: NDArray[np.float64] = field(repr=False)

    @classmethod
    def fit(cls, shapes: Sequence[Shape], n_modes: int = 60) -> ShapeModel:
        """Fit to faces and their mirrored pictures, so that left and right count alike."""
        both = np.array([*shapes, *map(mirrored, shapes)])
        mean = both.mean(0)
        modes = np.linalg.svd((both - mean).reshape(len(both), -1), full_matrices=False)[2]
        return cls(mean, modes[:n_modes])

    def in_pose_of(self, persona: Shape, face: Shape) -> Shape:
        """Give a persona's shape the pose and the expression of a face, and nothing else of it.

        The face enters by four numbers (`KEPT_MODES`), by how wide its mouth is open and by how wide its eyes are open.
        """
        ours, theirs = ((shape - self.mean).ravel() @ self.modes.T for shape in (persona, face))
        ours[KEPT_MODES] = theirs[KEPT_MODES]
        shape: Shape = self.mean + (ours @ self.modes).reshape(-1, 2)
        opening = (mouth_gap(face) - mouth_gap(shape)) * np.linalg.norm(shape[36] - shape[45])
        shape[_LOWER_LIP, 1] += opening / 2
        shape[_UPPER_LIP, 1] -= opening / 2
        for pairs in _LIDS:
            eye = np.array(pairs).ravel()
            corners = shape[[36, 39]] if eye[0] < 42 else shape[[42, 45]]
            their_corners = face[[36, 39]] if eye[0] < 42 else face[[42, 45]]
            width, their_width = (np.linalg.norm(np.diff(c, axis=0)) for c in (corners, their_corners))
            for upper, lower in pairs:
                wanted = np.linalg.norm(face[upper] - face[lower]) * width / their_width
                more = 0.5 * (wanted - np.linalg.norm(shape[upper] - shape[lower]))
                shape[upper, 1] -= more / 2
                shape[lower, 1] += more / 2
        return shape


def outline_mask(shape: Shape, shrink: int = 0, blur: float = 0.0) -> NDArray[np.float32]:
    """Fill the outline of a face.

    Args:
        shape: of the face.
        shrink: pixels by which the outline is drawn in; it grows where this is negative.
        blur: sigma in pixels of the edge.

    Returns:
        (512, 512) float32 in 0..1.
    """
    mask = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    cv2.fillPoly(mask, [np.rint(shape[OUTLINE] * 16).astype(np.int32)], 255, shift=4)
    if shrink:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(shrink) + 1,) * 2)
        mask = (cv2.erode if shrink > 0 else cv2.dilate)(mask, kernel)
    filled = mask.astype(np.float32) / 255
    return cv2.GaussianBlur(filled, (0, 0), blur) if blur else filled


def cheeks_and_nose(shape: Shape) -> NDArray[np.bool_]:
    """Where a face surely shows skin, below its eyes and above its mouth: (512, 512)."""
    rows = np.mgrid[:CROP_SIZE, :CROP_SIZE][0]
    inside: NDArray[np.bool_] = outline_mask(shape, 30) > 0
    inside &= (rows > shape[36:48, 1].mean() + 15) & (rows < shape[30:36, 1].max())
    return inside


def moves_map(
    to: NDArray[Any],
    source: NDArray[Any],
    shape: tuple[int, int] = (CROP_SIZE, CROP_SIZE),
    *,
    smoothing: float = 1.0,
    pinned: bool = False,
) -> NDArray[np.float32]:
    """Say of every pixel of a picture with the points `to` how far away in one with the points `source` it comes from.

    A thin-plate spline through the points.

    Args:
        to: (P, 2) points in pixels, x before y.
        source: (P, 2), likewise.
        shape: rows and columns of the picture.
        smoothing: of the spline; 0 passes through every point.
        pinned: hold the border where it is.

    Returns:
        (*shape, 2) float32, x before y, in pixels.
    """
    extent = np.array(shape[::-1])
    if pinned:
        edge = np.linspace(0, 1, 5)
        border = np.array([(x, y) for x in edge for y in edge if {x, y} & {0.0, 1.0}]) * (extent - 1)
        to, source = np.vstack([to, border]), np.vstack([source, border])
    knots = pixel_centres((_KNOTS, _KNOTS), extent / _KNOTS)  # the map is smooth: finer would cost time alone
    spline = RBFInterpolator(to, source - to, smoothing=smoothing, kernel="thin_plate_spline")
    moves = spline(knots.reshape(-1, 2)).reshape(knots.shape).astype(np.float32)
    enlarged: NDArray[np.float32] = cv2.resize(moves, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return enlarged


def pixel_centres(shape: tuple[int, int], step: NDArray[Any]) -> NDArray[np.float32]:
    """Where the centres of a grid's cells lie: (*shape, 2) float32, x before y; a cell spans `step` pixels (x, y)."""
    x, y = ((np.arange(n, dtype=np.float32) + 0.5) * each - 0.5 for n, each in zip(shape[::-1], step, strict=True))
    centres: NDArray[np.float32] = np.stack(np.meshgrid(x, y), -1).astype(np.float32)
    return centres


def sample(picture: NDArray[Any], where: NDArray[np.float32]) -> NDArray[Any]:
    """Take the pixels of a picture at given places, bicubic, reflected beyond its edges."""
    sampled: NDArray[Any] = cv2.remap(picture, where, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return sampled
