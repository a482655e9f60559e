"""YuNet, a face detector that takes no part in the anonymisation: does a detector other than dlib still see a face?

Wu, Peng and Yu: YuNet, Machine Intelligence Research 20 (2023); the file of OpenCV Zoo, March 2023 (MIT). It gets
a square with the face in its middle, not the whole photo.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visard_evaluation.onnx_models import load_session, run_session
from visard_preprocess.geometry import Quad, crop

if TYPE_CHECKING:
    from visard_preprocess.align import Box

MODEL = Path(__file__).parent / "data" / "face_detection_yunet_2023mar.onnx"
SEEN_FROM = 0.8  # score: 60 real faces, half of them turned, bearded or behind glasses, have 0.90 and more

_SIZE = 640  # of the model's input
_STRIDES = (8, 16, 32)
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
    return detect(crop(photo, wider, _SIZE))


def detect(picture: NDArray[np.uint8]) -> list[tuple[Box, float]]:
    """Find faces in a (640, 640, 3) uint8 RGB picture; see `look`."""
    tensor = np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1)[None], np.float32)  # BGR, 0..255
    session = _session()
    names = [output.name for output in session.get_outputs()]
    answers = dict(zip(names, run_session(session, {"input": tensor}, "the second detector"), strict=True))
    found: list[tuple[Box, float]] = []
    for stride in _STRIDES:
        sides = _SIZE // stride
        scores = np.sqrt(
            np.clip(answers[f"cls_{stride}"][0, :, 0], 0, 1) * np.clip(answers[f"obj_{stride}"][0, :, 0], 0, 1)
        )
        for index in np.flatnonzero(scores >= SEEN_FROM):
            dx, dy, width, height = answers[f"bbox_{stride}"][0, index]
            row, column = divmod(int(index), sides)
            centre = np.array([column + dx, row + dy]) * stride
            half = np.exp([width, height]) * stride / 2
            box: Box = (*map(float, centre - half), *map(float, centre + half))  # type: ignore[assignment]
            found.append((box, float(scores[index])))
    return sorted(found, key=lambda each: -each[1])


@cache
def _session() -> Any:
    return load_session(MODEL, "the second detector")
