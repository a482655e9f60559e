"""Trains a generator on pairs as pix2pixHD does: the photo in, the face of the other apparent gender out.

`train_swapper` does all of it, with the help of `batches` (data), `losses` and `discriminator`.

Source: Wang et al.: High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs, 2018, and the
training code published with it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from rich.console import Console
from torch import Tensor, nn

from visard_errors import CheckpointError, DataError
from visard_export.checkpoints import load_classifier
from visard_export.networks.resnet18 import ResNet18
from visard_training.pairs.folder import read_pairs
from visard_training.runs.progress import Progress, say
from visard_training.runs.run import Run, digest_of, main_console, main_process_first
from visard_training.runs.state import writing
from visard_training.swapper.batches import PairImages, Sampler, vary
from visard_training.swapper.discriminator import MultiScaleDiscriminator
from visard_training.swapper.generator import SwapModel, export_generator, initial_network
from visard_training.swapper.losses import (
    ClassifierFeatures,
    PerceptualLoss,
    VGG19Features,
    feature_matching_loss,
    lsgan_loss,
    reconstruction_loss,
)
from visard_training.swapper.options import SwapperOptions
from visard_training.swapper.report import grey_levels, write_grid, write_losses

SAMPLES_FOLDER = "samples"
LOG_STEPS = 25  # a row of the losses is the mean of at most so many steps
HOLDOUT_PAIRS = 32  # how many are looked at to see whether the generator generalises
BETAS = (0.5, 0.999)
EMA_DECAY = 0.999  # of the moving average of the generator's weights, which is what is exported


@dataclass(frozen=True, kw_only=True)
class TrainedSwapper:
    """How a training ended.

    Attributes:
        checkpoint: the generator's file, safetensors with metadata.
        steps: how many there were, those before a resume included.
        seconds: how long they took.
        pairs: how many were trained on.
        broken: pairs left out because an image could not be read.
        holdout_l1: mean absolute difference between result and target on held-out pairs, in grey levels; on pairs of
            the training where none were held out.
        unchanged_l1: the same between photo and target: what a generator that does nothing would have.
    """

    checkpoint: Path
    steps: int
    seconds: float
    pairs: int
    broken: int
    holdout_l1: float
    unchanged_l1: float


def train_swapper(
    folder: Path,
    output: Path,
    options: SwapperOptions,
    *,
    vgg: Path | None = None,
    classifier: Path | None = None,
    console: Console | None = None,
) -> TrainedSwapper:
    """Train a generator, or resume where an earlier call with the same options and output was interrupted.

    Under `accelerate launch` every process takes its share of each step.

    Args:
        folder: of pairs, see `pairs.folder`.
        output: a folder of this training's own, made if missing: decoded pairs, state, losses, samples, checkpoints.
        options: how to train.
        vgg: torchvision's VGG19 weights for the perceptual loss.
        classifier: for the perceptual loss where there is no `vgg`: a trained gender classifier.
        console: where it says how it goes.

    Raises:
        DataError: the pairs cannot be used.
        CheckpointError: a weights file or the state cannot be used, or the training diverged.
        OutputError: the folder belongs to a training with other settings or cannot be written, or the disk is full.
    """
    console = main_console(console)
    with writing(output):
        (output / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
    with main_process_first():  # the others find what the first has decoded
        train, holdout, broken = _read_pictures(folder, output, options, console)
    perceptual = _perceptual_loss(options, vgg, classifier)
    inputs = {"pairs": train.digest, "vgg": digest_of(vgg), "classifier": digest_of(classifier)}
    run = _SwapperRun(output, options, inputs, perceptual, console)
    sampler = Sampler(len(train), options.batch_size, options.seed)
    run.check_shares(sampler.batch_size)
    shown = holdout.take(range(min(len(holdout), HOLDOUT_PAIRS)))
    run.train(train, sampler, shown)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()
    if run.accelerator.is_main_process:
        run.export()
    return TrainedSwapper(
        checkpoint=run.checkpoint,
        steps=run.step,
        seconds=run.seconds,
        pairs=len(train),
        broken=broken,
        holdout_l1=grey_levels(run.swap(shown[:, 0]), shown[:, 1]),
        unchanged_l1=grey_levels(shown[:, 0], shown[:, 1]),
    )


class _SwapperRun(Run):
    """Networks, optimisers and what else a state on the disk must hold."""

    def __init__(
        self,
        output: Path,
        options: SwapperOptions,
        inputs: Mapping[str, str],
        perceptual: PerceptualLoss | None,
        console: Console,
    ) -> None:
        super().__init__(output, options, {**inputs, "initial": digest_of(options.initial)}, console)
        self.options = options
        self.checkpoint = output / f"{options.direction}.safetensors"
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self._recent: list[dict[str, float]] = []  # losses of the steps since the last row of the history
        device = self.accelerator.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            network = initial_network(options.initial, options.generator)
            discriminator = MultiScaleDiscriminator(options.discriminator)
        self.average = copy.deepcopy(network).to(device).eval().requires_grad_(False)
        self._generator = SwapModel(network, gradient_checkpointing=options.gradient_checkpointing).to(device)
        self._perceptual = perceptual.to(device) if perceptual is not None else None
        self._discriminator = discriminator.to(device) if options.weights.needs_discriminator else None
        self.networks = {"generator": self._generator.network, "average": self.average}
        self.optimisers = {"generator": self._adam(self._generator)}
        if self._discriminator is not None:
            self.networks["discriminator"] = self._discriminator
            self.optimisers["discriminator"] = self._adam(self._discriminator)
        if self.resume():
            self.say(f"Going on after step {self.step}")
        prepare = self.accelerator.prepare
        self._generate = prepare(self._generator)
        self._discriminate = prepare(self._discriminator) if self._discriminator is not None else None
        self.optimisers = {name: prepare(optimiser) for name, optimiser in self.optimisers.items()}

    def _adam(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), self.options.learning_rate, BETAS)

    def train(self, pictures: PairImages, sampler: Sampler, shown: Tensor) -> None:
        """Take all steps that are left, and write on the way.

        Args:
            pictures: to train on.
            sampler: says which of them a step takes.
            shown: (N, 2, 3, S, S) float32 in −1..1, the pairs to look at.
        """
        options, rank, world = self.options, self.accelerator.process_index, self.accelerator.num_processes
        total_steps = options.epochs * sampler.steps_per_epoch
        started = time.monotonic() - self.seconds
        with Progress("Training", total_steps, done=self.step, console=self.console) as bar:
            while (progress := self.progress(total_steps)) < 1:
                batch = pictures.take(sampler.batch(self.step)[rank::world]).to(self.accelerator.device)
                batch = vary(batch, options.seed, self.step, rank, strong=options.augmentation == "strong")
                self.train_step(batch[:, 0], batch[:, 1], progress)
                self.seconds = time.monotonic() - started
                over = self.progress(total_steps) >= 1
                saving = self.step % options.save_every == 0 or over
                told = self.log() if self.step % LOG_STEPS == 0 or saving else None
                if self.step % options.sample_every == 0 or over:
                    self._show(shown)
                if saving:
                    self.save()
                    self.export()
                bar.advance(told)

    def _show(self, shown: Tensor) -> None:
        """Let the averaged generator swap pairs that it does not learn from, to look at."""
        if self.accelerator.is_main_process:
            swapped = self.swap(shown[:, 0])
            levels = grey_levels(swapped, shown[:, 1])
            self.say(f"step {self.step}: {levels:.2f} grey levels from held-out targets")
            with writing(self.output):
                write_grid(self.output / SAMPLES_FOLDER / f"step_{self.step:06}.jpg", shown, swapped)

    def export(self) -> None:
        """Write the losses so far and the averaged generator."""
        if self.accelerator.is_main_process:
            with writing(self.output):
                write_losses(self.output, self.history)
            export_generator(self.checkpoint, self.average, half=self.options.half, licence=self.options.licence)

    def progress(self, total_steps: int) -> float:
        """How much of the training is done: of its steps, or of its time where that ends first."""
        done = self.step / total_steps
        if self.options.minutes is None:
            return done
        seconds = torch.tensor(self.seconds, device=self.accelerator.device)
        return max(done, float(broadcast(seconds)) / (60 * self.options.minutes))  # all processes end together

    def train_step(self, photo: Tensor, target: Tensor, progress: float) -> None:
        """Update the generator, its average and the discriminator once."""
        self._rate = self.options.learning_rate * rate_factor(progress, self.options.constant_share)
        with self.autocast():
            fake = self._generate(photo)
        losses = self._generator_losses(photo, fake, target)
        weights = asdict(self.options.weights)
        self._update("generator", torch.stack([weights[name] * loss for name, loss in losses.items()]).sum())
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))  # the first weights are forgotten soon
        for mean, now in zip(self.average.parameters(), self._generator.network.parameters(), strict=True):
            mean.lerp_(now.detach(), 1 - decay)
        if self._discriminate is not None:
            with self.autocast():
                outputs = self._discriminate(torch.cat((photo, photo)), torch.cat((fake.detach(), target)))
            generated, real = (
                [[layer[half] for layer in features] for features in outputs]
                for half in (slice(len(photo)), slice(len(photo), None))
            )
            losses["discriminator"] = 0.5 * (lsgan_loss(generated, 0.0) + lsgan_loss(real, 1.0))
            self._update("discriminator", losses["discriminator"])
        self.step += 1
        self._recent.append({name: loss.item() for name, loss in losses.items()})
        self.check_finite(sum(self._recent[-1].values()), f"step {self.step}")

    def _generator_losses(self, photo: Tensor, fake: Tensor, target: Tensor) -> dict[str, Tensor]:
        weights = self.options.weights
        losses: dict[str, Tensor] = {}
        if weights.reconstruction:
            losses["reconstruction"] = reconstruction_loss(fake, target)
        if self._perceptual is not None:
            with self.autocast():
                losses["perceptual"] = self._perceptual(fake, target)
        if self._discriminator is not None:
            self._discriminator.requires_grad_(False)
            with self.autocast():
                generated = self._discriminator(photo, fake)
                with torch.no_grad():
                    real = self._discriminator(photo, target)
            self._discriminator.requires_grad_(True)
            losses["adversarial"] = lsgan_loss(generated, 1.0)
            losses["feature_matching"] = feature_matching_loss(real, generated)
        return losses

    def _update(self, name: str, loss: Tensor) -> None:
        optimiser = self.optimisers[name]
        for group in optimiser.param_groups:
            group["lr"] = self._rate
        optimiser.zero_grad()
        self.accelerator.backward(loss)
        optimiser.step()

    def log(self) -> str:
        """Turn the steps since the last row into one more, and say it."""
        means = {name: sum(row[name] for row in self._recent) / len(self._recent) for name in self._recent[0]}
        self._recent.clear()
        self.history.append({"step": self.step, "seconds": round(self.seconds, 1), "rate": self._rate, **means})
        return " · ".join(f"{name} {mean:.4f}" for name, mean in means.items())

    def swap(self, photos: Tensor) -> Tensor:
        """Swap (N, 3, S, S) photos with the averaged generator, on the CPU."""
        with torch.no_grad():
            return torch.cat([self.average(few.to(self.accelerator.device)).cpu() for few in torch.split(photos, 4)])

    def standing(self) -> dict[str, Any]:
        """Say how many steps were taken, in what time, and the losses."""
        return {"step": self.step, "seconds": self.seconds, "history": self.history}

    def take_up(self, standing: Mapping[str, Any]) -> None:
        """Go on there."""
        self.step, self.seconds, self.history = standing["step"], standing["seconds"], standing["history"]


def rate_factor(progress: float, constant_share: float) -> float:
    """How much of the learning rate is left: all of it for a share of the training, then linearly less down to zero."""
    return min(1.0, (1 - progress) / (1 - constant_share))


def _read_pictures(
    folder: Path, output: Path, options: SwapperOptions, console: Console
) -> tuple[PairImages, PairImages, int]:
    """Decode the pairs to train on, and those to look at: held-out ones if there are any. Count the broken ones."""
    pairs = read_pairs(folder)
    train = [pair for pair in pairs if pair.split == "train"]
    if not train:
        raise DataError(f"'{folder}' holds no pair of the split 'train': make pairs of more photographs")
    holdout = [pair for pair in pairs if pair.split == "holdout"][:HOLDOUT_PAIRS]
    pictures = PairImages(train, options.direction, options.photo_size, output, console)
    held_out = PairImages(holdout, options.direction, options.photo_size, output, console) if holdout else pictures
    for path in {*pictures.broken, *held_out.broken}:
        say(console, f"left out, cannot be read: {path}")
    n_held_out = len(held_out) if holdout else 0
    broken = len(train) + len(holdout) - len(pictures) - n_held_out
    say(console, f"{len(pictures)} pairs to train on, {n_held_out} held out to look at, {broken} left out")
    return pictures, held_out, broken


def _perceptual_loss(options: SwapperOptions, vgg: Path | None, classifier: Path | None) -> PerceptualLoss | None:
    if not options.weights.perceptual:
        return None
    if vgg is not None:
        return PerceptualLoss(VGG19Features.load(vgg))
    if classifier is not None:
        network = load_classifier(classifier).network()
        assert isinstance(network, ResNet18)  # noqa: S101 - for the type checker
        return PerceptualLoss(ClassifierFeatures(network, options.photo_size))
    raise CheckpointError(
        "the perceptual loss needs the weights of VGG19 or of a trained classifier: give one of them, or a weight of 0"
    )
