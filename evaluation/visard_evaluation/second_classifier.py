"""A second opinion on apparent gender, by a classifier that took no part in the swaps: a file of the user's choice.

It is independent of the server's own classifier, which gives the first opinion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visard.result import ApparentGender
from visard_errors import CheckpointError
from visard_errors.extras import needs
from visard_evaluation.onnx_models import digest, load_session, run_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from visard.result import Gender


class SecondClassifier:
    """A classifier in a file: the served model's form, or weights as `visard train classifier` writes them.

    Args:
        file: `.onnx` with one input (N, 512, 512, 3) uint8 RGB and the output (N, 2), female before male; or
            `.safetensors` of a two-class ResNet-18.

    Raises:
        CheckpointError: the file is neither.
        MissingExtra: onnxruntime, or torch for safetensors, is not installed.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._classify = _onnx(file) if file.suffix == ".onnx" else _safetensors(file)
        self._sha256 = digest(file)

    def genders(self, aligned: NDArray[np.uint8]) -> list[Gender]:
        """Say what (N, 512, 512, 3) uint8 RGB faces look like."""
        answers = np.asarray(self._classify(aligned))
        if answers.shape != (len(aligned), 2):
            raise CheckpointError(f"the second classifier '{self._file}' answers {answers.shape}, not (N, 2)")
        return [ApparentGender.from_probabilities(each).label for each in answers]

    def provenance(self) -> dict[str, Any]:
        """The file's name and digest."""
        return {"file": self._file.name, "sha256": self._sha256}


def _onnx(file: Path) -> Callable[[NDArray[np.uint8]], Any]:
    session = load_session(file, "the second classifier")
    inputs = session.get_inputs()
    shape = list(inputs[0].shape[1:]) if len(inputs) == 1 else []
    if shape != [512, 512, 3] or inputs[0].type != "tensor(uint8)":
        raise CheckpointError(
            f"the second classifier '{file}' needs one input (N, 512, 512, 3) uint8, it has "
            + ", ".join(f"'{each.name}' {each.type} {each.shape}" for each in inputs)
        )
    name = inputs[0].name
    return lambda aligned: run_session(session, {name: aligned}, "the second classifier")[0]


def _safetensors(file: Path) -> Callable[[NDArray[np.uint8]], Any]:
    with needs("export", "a classifier in a safetensors file"):
        import torch

        from visard_export.checkpoints import load_classifier
        from visard_export.graphs import build_graph

    graph = build_graph(load_classifier(file).network()).eval()

    def classify(aligned: NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            return graph(torch.from_numpy(np.array(aligned))).numpy()

    return classify
