"""The `Engine` as a model of Triton's Python backend: batches come from Triton, tensors pass as DLPack.

The wheel's backend was built against numpy 1: with numpy 2 it takes an array's size for zero and answers nothing.
DLPack needs no numpy and copies nothing. Pixels are copied once, into the pinned memory that transfers to a GPU need.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance; see `triton_server.py` for its parameters; without settings it answers what it gets."""

    def initialize(self, args: dict[str, str]) -> None:
        """Build the networks and warm them up."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._engine: Any = None
        if "settings" in parameters:
            sys.path.insert(0, parameters["folder"]["string_value"])  # the backend hands no PYTHONPATH on
            from engine import Engine, Settings

            self._engine = Engine(Settings.from_json(parameters["settings"]["string_value"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests as one batch."""
        images = [_input(request, "image") for request in requests]
        if self._engine is None:
            return [_response(["swapped"], [image]) for image in images]
        from torch.utils.dlpack import from_dlpack

        personas = [from_dlpack(_input(request, "persona")) for request in requests]
        answers = self._engine.run([from_dlpack(image) for image in images], personas)
        return [_response(self._engine.outputs, answer) for answer in answers]


def _input(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).to_dlpack()


def _response(names: Any, tensors: Any) -> Any:
    named = [pb_utils.Tensor.from_dlpack(name, tensor) for name, tensor in zip(names, tensors, strict=True)]
    return pb_utils.InferenceResponse(output_tensors=named)
