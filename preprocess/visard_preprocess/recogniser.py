"""dlib's face recogniser, computed by onnxruntime: the same descriptors to a millionth, sixteen times as fast.

dlib's wheel multiplies matrices without a library for it. The weights stay in dlib's file, the graph is made by
`visard_testing.recogniser_graph`. Nothing is known here of where a face lies: `align` cuts it out.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visard_errors import CheckpointError
from visard_preprocess.networks import network

if TYPE_CHECKING:
    from collections.abc import Sequence

GRAPH = Path(__file__).parent / "data" / "face_recogniser.onnx"
WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"  # the graph tells where in it weights lie

CHIP_SIZE, CHIP_PADDING = 150, 0.25  # what it was trained on

_AT_ONCE = 8  # more take no less time each


def describe(chips: Sequence[NDArray[np.uint8]], weights: Path) -> NDArray[np.float64]:
    """Describe whose faces they are.

    Args:
        chips: (150, 150, 3) uint8 RGB each, as `dlib.get_face_chip` cuts them out.
        weights: dlib's file.

    Returns:
        (N, 128) float64.

    Raises:
        CheckpointError: the file is missing, or another one.
    """
    _check(weights)
    session = network(GRAPH, weights.parent)
    parts = [np.empty((0, 128))]
    for start in range(0, len(chips), _AT_ONCE):
        parts += session.run(None, {"chips": np.stack(chips[start : start + _AT_ONCE])})
    return np.concatenate(parts)


@cache
def _check(weights: Path) -> None:
    try:
        same = hashlib.sha256(weights.read_bytes()).hexdigest() == _SHA256
    except OSError as error:
        raise CheckpointError(f"cannot read '{weights}' ({error.strerror}): install face_recognition_models") from None
    if not same:
        raise CheckpointError(f"'{weights}' is not dlib's published recogniser: install face_recognition_models anew")
