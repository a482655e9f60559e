"""Small pictures of faces for the attacker that restores, and back to where a recogniser looks at them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 96
_PART = (40, 64, 472, 496)  # of the aligned crop: all that a recogniser cuts out of it, and no more


def shrink(aligned: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce the face in (512, 512, 3) uint8 RGB to (96, 96, 3)."""
    return np.asarray(Image.fromarray(aligned).resize((SIZE, SIZE), Image.Resampling.LANCZOS, _PART))


def enlarge(thumbnail: NDArray[np.uint8], size: int = 512) -> NDArray[np.uint8]:
    """Put (96, 96, 3) uint8 RGB back to its place in a grey crop, (512, 512, 3)."""
    left, top, right, bottom = _PART
    canvas = Image.new("RGB", (size, size), (128, 128, 128))
    face = Image.fromarray(thumbnail).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    canvas.paste(face, (left, top))
    return np.asarray(canvas)
