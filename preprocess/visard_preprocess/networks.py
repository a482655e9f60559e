"""Networks that onnxruntime runs: one session of each in this process, which threads share."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

from visard_errors import CheckpointError

_opening = threading.Lock()


def network(model: Path, weights: Path | None = None) -> Any:
    """Get the session of a network, on one thread; opened at the first call.

    Args:
        model: ONNX file.
        weights: folder of the files that it reads its weights from, where these are elsewhere.

    Raises:
        CheckpointError: the model cannot be run.
    """
    with _opening:
        return _open(model, weights)


@cache
def _open(model: Path, weights: Path | None) -> Any:
    import onnxruntime  # here and not above: it takes a fifth of a second, and most commands find no faces

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # photos are worked through on all cores already
    options.log_severity_level = 3  # an old file: it names every weight as an input, of which each is warned
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    try:
        return onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common root
        raise CheckpointError(f"cannot load the network '{model}': {error}") from error
