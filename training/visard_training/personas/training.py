"""Trains a persona generator: from lessons to the checkpoint that both directions are exported from.

    prepared faces, personas ─► lessons ─► trunk (fields, masks) and traits (tone, age, mouth) ─► persona.safetensors

It knows nothing about how lessons are made, nor about how the parts are put together when served.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from visard_errors import CheckpointError
from visard_export.checkpoints import save_checkpoint
from visard_export.networks.persona import TONES, TRAITS_SIZE, PersonaGenerator, TraitsNetwork
from visard_export.networks.pix2pixhd import IMAGE_SIZE, Pix2PixHDArchitecture, Pix2PixHDGenerator
from visard_export.persona_graph import PERSONA_SCALE, SURROUNDINGS_SCALE, position_planes
from visard_preprocess.files import replace_atomically
from visard_training.personas.frame import read_atlas
from visard_training.personas.lessons import UNKNOWN, Batch, Lessons, make_lessons
from visard_training.runs.state import generator, load_state, save_state

STATE_FILE, RESULT_FILE = "state.pt", "persona.safetensors"
SIZE = 128  # side at which the trunk works
_TRAITS_BATCHES = 4  # of the trunk's, in one step of the traits, which see many small pictures
_LOG_STEPS = 50
_BETAS = (0.5, 0.99)


@dataclass(frozen=True, kw_only=True)
class PersonaTrainingOptions:
    """How to train; a training that is resumed must be given the same.

    Attributes:
        steps: of the trunk.
        traits_steps: of the traits.
        batch_size: lessons of one step.
        learning_rate: at its highest; it falls linearly to zero after two fifths of the steps.
        ngf: channels of the trunk's first layer.
        n_downsampling: how often the trunk halves the size.
        n_blocks: its residual blocks.
        mixed_precision: `bf16` computes the trunk in it where the processor is faster so; weights and losses stay in
            float32.
        save_every: steps between two states on the disk.
        half: write the weights in half precision.
        licence: of the weights, as an SPDX identifier: what the faces allow.
        seed: decides weights and batches.
    """

    steps: int = 9000
    traits_steps: int = 3000
    batch_size: int = 8
    learning_rate: float = 1.5e-3
    ngf: int = 16
    n_downsampling: int = 3
    n_blocks: int = 5
    mixed_precision: Literal["no", "bf16"] = "no"
    save_every: int = 500
    half: bool = False
    licence: str = "LicenseRef-Unknown"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name in ("steps", "traits_steps", "batch_size", "save_every", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        self.architecture()

    def architecture(self) -> Pix2PixHDArchitecture:
        """The trunk's."""
        return Pix2PixHDArchitecture(
            head="persona", ngf=self.ngf, n_downsampling=self.n_downsampling, n_blocks=self.n_blocks, size=SIZE
        )


def train_persona_generator(
    caches: Sequence[Path],
    personas: Path,
    output: Path,
    options: PersonaTrainingOptions | None = None,
    *,
    tone_caches: Sequence[Path] = (),
    console: Console | None = None,
) -> Path:
    """Train, or go on where an earlier call with the same options and output was interrupted.

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
        DataError: a cache or the personas cannot be used.
        CheckpointError: the state belongs to another training, or a file cannot be written.
    """
    options, console = options or PersonaTrainingOptions(), console or Console(stderr=True)
    output.mkdir(parents=True, exist_ok=True)
    atlas = read_atlas(personas)
    lessons = make_lessons(caches, personas, output, tone_caches=tone_caches or caches, console=console)
    run = _Run(lessons, output, options, console)
    run.train("traits", options.traits_steps, run.traits_loss)
    run.train("trunk", options.steps, run.trunk_loss)
    network = PersonaGenerator.of(run.networks["trunk"].cpu().eval(), run.networks["traits"].cpu().eval(), atlas)
    network = network.half() if options.half else network
    path = output / RESULT_FILE
    try:
        replace_atomically(path, lambda new: save_checkpoint(new, network, trained=True, licence=options.licence))
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}' ({error.strerror}): make room, then run it again") from error
    return path


class _Run:
    """Both networks, their optimisers, and where they stand."""

    def __init__(self, lessons: Lessons, output: Path, options: PersonaTrainingOptions, console: Console) -> None:
        self.lessons, self.path, self.options, self.console = lessons, output / STATE_FILE, options, console
        self.device = torch.accelerator.current_accelerator() or torch.device("cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            networks = {"trunk": Pix2PixHDGenerator(options.architecture()), "traits": TraitsNetwork()}
        self.networks: dict[str, Any] = {name: network.to(self.device) for name, network in networks.items()}
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
        self._resume()

    def train(self, name: str, steps: int, loss_of: Any) -> None:
        """Take the steps that are left."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(f"Training {name}", total=steps, completed=self.steps[name], loss="")
            optimiser = self.optimisers[name]
            recent: list[float] = []
            while self.steps[name] < steps:
                done = self.steps[name] / steps
                for group in optimiser.param_groups:
                    group["lr"] = self.options.learning_rate * min(1.0, (1 - done) / 0.6)
                loss = loss_of(generator(self.options.seed, name, self.steps[name]))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                recent.append(loss.item())
                self.steps[name] += 1
                if self.steps[name] % _LOG_STEPS == 0:
                    mean = sum(recent[-_LOG_STEPS:]) / min(len(recent), _LOG_STEPS)
                    if mean != mean:
                        raise CheckpointError("the training diverged: start anew with a lower learning rate")
                    progress.update(task, completed=self.steps[name], loss=f"loss {mean:.4f}")
                    if not self.console.is_terminal and self.steps[name] % (10 * _LOG_STEPS) == 0:
                        self.console.print(f"{time.strftime('%H:%M:%S')} {name} {self.steps[name]}/{steps} {mean:.4f}")
                if self.steps[name] % self.options.save_every == 0 or self.steps[name] == steps:
                    self._save()

    def trunk_loss(self, random: torch.Generator) -> Tensor:
        """Distances of fields, and cross entropy of masks."""
        batch = Batch(*(each.to(self.device) for each in self.lessons.batch(self.options.batch_size, random)))
        position = self.position.expand(len(batch.pictures), -1, -1, -1)
        towards = batch.genders.view(-1, 1, 1, 1) * position[:, 1:]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.mixed_precision == "bf16"):
            out = self.networks["trunk"](torch.cat([batch.pictures, position, towards], 1)).float()
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
        logits = self.networks["traits"](pictures)
        loss = functional.cross_entropy(
            logits[:, :TONES], traits[:, 0], self.tone_weights, ignore_index=UNKNOWN, label_smoothing=0.05
        )
        for i in (0, 1):
            chosen = traits[:, 1 + i] != UNKNOWN
            loss = loss + functional.binary_cross_entropy_with_logits(
                logits[chosen, TONES + i], traits[chosen, 1 + i].float() * 0.96 + 0.02
            )
        return loss

    def _identity(self) -> str:
        options = {
            key: value for key, value in asdict(self.options).items() if key not in ("save_every", "half", "licence")
        }
        return f"{self.lessons.digest} {sorted(options.items())}"

    def _save(self) -> None:
        state: dict[str, Any] = {"run": self._identity(), "steps": dict(self.steps)}
        for name, network in self.networks.items():
            state[name] = network.state_dict()
            state[f"{name} optimiser"] = self.optimisers[name].state_dict()
        save_state(self.path, state)

    def _resume(self) -> None:
        state = load_state(self.path)
        if state is None:
            return
        if state.get("run") != self._identity():
            raise CheckpointError(
                f"'{self.path}' belongs to a training with other options or faces: give the same ones, or another "
                "folder"
            )
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
            self.optimisers[name].load_state_dict(state[f"{name} optimiser"])
        self.steps.update(state["steps"])
