"""Photographs to aligned faces, and swapped faces back into photographs. Works without a server.

The files in the order of the data: `photo` (decode), `detect` (where faces are), `align` (their landmarks), `geometry`
(crop), `compose` (blend back).
Import what you need from them: this package itself loads neither dlib nor Pillow.
"""

import os
from typing import Literal

# Recent versions of onnxruntime keep usage reports for Microsoft in the user's cache, unless they find this when they
# are first imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

DETECTOR_THRESHOLD = 0.6  # the score from which on something is a face; benchmarks/results/detection.md

MAX_PIXELS = 64_000_000  # a larger photo is refused where the caller does not say otherwise

Keep = Literal["nothing", "exposure", "date", "exposure_and_date"]  # of a photo's metadata; see `exif`
CoverStyle = Literal["soft", "mosaic", "solid"]  # see `cover`
