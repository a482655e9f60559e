"""Brings a face to the five points at which ArcFace and its successors expect it. Pure geometry, no model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Where eyes, nose and the corners of the mouth lie in an ArcFace input of 112 pixels (Deng et al., 2019; the template
# of insightface's `face_align.py`), in pixel-index coordinates. Other input sizes scale it.
_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_TEMPLATE_SIZE = 112
_NOSE_TIP, _MOUTH_LEFT, _MOUTH_RIGHT = 30, 48, 54
_OVERSAMPLING = 4  # sampled on a finer grid, then averaged: a face in a crop of 512 pixels is four times the template's


def place_five_points(
    aligned: NDArray[np.uint8], landmarks: NDArray[np.float64], size: int = _TEMPLATE_SIZE
) -> NDArray[np.uint8]:
    """Bring a face to where ArcFace expects it.

    Args:
        aligned: (H, W, 3) uint8 RGB.
        landmarks: (68, 2) in its pixels.
        size: edge of the result.

    Returns:
        (size, size, 3) uint8 RGB; black outside `aligned`.
    """
    template = (_TEMPLATE + 0.5) * (size / _TEMPLATE_SIZE) - 0.5
    # The fit is made in the template's space, as the models were trained; Pillow wants the way back, and counts from a
    # pixel's corner.
    turn, shift = similarity(five_points(landmarks), template)
    back, origin = 1 / turn, -shift / turn
    a, b, x0, y0 = back.real, back.imag, origin.real, origin.imag
    per_pixel = 1 / _OVERSAMPLING
    matrix = (
        a * per_pixel,
        -b * per_pixel,
        x0 - 0.5 * (a - b) + 0.5,
        b * per_pixel,
        a * per_pixel,
        y0 - 0.5 * (a + b) + 0.5,
    )
    fine = Image.fromarray(aligned).transform(
        (size * _OVERSAMPLING, size * _OVERSAMPLING), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    return np.asarray(fine.resize((size, size), Image.Resampling.BOX))


def five_points(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reduce (68, 2) landmarks to (5, 2): both eyes, tip of the nose, both corners of the mouth."""
    return np.stack(
        [
            landmarks[36:42].mean(axis=0),
            landmarks[42:48].mean(axis=0),
            landmarks[_NOSE_TIP],
            landmarks[_MOUTH_LEFT],
            landmarks[_MOUTH_RIGHT],
        ]
    )


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[complex, complex]:
    """Find the similarity transform that brings points nearest to others, by least squares.

    Returns:
        Turn and shift: with points as complex numbers, z goes to turn·z + shift.
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    from_mean = z - z.mean()
    turn = np.vdot(from_mean, w - w.mean()) / np.vdot(from_mean, from_mean)
    return complex(turn), complex(w.mean() - turn * z.mean())
