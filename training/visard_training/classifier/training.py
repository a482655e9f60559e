"""Trains the gender classifier on prepared faces: ResNet-18, two outputs, calibrated.

The defaults are the published recipe. A run has one folder and resumes from its last state when it is started
again, to the same weights as if it had never stopped:

    classifier.safetensors   the result: the best epoch's weights, calibrated
    best.safetensors         the best epoch so far, last.safetensors the last one
    state.pt                 where to resume
    report.json, curves.png, confusion.png

The photographs must be aligned already (`visard_training.data`).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from visard_errors import CheckpointError, DataError
from visard_export.checkpoints import load_classifier
from visard_export.networks.architectures import ResNet18Architecture
from visard_export.networks.resnet18 import ResNet18
from visard_training.classifier import report as classifier_report
from visard_training.classifier.options import ClassifierOptions
from visard_training.classifier.pixels import Pixels, classifier_pixels, normalise
from visard_training.classifier.report import Epoch
from visard_training.data import augmentation
from visard_training.data.faces import GENDERS, Sample, check_classes, read_faces
from visard_training.runs.progress import Progress
from visard_training.runs.run import Run, digest_of, main_console, main_process_first, save_weights
from visard_training.runs.state import generator

if TYPE_CHECKING:
    from visard_training.classifier.report import ClassifierReport

RESULT_FILE, BEST_FILE, LAST_FILE = "classifier.safetensors", "best.safetensors", "last.safetensors"
_WARM_UP_SHARE = 0.05  # of all steps, for the cosine schedule
_VALIDATION_BATCH = 64


def train_classifier(
    caches: Sequence[Path], output: Path, options: ClassifierOptions | None = None, *, console: Console | None = None
) -> ClassifierReport:
    """Train, or resume a training, and report.

    Under `accelerate launch` every process takes its share of each step.

    Args:
        caches: folders of `prepare_faces`; their splits `train` and `validation` are used, and `test` is reported on.
        output: folder of this run.
        options: the published recipe by default.
        console: where progress and epoch lines go.

    Raises:
        DataError: a cache cannot be used, or a split lacks a class.
        CheckpointError: the initial weights or the state cannot be used, or the training diverged.
        OutputError: the folder belongs to a training with other settings or cannot be written, or the disk is full.
    """
    options, console = options or ClassifierOptions(), main_console(console)
    samples = [sample for cache in caches for sample in read_faces(cache)]
    for split in ("train", "validation"):
        where = f"split '{split}' of {', '.join(map(str, caches))}"
        check_classes((sample.gender for sample in samples if sample.split == split), where)
    with main_process_first():
        pixels = Pixels([classifier_pixels(cache, console) for cache in caches])
    run = _ClassifierRun(pixels, samples, output, options, console)
    epochs = run.train()
    best = cast("ResNet18", load_classifier(output / BEST_FILE).network())
    temperature = classifier_report.calibrate(best, *_logits(best, pixels, samples, options.size))
    if options.half:
        best = best.half().float()  # rounded to what is written, before it is measured
    report = classifier_report.evaluate(best, samples, epochs=epochs, temperature=temperature, console=console)
    if run.accelerator.is_main_process:
        save_weights(output / RESULT_FILE, best.half() if options.half else best, licence=options.licence)
        classifier_report.write(report, output, _written(options))
    run.accelerator.wait_for_everyone()
    return report


class _ClassifierRun(Run):
    """One training: everything that is the same in each of its steps, and where it stands."""

    def __init__(
        self, pixels: Pixels, samples: Sequence[Sample], output: Path, options: ClassifierOptions, console: Console
    ) -> None:
        inputs = {"faces": _digest(samples), "initial": digest_of(options.initial)}
        super().__init__(output, options, inputs, console)
        self.settings["processes"] = self.accelerator.num_processes  # each draws random numbers of its own
        self.pixels, self.options, self.samples = pixels, options, samples
        self.train_indices = np.array([i for i, sample in enumerate(samples) if sample.split == "train"])
        self.labels = np.array([GENDERS.index(sample.gender) for sample in samples])
        self.check_shares(options.batch_size)
        self.steps_per_epoch = math.ceil(len(self.train_indices) / options.batch_size)
        self.n_steps = options.epochs * self.steps_per_epoch
        self.classifier = network = _initial_network(options).to(self.accelerator.device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # twice as fast on CPUs
        optimiser = torch.optim.SGD(
            network.parameters(), options.learning_rate, options.momentum, weight_decay=options.weight_decay
        )
        self.weights = _face_weights([samples[i] for i in self.train_indices], options.balance_by)
        self.step = 0
        self.totals = torch.zeros(
            3, dtype=torch.float64, device=self.accelerator.device
        )  # loss, correct, seen: this epoch
        self.seconds = 0.0
        self.epochs: list[Epoch] = []
        self.best = (-1.0, 0.0)
        self.networks, self.optimisers = {"classifier": network}, {"classifier": optimiser}
        self.resume()
        self.network, self.optimiser = self.accelerator.prepare(network, optimiser)
        self.optimisers["classifier"] = self.optimiser

    def train(self) -> list[Epoch]:
        """Take all steps that are left."""
        with Progress("Training", self.n_steps, done=self.step, console=self.console) as progress:
            while self.step < self.n_steps:
                started = time.monotonic()
                self._take_step()
                self.seconds += time.monotonic() - started
                progress.advance()
                if self.step % self.steps_per_epoch == 0:
                    self._end_epoch()
                elif self.step % self.options.save_every == 0:
                    self.save()
        return self.epochs

    def _take_step(self) -> None:
        """One step; its random numbers depend on the seed, the step and the process alone."""
        options, rank, world = self.options, self.accelerator.process_index, self.accelerator.num_processes
        epoch, position = divmod(self.step, self.steps_per_epoch)
        start = position * options.batch_size
        drawn = _epoch_order(self.weights, options, epoch, world)[start : start + options.batch_size][rank::world]
        chosen = self.train_indices[drawn]
        pictures = self.pixels.batch(chosen, options.size).to(self.accelerator.device)
        random = generator(options.seed, "step", self.step, rank)
        pictures = getattr(augmentation, options.augmentation)(pictures, random)
        labels = torch.from_numpy(self.labels[chosen]).to(pictures.device)
        for group in self.optimiser.param_groups:
            group["lr"] = _learning_rate(options, self.step, self.n_steps)
        self.network.train()
        with self.autocast():
            logits = self.network(normalise(pictures)).float()
        losses = functional.cross_entropy(logits, labels, label_smoothing=options.label_smoothing, reduction="none")
        weights = (self.weights[drawn] if options.balance == "weights" else torch.ones(len(drawn))).to(losses.device)
        loss = (weights * losses).sum() / weights.sum()
        self.accelerator.backward(loss)
        self.optimiser.step()
        self.optimiser.zero_grad()
        correct = (logits.argmax(1) == labels).sum()
        self.totals += torch.stack(
            [loss.detach() * len(chosen), correct, torch.tensor(len(chosen), device=loss.device)]
        )
        self.step += 1

    def _end_epoch(self) -> None:
        """Validate, tell, and keep the weights."""
        loss, correct, seen = self.accelerator.reduce(self.totals).tolist()
        self.check_finite(loss, f"epoch {len(self.epochs) + 1}")
        network = self.classifier
        started = time.monotonic()
        with self.autocast():
            logits, labels = _logits(network, self.pixels, self.samples, self.options.size)
        right = (logits.argmax(1) == labels).double()
        epoch = Epoch(
            train_loss=loss / seen,
            train_accuracy=correct / seen,
            train_s=self.seconds,
            validation_loss=float(functional.cross_entropy(logits, labels)),
            validation_accuracy=float(right.mean()),
            validation_s=time.monotonic() - started,
        )
        self.epochs.append(epoch)
        self.totals.zero_()
        self.seconds = 0.0
        self.say(f"epoch {len(self.epochs)}/{self.options.epochs}: {epoch}")
        # Both classes count alike, however many faces of each there are; of two equals, the more certain epoch.
        balanced = sum(float(right[labels == label].mean()) for label in range(len(GENDERS))) / len(GENDERS)
        better = (balanced, -epoch.validation_loss) > self.best
        self.best = max(self.best, (balanced, -epoch.validation_loss))
        if self.accelerator.is_main_process:
            if better:
                save_weights(self.output / BEST_FILE, network, licence=self.options.licence)
            save_weights(self.output / LAST_FILE, network, licence=self.options.licence)
        self.save()  # last: killed before it, the run repeats this epoch's end and writes the same weights

    def standing(self) -> dict[str, Any]:
        """Say where in the epochs it is."""
        return {
            "step": self.step,
            "totals": self.accelerator.reduce(self.totals).cpu(),
            "seconds": self.seconds,
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best": list(self.best),
        }

    def take_up(self, standing: Mapping[str, Any]) -> None:
        """Go on there."""
        if self.accelerator.is_main_process:  # the totals are those of all processes
            self.totals.copy_(standing["totals"])
        self.step, self.seconds, self.best = standing["step"], standing["seconds"], tuple(standing["best"])
        self.epochs = [Epoch(**epoch) for epoch in standing["epochs"]]

    def of_earlier_version(self, state: dict[str, Any]) -> dict[str, Any]:
        """Before, the settings were one line of text."""
        before = [_written(self.options), self.accelerator.num_processes, self.settings["faces"]]
        if state.get("run") != json.dumps(before, sort_keys=True):
            return state
        networks, optimisers = {"classifier": state["network"]}, {"classifier": state["optimizer"]}
        return {**state, "settings": self.settings, "networks": networks, "optimisers": optimisers}


def _digest(samples: Sequence[Sample]) -> str:
    """Name faces after what is learned from them."""
    faces = "\n".join(f"{sample.path.name} {sample.gender} {sample.split}" for sample in samples)
    return hashlib.sha256(faces.encode()).hexdigest()


def _written(options: ClassifierOptions) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}


def _logits(network: ResNet18, pixels: Pixels, samples: Sequence[Sample], size: int) -> tuple[Tensor, Tensor]:
    """Classify the validation faces as they are; (N, 2) float32 logits and (N,) labels, on the CPU."""
    indices = np.array([i for i, sample in enumerate(samples) if sample.split == "validation"])
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        logits = [
            network(normalise(pixels.batch(part, size).to(device))).float().cpu()
            for part in np.array_split(indices, math.ceil(len(indices) / _VALIDATION_BATCH))
        ]
    return torch.cat(logits), torch.tensor([GENDERS.index(samples[i].gender) for i in indices])


def _face_weights(samples: Sequence[Sample], column: str) -> Tensor:
    """(N,) float32 that sum up to the same in both classes; within a class the rarer groups of a column weigh more."""
    if column and not any(column in sample.groups for sample in samples):
        raise DataError(f"no face has a column '{column}' to balance by: name one of the manifest's")
    groups = [(sample.gender, sample.groups.get(column, "")) for sample in samples]
    counts = Counter(groups)
    weights = torch.tensor([counts[group] ** -0.5 for group in groups])
    for gender in GENDERS:
        of_class = torch.tensor([sample.gender == gender for sample in samples])
        weights[of_class] /= weights[of_class].sum()
    return weights * len(samples) / len(GENDERS)


def _initial_network(options: ClassifierOptions) -> ResNet18:
    if options.initial is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            return ResNet18(ResNet18Architecture(width=options.width))
    checkpoint = load_classifier(options.initial)
    if checkpoint.architecture != ResNet18Architecture(width=options.width):
        raise CheckpointError(f"'{options.initial}' holds {checkpoint.architecture}: set the width to match it")
    return cast("ResNet18", checkpoint.network())


def _epoch_order(weights: Tensor, options: ClassifierOptions, epoch: int, world: int) -> NDArray[np.int64]:
    """In which order an epoch sees its faces, filled up by its first ones so that every process gets as many."""
    random = generator(options.seed, "order", epoch)
    if options.balance == "sampler":
        order = torch.multinomial(weights, len(weights), replacement=True, generator=random)
    else:
        order = torch.randperm(len(weights), generator=random)
    return np.resize(order.numpy(), math.ceil(len(weights) / world) * world)


def _learning_rate(options: ClassifierOptions, step: int, n_steps: int) -> float:
    if options.schedule == "constant":
        return options.learning_rate
    warm_up = max(1, round(_WARM_UP_SHARE * n_steps))
    if step < warm_up:
        return options.learning_rate * (step + 1) / warm_up
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (n_steps - warm_up)))
