"""Photographs to aligned faces, and swapped faces back into photographs. Works without a server.

The files in the order of the data: `photo` (decode), `align` (find faces), `geometry` (crop), `compose` (blend back).
Import what you need from them: this package itself loads neither dlib nor Pillow.
"""

from typing import Literal

Detector = Literal["hog", "cnn"]  # dlib's: frontal faces, fast; or more poses, many times slower without a GPU

MAX_PIXELS = 64_000_000  # a larger photo is refused where the caller does not say otherwise
