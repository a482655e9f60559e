"""One face followed from picture to picture, where no detector sees it."""

from __future__ import annotations

import dlib
import numpy as np
from numpy.typing import NDArray

from visard_preprocess.geometry import Box

# dlib's ratio of the peak of the correlation to what lies around it: of faces that are there it is 10 and more.
_SURE = 6.0


class Follower:
    """dlib's correlation tracker, which learns a face in one picture and finds it in the next.

    Args:
        copy: (h, w) uint8, a grey copy of the picture in which the face was seen last.
        box: where it was, in pixels of the picture.
        scale: pixels of the copy for one of the picture.
    """

    def __init__(self, copy: NDArray[np.uint8], box: Box, scale: float) -> None:
        self._scale = scale
        self._tracker = dlib.correlation_tracker()
        self._tracker.start_track(copy, dlib.drectangle(*(edge * scale for edge in box)))
        self.sure = True

    def step(self, copy: NDArray[np.uint8]) -> Box:
        """Find it in the next picture; `sure` says whether it seems to be there."""
        self.sure = bool(self._tracker.update(copy) >= _SURE)
        place = self._tracker.get_position()
        left, top, right, bottom = place.left(), place.top(), place.right(), place.bottom()
        return left / self._scale, top / self._scale, right / self._scale, bottom / self._scale
