"""YuNet at a place where a face should be: is it still seen there, by another detector than dlib's HOG?

YuNet finds the faces for the anonymisation too (`visard_preprocess.detect`), so it is no independent judge: that it
sees a face in an original is no news, and one that it missed is in no report.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from visard_preprocess.detect import TILE, look_at
from visard_preprocess.geometry import Box, Quad, crop

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEEN_FROM = 0.8  # score: 60 real faces, half of them turned, bearded or behind glasses, have 0.90 and more

_MARGIN = 1.5  # how much larger than the aligned crop the square is: a detector wants to see a head's surroundings


def look(photo: NDArray[np.uint8], quad: Quad) -> list[tuple[Box, float]]:
    """Find faces around a place in a photo.

    Args:
        photo: (H, W, 3) uint8 RGB.
        quad: of the aligned face.

    Returns:
        (left, top, right, bottom) in pixels of a square of 640 around it, and a score of 0..1, the best first. Boxes
        of one face overlap.
    """
    wider = replace(quad, x_axis=(quad.x_axis[0] * _MARGIN, quad.x_axis[1] * _MARGIN))
    scores, boxes, _ = look_at(crop(photo, wider, TILE), SEEN_FROM)
    order = np.argsort(-scores)
    return [(tuple(map(float, boxes[index])), float(scores[index])) for index in order]  # type: ignore[misc]
