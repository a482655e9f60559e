"""The alignment that Visard is compared with: the FFHQ procedure step by step, in nothing but numpy and Pillow.

Written from the description of the data set (Karras et al., "A Style-Based Generator Architecture for Generative
Adversarial Networks", 2019, and its `download_ffhq.py`), brought to 512 pixels. Slow on purpose.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SAMPLED = 4096
SIZE = 512


def textbook_corners(landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 2) top left, bottom left, bottom right, top right, in pixel-index coordinates."""
    left_eye, right_eye = landmarks[36:42].mean(axis=0), landmarks[42:48].mean(axis=0)
    mouth = (landmarks[48] + landmarks[54]) / 2
    eyes = (left_eye + right_eye) / 2
    across, down = right_eye - left_eye, mouth - eyes
    x = across - np.array([-down[1], down[0]])
    x /= np.linalg.norm(x)
    x *= max(np.linalg.norm(across) * 2.0, np.linalg.norm(down) * 1.8)
    y = np.array([-x[1], x[0]])
    centre = eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def textbook_crop(photo: NDArray[np.uint8], corners: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(512, 512, 3) uint8: shrink, cut, pad, transform to 4096², reduce."""
    image, corners = Image.fromarray(photo), corners.copy()
    side = float(np.linalg.norm(corners[3] - corners[0]))

    shrink = int(np.floor(side / SIZE * 0.5))
    if shrink > 1:
        size = round(image.width / shrink), round(image.height / shrink)
        image = image.resize(size, Image.Resampling.LANCZOS)
        corners /= shrink
        side /= shrink

    border = max(round(side * 0.1), 3)
    low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    box = (
        max(low[0] - border, 0),
        max(low[1] - border, 0),
        min(high[0] + border, image.width),
        min(high[1] + border, image.height),
    )
    image = image.crop(box)
    corners -= box[:2]

    low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    pad = np.maximum([*(border - low), *(high - image.size + border)], 0)
    if pad.max() > border - 4:
        pad = np.maximum(pad, round(side * 0.3))
        image = _padded(np.asarray(image, np.float32), pad, 0.02 * side)
        corners += pad[:2]

    image = image.transform(
        (SAMPLED, SAMPLED), Image.Transform.QUAD, tuple((corners + 0.5).ravel()), Image.Resampling.BILINEAR
    )
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _padded(pixels: NDArray[np.float32], pad: NDArray[np.int_], sigma: float) -> Image.Image:
    left, top, right, bottom = pad
    pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="reflect")
    height, width = pixels.shape[:2]
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    horizontal = 1 - np.minimum(columns / left, columns[::-1] / right)
    vertical = 1 - np.minimum(rows / top, rows[::-1] / bottom)
    mask = np.maximum(horizontal[None, :], vertical[:, None])[..., None]
    pixels = pixels + (_blurred(pixels, sigma) - pixels) * np.clip(mask * 3 + 1, 0, 1)
    pixels = pixels + (np.median(pixels, axis=(0, 1)) - pixels) * np.clip(mask, 0, 1)
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _blurred(pixels: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Gaussian blur along rows and columns, cut off at four sigma, mirrored at the edges."""
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        spread = np.pad(pixels, [(radius, radius) if i == axis else (0, 0) for i in range(3)], mode="symmetric")
        length = pixels.shape[axis]
        pixels = sum(weight * np.take(spread, range(i, i + length), axis=axis) for i, weight in enumerate(kernel))
    return np.asarray(pixels, np.float32)
