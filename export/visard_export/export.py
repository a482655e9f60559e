"""From three weights files to a model repository that Triton serves: load, build, export, verify, assemble.

Nothing is published before everything is verified. This module only puts the stages in order.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from visard_export import tensorrt
from visard_export.checkpoints import Checkpoint, load_classifier, load_generator, sha256_of
from visard_export.graphs import AnonymizerGraph, Generator, build_graph
from visard_export.networks.atlas import DIRECTIONS, Direction
from visard_export.networks.resnet18 import ResNet18
from visard_export.onnx import OPSET, PrecisionHistogram, export_onnx
from visard_export.options import ExportOptions, Precision, Shape
from visard_export.provenance import Provenance
from visard_export.repository import (
    ENGINE_FILE,
    FUSED_MODEL,
    MODEL_FILE,
    SMALL_CLASSIFIER,
    add_version,
    assemble,
    max_batch_size,
    publish,
    served_from_the_weights_of,
    staging,
)
from visard_export.verify import Parity, verify, verify_fused

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
        versions = stage / "versions"
        fused = _is_fused(options.shape, loaded)
        if not fused:
            loaded[SMALL_CLASSIFIER] = loaded["gender_classifier"]
        for model, checkpoint in loaded.items():
            report(f"exporting {model} from {checkpoint.file_name}")
            _export(model, checkpoint, versions / model, faces, options.precision)
        if fused:
            report(f"exporting {FUSED_MODEL} as one graph")
            (versions / FUSED_MODEL).mkdir()
            _export_fused(loaded, versions, faces, options.precision)
        if options.profile == "tensorrt":
            for folder in versions.iterdir():
                report(f"building an engine of {folder.name}")
                tensorrt.build_engine(folder / MODEL_FILE, folder / ENGINE_FILE, max_batch_size(folder.name))
                (folder / MODEL_FILE).unlink()
        assemble(versions, stage / "repository", profile=options.profile, encoded=options.encoded)
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
        versions, loaded = Path(folder), load(checkpoint)
        for each in served_from_the_weights_of(model, repository):
            _export(each, loaded, versions / each, faces, precision)
        return add_version(repository, model, versions, report)


def _is_fused(shape: Shape, loaded: Mapping[str, Checkpoint]) -> bool:
    to_male, to_female = loaded["generator_to_male"], loaded["generator_to_female"]
    if shape == "auto":
        return to_male.network_name == "persona" and to_male.sha256 == to_female.sha256
    return shape == "fused"


def _export(model: str, checkpoint: Checkpoint, folder: Path, faces: NDArray[np.uint8], precision: Precision) -> None:
    """Make a version folder with a verified model and its provenance."""
    folder.mkdir(parents=True)
    network = checkpoint.network()
    direction: Direction = "to_female" if model.endswith("to_female") else "to_male"
    small = model == SMALL_CLASSIFIER
    reference = build_graph(network, direction=direction, small=small)
    path = folder / MODEL_FILE
    parity: dict[Precision, Parity] = {}
    # FP32 is always verified: only then is the rest of an FP16 difference due to the precision alone.
    histogram = export_onnx(reference, path)
    parity["fp32"] = verify(reference, path, faces, "fp32")
    if precision == "fp16":
        histogram = export_onnx(build_graph(network, "fp16", direction, small=small), path)
        parity["fp16"] = verify(reference, path, faces, "fp16")
    _write_provenance(folder, model, [checkpoint], precision, histogram, parity)


def _export_fused(
    loaded: Mapping[str, Checkpoint], versions: Path, faces: NDArray[np.uint8], precision: Precision
) -> None:
    """Fill the version folder of the one graph, and compare it with its parts, which are in their folders already."""
    to_male, to_female = (loaded[f"generator_{direction}"] for direction in DIRECTIONS)
    first = cast(Generator, to_male.network())
    second = first if to_male.sha256 == to_female.sha256 else cast(Generator, to_female.network())
    graph = AnonymizerGraph(cast(ResNet18, loaded["gender_classifier"].network()), first, second, precision)
    folder = versions / FUSED_MODEL
    histogram = export_onnx(graph, folder / MODEL_FILE)
    parity: dict[Precision, Parity] = {precision: verify_fused({path.name: path for path in versions.iterdir()}, faces)}
    checkpoints = list({each.sha256: each for each in loaded.values()}.values())
    _write_provenance(folder, FUSED_MODEL, checkpoints, precision, histogram, parity)


def _write_provenance(
    folder: Path,
    model: str,
    checkpoints: Sequence[Checkpoint],
    precision: Precision,
    histogram: PrecisionHistogram,
    parity: dict[Precision, Parity],
) -> None:
    trained = {each.trained for each in checkpoints}
    licences = {each.licence: None for each in checkpoints}  # in their order
    Provenance(
        model=model,
        checkpoint=" + ".join(each.file_name for each in checkpoints),
        checkpoint_sha256=" + ".join(each.sha256 for each in checkpoints),
        network=" + ".join(each.network_name for each in checkpoints),
        architecture=checkpoints[-1].architecture,
        trained=False if False in trained else None if None in trained else True,
        licence=None if None in licences else " AND ".join(filter(None, licences)),
        precision=precision,
        precision_histogram=histogram,
        opset=OPSET,
        parity=parity,
        model_sha256=sha256_of(folder / MODEL_FILE),
        versions={
            **{tool: importlib.metadata.version(tool) for tool in TOOLS},
            "onnxruntime": onnxruntime.__version__,  # which comes in several distributions
        },
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    ).write(folder)
