"""Geometry of a landmarked face: the thin-plate spline between two shapes, and soft masks of the face's regions.

A shape is (68, 2) points in the order of dlib's predictor, x before y, in pixel-index coordinates of a square picture.
Lengths are written as pixels of a 512-pixel crop and scale with the picture, so that every size gives the same result.
It knows nothing about colour or gender.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from visard_preprocess.geometry import CROP_SIZE

Floats = NDArray[np.float32]
Shape = NDArray[np.float64]

JAW, BROWS, NOSTRILS = slice(0, 17), slice(17, 27), slice(31, 36)
LIPS, MOUTH, INNER_LIPS = slice(48, 60), slice(48, 68), slice(60, 68)
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
_BRIDGE, _CHIN = 27, 8

_GRID = 65  # knots per side at which the spline is evaluated; the rest is interpolated
_ANCHORS = 5  # per side of the picture, where the spline stays put
_CLEARANCE = 0.2  # of the picture's edge: an anchor nearer to a landmark would fold a chin that reaches the border
_SMOOTHING = 1e-3  # landmarks are whole pixels of dlib's copy: the spline need not obey their jitter, nor twins
_FORE = 0.55  # of the distance between the eyes: how far the face goes on above the brows
_SUBPIXEL_BITS = 4

# A landmark's twin in the mirrored face.
_MIRROR = np.r_[16:-1:-1, 26:16:-1, 27:31, 35:30:-1, 45:41:-1, 47, 46, 39:35:-1, 41, 40, 54:47:-1, 59:54:-1]
_MIRROR = np.r_[_MIRROR, 64:59:-1, 67, 66, 65]


def mirrored(shape: Shape, size: int) -> Shape:
    """Shape of the face in the mirrored picture; any leading dimensions."""
    flipped = shape[..., _MIRROR, :].copy()
    flipped[..., 0] = size - 1 - flipped[..., 0]
    return flipped


def resized(shape: Shape, size: int, new_size: int) -> Shape:
    """Shape of the face in the same picture at another size."""
    return (shape + 0.5) * (new_size / size) - 0.5


def eye_distance(shape: Shape) -> float:
    """Distance between the centres of the eyes in pixels."""
    return float(np.linalg.norm(shape[RIGHT_EYE].mean(0) - shape[LEFT_EYE].mean(0)))


def affine(source: Shape, target: Shape) -> Shape:
    """Least-squares affine map from one shape to another.

    Returns:
        (3, 2) matrix A with [x, y, 1] @ A ≈ target; its first two rows carry displacements.
    """
    homogeneous = np.column_stack([source, np.ones(len(source))])
    matrix: Shape = np.linalg.lstsq(homogeneous, target, rcond=None)[0]
    return matrix


def backward_map(source: Shape, target: Shape, size: int, *, smoothing: float = _SMOOTHING) -> Floats:
    """Say for every pixel of the target's picture where it lies in the source's, by a thin-plate spline.

    The border stays where it is (Bookstein 1989, with points on the border as further landmarks), except near the
    face.

    Args:
        source: (n, 2) points of the picture to sample.
        target: (n, 2) where they shall come to lie.
        size: edge of both pictures in pixels.
        smoothing: 0 makes the spline pass through every point, and fail where two of `target` coincide.

    Returns:
        (size, size, 2) x and y, as `sample` takes them.
    """
    edge = np.linspace(-1, size, _ANCHORS)
    anchors = np.array([(x, y) for x in edge for y in edge if x in (-1, size) or y in (-1, size)])
    anchors = anchors[np.linalg.norm(anchors[:, None] - target, axis=-1).min(1) > _CLEARANCE * size]
    spline = RBFInterpolator(
        np.vstack([target, anchors]) / size,
        np.vstack([source - target, np.zeros_like(anchors)]) / size,
        kernel="thin_plate_spline",
        smoothing=smoothing,
    )
    knots = np.linspace(0, size - 1, _GRID) / size
    coarse = spline(np.stack(np.meshgrid(knots, knots), -1).reshape(-1, 2)).reshape(_GRID, _GRID, 2) * size
    steps = np.linspace(0, _GRID - 1, size, dtype=np.float32)  # corner on corner, which cv2.resize does not do
    columns, rows = np.meshgrid(steps, steps)
    shift = cv2.remap(coarse.astype(np.float32), columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return grid(size) + np.asarray(shift, np.float32)


def grid(size: int) -> Floats:
    """(size, size, 2) map that leaves a picture as it is."""
    axis = np.arange(size, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis), -1)


def sample(picture: NDArray[Any], where: Floats, *, cubic: bool = True) -> NDArray[Any]:
    """Sample a picture of any type and number of channels; a pixel that maps to itself is kept to the last bit."""
    method = cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    x, y = np.ascontiguousarray(where[..., 0]), np.ascontiguousarray(where[..., 1])
    return cv2.remap(picture, x, y, method, borderMode=cv2.BORDER_REFLECT_101)


def blur(picture: Floats, sigma: float) -> Floats:
    """Gaussian blur; sigma in pixels of a 512-pixel crop."""
    sigma *= len(picture) / CROP_SIZE
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), np.float32)


def face_mask(shape: Shape, size: int, *, grow: float = 0.97, feather: float = 11) -> Floats:
    """The face from chin to forehead without hair: the hull of the jaw and of the brows, raised.

    Args:
        shape: of the face.
        size: edge of the picture.
        grow: scale of the hull about its centre.
        feather: blur of its edge, in pixels of a 512-pixel crop.

    Returns:
        (size, size) in 0..1, as all masks.
    """
    up = shape[_BRIDGE] - shape[_CHIN]
    up *= _FORE * eye_distance(shape) / np.linalg.norm(up)
    return _region(_hull(np.vstack([shape[JAW], shape[BROWS] + up]), grow), size, feather)


def lips_mask(shape: Shape, size: int, *, grow: float = 1.02, feather: float = 3) -> Floats:
    """The lips, without what an open mouth shows."""
    lips = _region(_hull(shape[LIPS], grow), size, feather)
    return lips * (1 - _region(_hull(shape[INNER_LIPS], 0.95), size, 2))


def mouth_mask(shape: Shape, size: int, *, grow: float, feather: float = 4) -> Floats:
    """The mouth, lips and opening together."""
    return _region(_hull(shape[LIPS], grow), size, feather)


def eyes_mask(shape: Shape, size: int) -> Floats:
    """Both eyes with their lids."""
    eyes = (_region(_hull(shape[eye], 1.8), size, 8) for eye in (LEFT_EYE, RIGHT_EYE))
    return np.maximum(*eyes)


def beard_mask(shape: Shape, size: int) -> Floats:
    """Where a beard grows: jaw, chin, lower cheeks and upper lip, without the mouth."""
    down = np.array([0, 0.04 * eye_distance(shape)])
    left, right = (0.45 * shape[jaw] + 0.55 * shape[nose] for jaw, nose in ((2, 31), (14, 35)))
    outline = np.vstack([shape[2:15], right[None], shape[NOSTRILS][::-1] + down, left[None]])
    return np.clip(_region(outline, size, 9) - mouth_mask(shape, size, grow=1.05), 0, 1)


def _hull(points: Shape, grow: float) -> Shape:
    centre = points.mean(0)
    hull: Shape = cv2.convexHull((centre + grow * (points - centre)).astype(np.float32))[:, 0].astype(np.float64)
    return hull


def _region(outline: Shape, size: int, feather: float) -> Floats:
    mask = np.zeros((size, size), np.float32)
    corners = np.rint(outline * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(mask, [corners], (1.0,), lineType=cv2.LINE_8, shift=_SUBPIXEL_BITS)
    return blur(mask, feather)
