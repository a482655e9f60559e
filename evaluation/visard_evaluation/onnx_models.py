"""Loads and runs ONNX files of any kind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from visard_errors import CheckpointError, MissingExtra


def load_session(file: Path, what: str) -> Any:
    """Load a model for onnxruntime.

    Args:
        file: the model.
        what: what it is for, as an error names it.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file is no model.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("evaluate", what) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # photos are measured on all cores already
    options.log_severity_level = 3  # old files name every weight as an input, which it would warn of one by one
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common root
        raise CheckpointError(f"cannot load {what} '{file}': {error}") from None


def run_session(session: Any, inputs: dict[str, Any], what: str) -> list[Any]:
    """Run a model; `CheckpointError` where it fails."""
    try:
        outputs: list[Any] = session.run(None, inputs)
    except Exception as error:  # onnxruntime's errors have no common root
        raise CheckpointError(f"{what} failed: {error}") from error
    return outputs


def digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        found = hashlib.sha256()
        while chunk := stream.read(2**20):
            found.update(chunk)
    return found.hexdigest()
