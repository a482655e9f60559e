"""The `Engine` as a model of Triton's Python backend: batches come from Triton, tensors pass as numpy views.

Pixels are copied once into pinned memory, which a transfer to the GPU needs anyhow. DLPack would hand over the same
pageable memory.
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
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        if self._engine is None:
            return [_response(["swapped"], [image]) for image in images]
        personas = [pb_utils.get_input_tensor_by_name(request, "persona").as_numpy() for request in requests]
        return [_response(self._engine.outputs, answer) for answer in self._engine.run(images, personas)]


def _response(names: Any, arrays: Any) -> Any:
    tensors = [pb_utils.Tensor(name, array) for name, array in zip(names, arrays, strict=True)]
    return pb_utils.InferenceResponse(output_tensors=tensors)
