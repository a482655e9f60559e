"""The context-only control: a picture whose face is painted over, so that hair, ears, neck and outline alone are left.

What a recogniser finds in it, no anonymisation of the face could have hidden. Pure functions of pictures and points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_BROWS, _JAW, _NOSE_BASE, _CHIN = slice(17, 27), slice(0, 17), 33, 8


def face_outline(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draw a line around a face, from the jaw up to where hair usually begins.

    The jaw is landmarks; the forehead is the jaw mirrored at the brows and made as high as the nose is long from there:
    the rule of thirds.

    Args:
        landmarks: (68, 2) of an aligned face, so that up is up.

    Returns:
        (34, 2): the jaw from the left, then the forehead back.
    """
    brows = landmarks[_BROWS, 1].mean()
    height = (landmarks[_NOSE_BASE, 1] - brows) / (landmarks[_CHIN, 1] - brows)
    forehead = landmarks[_JAW][::-1].copy()
    forehead[:, 1] = brows - height * (forehead[:, 1] - brows)
    return np.vstack([landmarks[_JAW], forehead])


def face_mask(landmarks: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """(size, size) where `face_outline` encloses a pixel of an aligned crop of that edge."""
    picture = Image.new("1", (size, size))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in face_outline(landmarks)], fill=1)
    return np.asarray(picture)


def paint_over(aligned: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Fill a face with its own median colour.

    Args:
        aligned: (S, S, 3) uint8 RGB.
        landmarks: (68, 2) in its pixels.

    Returns:
        A new picture of the same shape.
    """
    mask = face_mask(landmarks, len(aligned))
    painted = aligned.copy()
    painted[mask] = np.median(aligned[mask], axis=0)
    return painted
