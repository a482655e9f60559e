"""Trains a persona generator: from lessons to the checkpoint that both directions are exported from.

    prepared faces, personas ─► lessons ─► trunk (fields, masks) and traits (tone, age, mouth) ─► persona.safetensors

`lessons.py` makes the lessons; `visard_export.persona_graph` puts the parts together for serving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from visard_errors import DataError
from visard_export.networks.architectures import IMAGE_SIZE
from visard_export.networks.atlas import TONES
from visard_export.networks.persona import TRAITS_SIZE, PersonaGenerator, TraitsNetwork
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.persona_graph import PERSONA_SCALE, SURROUNDINGS_SCALE, position_planes
from visard_training.personas.frame import read_atlas
from visard_training.personas.lessons import UNKNOWN, Batch, Lessons, make_lessons
from visard_training.personas.options import SIZE, PersonaTrainingOptions
from visard_training.runs.progress import Progress
from visard_training.runs.run import Run, main_console, save_weights
from visard_training.runs.state import generator

RESULT_FILE = "persona.safetensors"
_TRAITS_BATCHES = 4  # of the trunk's, in one step of the traits, which see many small pictures
_LOG_STEPS = 50
_BETAS = (0.5, 0.99)


def train_persona_generator(
    caches: Sequence[Path],
    personas: Path,
    output: Path,
    options: PersonaTrainingOptions | None = None,
    *,
    tone_caches: Sequence[Path] = (),
    console: Console | None = None,
) -> Path:
    """Train, or resume where an earlier call with the same options and output was interrupted.

    Args:
        caches: prepared faces, see `visard_training.data.faces`; their split `train` is used.
        personas: what `visard train personas` made.
        output: folder of this run.
        options: how to train.
        tone_caches: those of `caches` whose photos are lit well enough to tell the tone of skin; all by default.
        console: where progress goes.

    Returns:
        The checkpoint.

    Raises:
        DataError: a cache or the personas cannot be used, or several processes were started.
        CheckpointError: the state is damaged, or the training diverged.
        OutputError: the folder belongs to a training with other settings or cannot be written, or the disk is full.
    """
    options, console = options or PersonaTrainingOptions(), main_console(console)
    atlas = read_atlas(personas)
    lessons = make_lessons(caches, personas, output, tone_caches=tone_caches or caches, console=console)
    run = _PersonaRun(lessons, output, options, console)
    run.train("traits", options.traits_steps, run.traits_loss)
    run.train("trunk", options.steps, run.trunk_loss)
    network = PersonaGenerator.of(run.trunk.cpu().eval(), run.traits.cpu().eval(), atlas)
    save_weights(output / RESULT_FILE, network.half() if options.half else network, licence=options.licence)
    return output / RESULT_FILE


class _PersonaRun(Run):
    """Both networks, their optimisers, and where they stand."""

    def __init__(self, lessons: Lessons, output: Path, options: PersonaTrainingOptions, console: Console) -> None:
        super().__init__(output, options, {"lessons": lessons.digest}, console)
        if self.accelerator.num_processes > 1:
            raise DataError("a persona generator learns in one process: start it without `accelerate launch`")
        self.lessons, self.options, self.device = lessons, options, self.accelerator.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.trunk = Pix2PixHDGenerator(options.architecture()).to(self.device)
            self.traits = TraitsNetwork().to(self.device)
        self.networks = {"trunk": self.trunk, "traits": self.traits}
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), options.learning_rate, _BETAS)
            for name, network in self.networks.items()
        }
        self.steps = dict.fromkeys(self.networks, 0)
        self.position = position_planes(SIZE).to(self.device)
        known = torch.from_numpy(lessons.traits[:, 0].astype("int64"))
        counts = torch.bincount(known[known != UNKNOWN], minlength=TONES).float().clamp(min=1)
        weights = (counts.sum() / counts) ** 0.5
        self.tone_weights = (weights / weights.mean()).to(self.device)
        self.resume()

    def train(self, name: str, steps: int, loss_of: Callable[[torch.Generator], Tensor]) -> None:
        """Take the steps that are left."""
        optimiser = self.optimisers[name]
        recent: list[float] = []
        with Progress(f"Training {name}", steps, done=self.steps[name], console=self.console) as progress:
            while self.steps[name] < steps:
                done = self.steps[name] / steps
                for group in optimiser.param_groups:
                    group["lr"] = self.options.learning_rate * min(1.0, (1 - done) / 0.6)
                loss = loss_of(generator(self.options.seed, name, self.steps[name]))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                self.steps[name] += 1
                recent = [*recent[1 - _LOG_STEPS :], loss.item()]
                self.check_finite(recent[-1], f"step {self.steps[name]} of the {name}")
                if self.steps[name] % self.options.save_every == 0 or self.steps[name] == steps:
                    self.save()
                progress.advance(f"loss {sum(recent) / len(recent):.4f}")

    def trunk_loss(self, random: torch.Generator) -> Tensor:
        """Distances of fields, and cross entropy of masks."""
        batch = Batch(*(each.to(self.device) for each in self.lessons.batch(self.options.batch_size, random)))
        position = self.position.expand(len(batch.pictures), -1, -1, -1)
        towards = batch.genders.view(-1, 1, 1, 1) * position[:, 1:]
        with self.autocast():
            out = self.trunk(torch.cat([batch.pictures, position, towards], 1)).float()
        fields = functional.avg_pool2d(out[:, :4], 2)
        scale = fields.new_tensor([SURROUNDINGS_SCALE] * 2 + [PERSONA_SCALE] * 2).view(1, 4, 1, 1)
        distance = (fields * scale - batch.fields / IMAGE_SIZE).abs()
        inside = functional.avg_pool2d(batch.masks[:, :1], 2)
        loss: Tensor = 20 * distance[:, :2].mean() + 40 * (distance[:, 2:] * (0.1 + inside)).mean()
        masks = functional.binary_cross_entropy_with_logits(out[:, 4:], batch.masks, reduction="none")
        return loss + masks[:, 0].mean() + 0.5 * masks[:, 1].mean()

    def traits_loss(self, random: torch.Generator) -> Tensor:
        """Cross entropy of those traits that somebody knows; rarer tones count more."""
        size = self.options.batch_size * _TRAITS_BATCHES
        pictures, traits = (x.to(self.device) for x in self.lessons.pictures_and_traits(size, TRAITS_SIZE, random))
        logits = self.traits(pictures)
        loss: Tensor = 0 * logits.sum()
        known = traits != UNKNOWN
        if known[:, 0].any():  # the mean over none is no number
            loss = functional.cross_entropy(
                logits[:, :TONES], traits[:, 0], self.tone_weights, ignore_index=UNKNOWN, label_smoothing=0.05
            )
        for i in (1, 2):
            if (chosen := known[:, i]).any():
                loss = loss + functional.binary_cross_entropy_with_logits(
                    logits[chosen, TONES - 1 + i], traits[chosen, i].float() * 0.96 + 0.02
                )
        return loss

    def standing(self) -> dict[str, Any]:
        """Say how many steps each network has taken."""
        return {"steps": dict(self.steps)}

    def take_up(self, standing: Mapping[str, Any]) -> None:
        """Go on there."""
        self.steps.update(standing["steps"])

    def of_earlier_version(self, state: dict[str, Any]) -> dict[str, Any]:
        """Before, the settings were one line of text."""
        before = {name: value for name, value in self.settings.items() if name != "lessons"}
        if state.get("run") != f"{self.lessons.digest} {sorted(before.items())}":
            return state
        networks = {name: state[name] for name in self.networks}
        optimisers = {name: state[f"{name} optimiser"] for name in self.optimisers}
        return {**state, "settings": self.settings, "networks": networks, "optimisers": optimisers}
