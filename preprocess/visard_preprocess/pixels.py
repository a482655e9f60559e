"""Pictures of Pillow as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_BAND = 2**16  # bytes at once: of more, the system gives and takes back the memory each time


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Copy the pixels of an RGB picture: (H, W, 3) uint8; `np.asarray` takes twice as long for a large one."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _BAND // (3 * image.width))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels
