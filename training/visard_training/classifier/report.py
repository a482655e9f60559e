"""How good a classifier is: calibrated, then measured through the graph that is served.

`evaluate` serves any classifier and any prepared faces, not only those of a training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from visard_export.graphs import build_graph
from visard_export.networks.resnet18 import ResNet18
from visard_preprocess.files import write_atomically
from visard_preprocess.machine import cores
from visard_training.classifier.pixels import read_aligned
from visard_training.data.faces import GENDERS, Sample
from visard_training.runs.progress import track

_BATCH = 32
_MAX_SHARPENING = 3.0  # where validation has no mistake, the likelihood alone would ask for endless certainty
_CALIBRATION_BINS = 10
_MANY_NUMBERS = 12  # a group of more different numbers, such as ages, is counted in tens


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The line of one epoch. Accuracies are shares, 0..1."""

    train_loss: float
    train_accuracy: float
    train_s: float
    validation_loss: float
    validation_accuracy: float
    validation_s: float

    def __str__(self) -> str:
        return (
            f"train loss {self.train_loss:.4f} accuracy {self.train_accuracy:.2%} {self.train_s:.1f} s · "
            f"validation loss {self.validation_loss:.4f} accuracy {self.validation_accuracy:.2%} "
            f"{self.validation_s:.1f} s"
        )


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """Figures of one split.

    Attributes:
        n: number of faces.
        accuracy: share of faces called by their label.
        confusion: label → answer → number of faces.
        by_gender: gender → accuracy.
        by_group: group column → value → {"n", "accuracy"}.
        loss: cross entropy of the served probabilities.
        calibration_error: mean distance between certainty and accuracy over ten bins of certainty, weighted by size
            (ECE: Guo et al., On Calibration of Modern Neural Networks, 2017).
    """

    n: int
    accuracy: float
    confusion: Mapping[str, Mapping[str, int]]
    by_gender: Mapping[str, float]
    by_group: Mapping[str, Mapping[str, Mapping[str, float]]]
    loss: float
    calibration_error: float


@dataclass(frozen=True, kw_only=True)
class ClassifierReport:
    """What came of a training.

    Attributes:
        epochs: one line each.
        temperature: what the logits were divided by; it is folded into the last layer.
        splits: `validation`, and `test` where there is one.
    """

    epochs: Sequence[Epoch] = field(repr=False)
    temperature: float
    splits: Mapping[str, SplitReport]


def calibrate(network: ResNet18, logits: Tensor, labels: Tensor) -> float:
    """Divide the logits by the temperature of the highest likelihood, inside the last layer.

    The answer never changes, only its certainty, and the weights are served like any others.

    Args:
        network: its `fc` is changed.
        logits: (N, 2) float32 of faces that were not trained on.
        labels: (N,) int64.

    Returns:
        The temperature; above 1 where the network was too certain.
    """

    def loss(sharpening: float) -> float:
        return float(functional.cross_entropy(logits.double() * sharpening, labels))

    sharpening = float(minimize_scalar(loss, bounds=(0.01, _MAX_SHARPENING), method="bounded").x)
    with torch.no_grad():
        network.fc.weight.mul_(sharpening)
        network.fc.bias.mul_(sharpening)
    return 1 / sharpening


def evaluate(
    network: ResNet18,
    samples: Sequence[Sample],
    *,
    epochs: Sequence[Epoch] = (),
    temperature: float = 1.0,
    console: Console | None = None,
) -> ClassifierReport:
    """Measure on the splits `validation` and `test` of prepared faces."""
    splits = {}
    for name in ("validation", "test"):
        faces = [sample for sample in samples if sample.split == name]
        if faces:
            splits[name] = split_report(faces, served_probabilities(network, faces, console=console))
    return ClassifierReport(epochs=epochs, temperature=temperature, splits=splits)


def served_probabilities(
    network: ResNet18, samples: Sequence[Sample], *, console: Console | None = None
) -> NDArray[np.float32]:
    """Classify aligned faces exactly as the server will.

    Returns:
        (N, 2) float32, female and male.
    """
    graph = build_graph(network)
    probabilities = []
    with ThreadPoolExecutor(cores()) as pool, torch.inference_mode():
        starts = range(0, len(samples), _BATCH)
        for start in track(starts, "Measuring", len(starts), console):
            faces = list(pool.map(read_aligned, samples[start : start + _BATCH]))
            probabilities.append(graph(torch.from_numpy(np.stack(faces))).numpy())
    return np.concatenate(probabilities)


def write(report: ClassifierReport, folder: Path, options: Mapping[str, Any]) -> None:
    """Write `report.json`, and the pictures `curves.png` and `confusion.png`."""
    content = {"options": dict(options), **asdict(report)}
    write_atomically(folder / "report.json", (json.dumps(content, indent=2, default=list) + "\n").encode())
    write_atomically(folder / "curves.png", _curves(report.epochs))
    write_atomically(folder / "confusion.png", _confusion(report.splits))


def split_report(samples: Sequence[Sample], probabilities: NDArray[np.float32]) -> SplitReport:
    """Count what (N, 2) probabilities, female and male, say of N faces."""
    labels = np.array([GENDERS.index(sample.gender) for sample in samples])
    answers = probabilities.argmax(1)
    right = answers == labels
    confusion: dict[str, dict[str, int]] = {
        gender: {answer: int(((labels == i) & (answers == j)).sum()) for j, answer in enumerate(GENDERS)}
        for i, gender in enumerate(GENDERS)
    }
    groups = sorted({name for sample in samples for name in sample.groups})
    return SplitReport(
        n=len(samples),
        accuracy=float(right.mean()),
        confusion=confusion,
        by_gender={gender: float(right[labels == i].mean()) for i, gender in enumerate(GENDERS) if (labels == i).any()},
        by_group={name: _accuracies([sample.groups.get(name, "") for sample in samples], right) for name in groups},
        loss=float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean()),
        calibration_error=_calibration_error(probabilities.max(1), right),
    )


def _accuracies(values: Sequence[str], right: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Accuracy of every value of a group; many different numbers are put together in tens."""
    if len({value for value in values if value.isdecimal()}) > _MANY_NUMBERS:
        values = [f"{int(v) // 10 * 10}–{int(v) // 10 * 10 + 9}" if v.isdecimal() else v for v in values]
    of = {value: right[np.array(values) == value] for value in sorted(set(values)) if value}
    return {value: {"n": len(part), "accuracy": float(part.mean())} for value, part in of.items()}


def _calibration_error(certainty: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    bins = np.minimum((certainty * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    distances = [abs(certainty[bins == b].sum() - right[bins == b].sum()) for b in range(_CALIBRATION_BINS)]
    return float(sum(distances) / len(right))


def _curves(epochs: Sequence[Epoch]) -> bytes:
    figure = Figure(figsize=(9, 4))
    numbers = range(1, len(epochs) + 1)
    for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "validation"):
            axes.plot(numbers, [getattr(epoch, f"{part}_{what}") for epoch in epochs], marker=".", label=part)
        axes.set(title=what, xlabel="epoch")
        axes.legend()
    return _png(figure)


def _confusion(splits: Mapping[str, SplitReport]) -> bytes:
    figure = Figure(figsize=(4.5 * len(splits), 4.5))
    for axes, (name, split) in zip(np.atleast_1d(figure.subplots(1, len(splits))), splits.items(), strict=True):
        counts = np.array([[split.confusion[label][answer] for answer in GENDERS] for label in GENDERS])
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            share = shares[row, column]
            axes.text(column, row, f"{count}\n{share:.1%}", ha="center", va="center", color="w" if share > 0.5 else "k")
        axes.set(title=f"{name}: {split.accuracy:.1%} of {split.n}", xlabel="answer", ylabel="label")
        axes.set_xticks(range(len(GENDERS)), GENDERS)
        axes.set_yticks(range(len(GENDERS)), GENDERS)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
