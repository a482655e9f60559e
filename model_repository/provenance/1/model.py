"""Answers with the provenance of the repository's models, as a Triton Python model.

`provenance.json` beside the weights is what the export knows about the weights it wrote: their kind, origin and
measured agreement. Triton gives a model only its own folder when the repository lies in cloud storage; the answer is
then empty.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Reads the provenance once, when it is loaded."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read `<model>/<version>/provenance.json` of every model that has one, of the version that Triton serves."""
        repository = Path(args["model_repository"]).parent
        provenance = {}
        for model in sorted(repository.iterdir()):
            versions = [int(folder.name) for folder in model.glob("[0-9]*") if folder.name.isdecimal()]
            file = model / str(max(versions, default=1)) / "provenance.json"  # the highest number is served
            if file.is_file():
                provenance[model.name] = json.loads(file.read_text(encoding="utf-8"))
        self._provenance = np.array([json.dumps(provenance)], dtype=np.object_)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with the same JSON object, model → provenance."""
        answer = [pb_utils.Tensor("provenance", self._provenance)]
        return [pb_utils.InferenceResponse(output_tensors=answer) for _ in requests]
