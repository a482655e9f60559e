"""From three weights files to a model repository that Triton serves: load, build, export, verify, assemble.

Nothing is published before everything is verified. This module only puts the stages in order.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from visard_export import tensorrt
from visard_export.checkpoints import Checkpoint, load_classifier, load_generator, sha256_of
from visard_export.graphs import build_graph
from visard_export.networks.persona import Direction
from visard_export.onnx import OPSET, export_onnx
from visard_export.options import ExportOptions, Precision, Profile
from visard_export.provenance import Provenance
from visard_export.repository import (
    ENGINE_FILE,
    EXPORTED_MODELS,
    MODEL_FILE,
    add_version,
    assemble,
    max_batch_size,
    publish,
    staging,
)
from visard_export.verify import Parity, verify

TOOLS = ("visard", "torch", "onnx")


def export_repository(
    target: Path,
    *,
    classifier: Path,
    to_male: Path,
    to_female: Path,
    faces: NDArray[np.uint8],
    options: ExportOptions,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Make a model repository out of three weights files.

    Args:
        target: the folder to make; a repository that was exported before is replaced, anything else is left alone.
        classifier: a two-class ResNet-18, (female, male).
        to_male: a pix2pixHD generator that draws apparently male faces.
        to_female: the other one.
        faces: (N, 512, 512, 3) uint8 RGB, aligned faces on which the exports are verified.
        options: what is made of them.
        report: takes a line of progress.

    Raises:
        CheckpointError: a weights file is unsafe, damaged or another network.
        ExportError: an export is out of tolerance, or TensorRT is requested and absent.
        RepositoryError: the target cannot be written or is something else.
    """
    if options.profile == "tensorrt":
        tensorrt.require()
    with staging(target, report) as stage:
        loaded = {
            "gender_classifier": load_classifier(classifier),
            "generator_to_male": load_generator(to_male),
            "generator_to_female": load_generator(to_female),
        }
        for model in EXPORTED_MODELS:
            report(f"exporting {model} from {loaded[model].file_name}")
            folder = stage / "versions" / model
            folder.mkdir(parents=True)
            _export(model, loaded[model], folder, faces, options.precision, options.profile)
        assemble(stage / "versions", stage / "repository", profile=options.profile, encoded=options.encoded)
        publish(stage / "repository", target)
    report(f"model repository ready: {target}")


def export_version(
    repository: Path,
    model: str,
    checkpoint: Path,
    *,
    faces: NDArray[np.uint8],
    precision: Precision = "fp32",
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Put new weights beside the old ones of one model.

    Args:
        repository: made by `export_repository`, with the `cpu` or the `gpu` profile.
        model: one of `EXPORTED_MODELS`.
        checkpoint: the new weights file.
        faces: as for `export_repository`.
        precision: of the network inside the graph.
        report: takes a line of progress.

    Returns:
        The number of the new version.

    Raises:
        CheckpointError: the weights file is unsafe, damaged or another network.
        ExportError: the export is out of tolerance.
        RepositoryError: the repository cannot be written or has no such model.
    """
    load = load_classifier if model == "gender_classifier" else load_generator
    with tempfile.TemporaryDirectory() as folder:
        _export(model, load(checkpoint), Path(folder), faces, precision, "gpu")
        return add_version(repository, model, Path(folder), report)


def _export(
    model: str, checkpoint: Checkpoint, folder: Path, faces: NDArray[np.uint8], precision: Precision, profile: Profile
) -> None:
    """Fill a version folder with a verified model and its provenance."""
    network = checkpoint.network()
    direction: Direction = "to_female" if model.endswith("to_female") else "to_male"
    reference = build_graph(network, direction=direction)
    path = folder / MODEL_FILE
    parity: dict[Precision, Parity] = {}
    # FP32 is always verified: only then is the rest of an FP16 difference due to the precision alone.
    histogram = export_onnx(reference, path)
    parity["fp32"] = verify(reference, path, faces, "fp32")
    if precision == "fp16":
        histogram = export_onnx(build_graph(network, "fp16", direction), path)
        parity["fp16"] = verify(reference, path, faces, "fp16")
    Provenance(
        model=model,
        checkpoint=checkpoint.file_name,
        checkpoint_sha256=checkpoint.sha256,
        network=checkpoint.network_name,
        architecture=checkpoint.architecture,
        trained=checkpoint.trained,
        licence=checkpoint.licence,
        precision=precision,
        precision_histogram=histogram,
        opset=OPSET,
        parity=parity,
        model_sha256=sha256_of(path),
        versions={
            **{tool: importlib.metadata.version(tool) for tool in TOOLS},
            "onnxruntime": onnxruntime.__version__,  # which comes in several distributions
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    ).write(folder)
    if profile == "tensorrt":
        tensorrt.build_engine(path, folder / ENGINE_FILE, max_batch_size(model))
        path.unlink()
