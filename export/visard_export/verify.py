"""Compares an exported model with its network: the same faces through torch in FP32 and through onnxruntime.

Out of tolerance is an `ExportError`, and nothing is published. This measures sameness, not quality: a bad network
passes if it was exported well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from visard_errors import ExportError
from visard_export.graphs import ClassifierGraph, Graph
from visard_export.networks.architectures import IMAGE_SIZE
from visard_export.networks.atlas import DIRECTIONS
from visard_export.options import Precision
from visard_export.repository import FUSED_MODEL, MODEL_FILE

BATCH = 2  # faces at a time: proves the free batch size, and the published generator's activations still fit

# Grey levels of 0..255. In FP32 two runtimes differ in the order of sums alone: a value on the edge between two levels
# may fall to the other side. In FP16 the worst of random networks, whose instance norms amplify noise as no trained
# one's do, was 0.5 on average and 13 at most, with every activation rounded to half: twice that.
MEAN_GREY = {"fp32": 0.02, "fp16": 1.0}
MAX_GREY = {"fp32": 2, "fp16": 26}
# Probabilities.
MAX_PROBABILITY = {"fp32": 1e-4, "fp16": 0.02}


@dataclass(frozen=True, kw_only=True)
class GeneratorParity:
    """How far an exported generator is from its network, in grey levels."""

    n_faces: int
    mean_grey: float
    max_grey: int


@dataclass(frozen=True, kw_only=True)
class ClassifierParity:
    """How far an exported classifier is from its network: share of equal decisions, and the widest probability gap."""

    n_faces: int
    agreement: float
    max_probability: float


@dataclass(frozen=True, kw_only=True)
class FusedParity:
    """How far the one graph is from its parts, in grey levels and in probabilities of both judgements."""

    n_faces: int
    max_grey: int
    max_probability: float


Parity = GeneratorParity | ClassifierParity | FusedParity


def verify(graph: Graph, path: Path, faces: NDArray[np.uint8], precision: Precision) -> Parity:
    """Compare an ONNX file with the FP32 graph that it came from.

    Args:
        graph: in FP32, whatever the file's precision is.
        path: the ONNX file.
        faces: (N, 512, 512, 3) uint8 RGB, aligned; real ones, because noise hides what a face would show.
        precision: of the file, which chooses the tolerance.

    Returns:
        The measured figures, within tolerance.

    Raises:
        ExportError: the file does not run, or its answers are out of tolerance.
        ValueError: `faces` has another shape or type, or is empty.
    """
    if faces.dtype != np.uint8 or faces.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3) or not len(faces):
        raise ValueError(f"faces must be (N, 512, 512, 3) uint8, got {faces.shape} {faces.dtype}")
    inputs: list[NDArray[Any]] = [resized(faces, graph.size)]
    if not isinstance(graph, ClassifierGraph):
        inputs.append(np.arange(len(faces), dtype=np.int32)[:, None])  # of each face another persona
    expected, (found,) = _run_torch(graph, inputs), _run_onnx(path, inputs)
    if isinstance(graph, ClassifierGraph):
        return _classifier_parity(expected, found, precision)
    return _generator_parity(expected, found, precision)


def verify_fused(versions: Mapping[str, Path], faces: NDArray[np.uint8]) -> FusedParity:
    """Compare `anonymizer` as one graph with the classifier and the generators that it was made of.

    The parts are verified against their networks; the same arithmetic in the same precision must give the same levels.

    Args:
        versions: the folder with the ONNX file of each model.
        faces: as for `verify`.

    Returns:
        The measured figures, within the tolerance of FP32.

    Raises:
        ExportError: a file does not run, or the answers are out of tolerance.
    """
    personas = np.arange(len(faces), dtype=np.int32)[:, None]
    files = {model: folder / MODEL_FILE for model, folder in versions.items()}
    swapped, gender, swapped_gender = _run_onnx(files[FUSED_MODEL], [faces, personas])
    (expected_gender,) = _run_onnx(files["gender_classifier"], [faces])
    both = [_run_onnx(files[f"generator_{direction}"], [faces, personas])[0] for direction in DIRECTIONS]
    is_male = expected_gender[:, 1] > expected_gender[:, 0]
    expected = np.where(is_male[:, None, None, None], both[1], both[0])
    (expected_swapped_gender,) = _run_onnx(files["gender_classifier"], [expected])
    gaps = np.abs(gender - expected_gender).max(), np.abs(swapped_gender - expected_swapped_gender).max()
    parity = FusedParity(
        n_faces=len(faces),
        max_grey=int(np.abs(expected.astype(np.int16) - swapped).max()),
        max_probability=round(float(max(gaps)), 7),
    )
    if not (parity.max_grey <= MAX_GREY["fp32"] and max(gaps) <= MAX_PROBABILITY["fp32"]):  # so that NaN fails
        raise ExportError(
            f"the one graph differs from its parts by {parity.max_grey} grey levels and a probability of "
            f"{parity.max_probability}, more than {MAX_GREY['fp32']} and {MAX_PROBABILITY['fp32']}: export with "
            "--shape routed"
        )
    return parity


def resized(faces: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize faces as the callers of the small classifier do: (N, H, W, 3) uint8 → (N, size, size, 3) uint8."""
    if faces.shape[1] == size:
        return faces
    small = (Image.fromarray(face).resize((size, size), Image.Resampling.BILINEAR) for face in faces)
    return np.stack([np.asarray(picture) for picture in small])


def _generator_parity(expected: NDArray[Any], found: NDArray[Any], precision: Precision) -> GeneratorParity:
    difference = np.abs(expected.astype(np.int16) - found)
    parity = GeneratorParity(
        n_faces=len(expected), mean_grey=round(float(difference.mean()), 5), max_grey=int(difference.max())
    )
    if parity.mean_grey > MEAN_GREY[precision] or parity.max_grey > MAX_GREY[precision]:
        raise ExportError(
            f"the {precision} generator differs from its network by {parity.mean_grey} grey levels on average and "
            f"{parity.max_grey} at most, more than {MEAN_GREY[precision]} and {MAX_GREY[precision]}: "
            + _advice(precision)
        )
    return parity


def _classifier_parity(expected: NDArray[Any], found: NDArray[Any], precision: Precision) -> ClassifierParity:
    gap = float(np.abs(expected - found).max())
    agreement = float((expected.argmax(1) == found.argmax(1)).mean())
    if not gap <= MAX_PROBABILITY[precision]:  # written so that NaN fails
        raise ExportError(
            f"the {precision} classifier differs from its network by a probability of {gap:.6f}, more than "
            f"{MAX_PROBABILITY[precision]}: " + _advice(precision)
        )
    return ClassifierParity(n_faces=len(expected), agreement=agreement, max_probability=round(gap, 7))


def _advice(precision: Precision) -> str:
    return "export it in fp32" if precision == "fp16" else "its export is broken; another version of torch may help"


def _batches(inputs: Sequence[NDArray[Any]]) -> Iterator[list[NDArray[Any]]]:
    for i in range(0, len(inputs[0]), BATCH):
        yield [each[i : i + BATCH] for each in inputs]


def _run_torch(graph: nn.Module, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    with torch.inference_mode():
        return np.concatenate([graph(*map(torch.from_numpy, batch)).numpy() for batch in _batches(inputs)])


def _run_onnx(path: Path, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run a file on all faces: its outputs, in their order."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        answers = [session.run(None, dict(zip(names, batch, strict=True))) for batch in _batches(inputs)]
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise ExportError(f"onnxruntime {onnxruntime.__version__} cannot run the exported model: {error}") from error
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]
