"""Answers with the passports of the repository's models, as a Triton Python model.

A passport (`passport.json` beside the weights) is what the export knows about the weights it wrote: their kind, origin
and measured agreement. This model knows nothing about photographs. Triton gives a model only its own folder when the
repository lies in cloud storage; the answer is then empty.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Reads the passports once, when it is loaded."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read `<model>/<version>/passport.json` of every model that has one, of the version that Triton serves."""
        repository = Path(args["model_repository"]).parent
        passports = {}
        for model in sorted(repository.iterdir()):
            versions = [int(folder.name) for folder in model.glob("[0-9]*") if folder.name.isdecimal()]
            passport = model / str(max(versions, default=1)) / "passport.json"  # the highest number is served
            if passport.is_file():
                passports[model.name] = json.loads(passport.read_text(encoding="utf-8"))
        self._passports = np.array([json.dumps(passports)], dtype=np.object_)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with the same JSON object, model → passport."""
        answer = [pb_utils.Tensor("passport", self._passports)]
        return [pb_utils.InferenceResponse(output_tensors=answer) for _ in requests]
