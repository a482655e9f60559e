"""The provenance: where an exported model comes from and how faithful it is, as JSON beside the model.

It names the weights file without its folder, so that it may be shown to anyone who may use the server.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from visard_export.checkpoints import Architecture
from visard_export.onnx import PrecisionHistogram
from visard_export.options import Precision
from visard_export.repository import PROVENANCE_FILE
from visard_export.verify import Parity


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """One exported model.

    Attributes:
        model: its name in the repository.
        checkpoint: name of the weights file.
        checkpoint_sha256: of the weights file, in hexadecimal.
        network: `resnet18` or `pix2pixhd`.
        architecture: the network's sizes, read from the weights.
        trained: False for random weights, None where the file does not say.
        licence: of the weights, None where the file does not say.
        precision: as requested, and asserted on the graph.
        precision_histogram: what the graph is made of.
        opset: ONNX operator set of the graph.
        parity: for each exported precision, how far it is from the network on real faces.
        model_sha256: of the ONNX file, in hexadecimal.
        versions: of the tools that took part.
        created: UTC, ISO 8601.
    """

    model: str
    checkpoint: str
    checkpoint_sha256: str
    network: str
    architecture: Architecture
    trained: bool | None
    licence: str | None
    precision: Precision
    precision_histogram: PrecisionHistogram
    opset: int
    parity: dict[Precision, Parity]
    model_sha256: str
    versions: dict[str, str]
    created: str

    def write(self, folder: Path) -> None:
        """Write the provenance into a model's version folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / PROVENANCE_FILE).write_text(text + "\n", encoding="utf-8")
