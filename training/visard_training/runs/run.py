"""The base of every training: a folder, networks that learn, a state to resume from, and weights at the end.

A run that is started again with the same settings resumes from its last state. It ends with the same weights as if it
had never stopped.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator, PartialState
from rich.console import Console
from torch import nn

from visard_errors import CheckpointError, DataError
from visard_export.checkpoints import Network, save_checkpoint, sha256_of
from visard_preprocess.files import replace_atomically
from visard_training.runs.progress import say
from visard_training.runs.state import check_settings, load_state, save_state, writing

STATE_FILE = "state.pt"

# They decide when something is written and how, not what is learned: they may change when a run is resumed.
_FREE = ("save_every", "sample_every", "half", "licence")


class RunOptions(Protocol):
    """What the options of every training have; each is a frozen dataclass."""

    @property
    def learning_rate(self) -> float:
        """At its highest."""

    @property
    def mixed_precision(self) -> Literal["no", "bf16"]:
        """`bf16` computes the networks in it; weights and losses stay in float32."""


class Run(ABC):
    """One training.

    A training fills `networks` and `optimisers`, then calls `resume`; on the device of `accelerator` from the first.

    Args:
        output: folder of this run alone, made if missing.
        options: decide about the weights, except for those that say when and how to write.
        inputs: digests of what else decides, such as of the faces; each has a name of its own.
        console: where it says how it goes.

    Attributes:
        accelerator: of this process; training is shared by all processes of `accelerate launch`.
        networks: what the state holds, by name.
        optimisers: likewise.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, output: Path, options: RunOptions, inputs: Mapping[str, str | int], console: Console) -> None:
        # Without `cpu` the processes of a machine without a GPU would not find each other.
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.output, self.console = output, console
        self.networks: dict[str, nn.Module] = {}
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self._learning_rate, self._bf16 = options.learning_rate, options.mixed_precision == "bf16"
        chosen = {name: value for name, value in asdict(cast("Any", options)).items() if name not in _FREE}
        self.settings: dict[str, Any] = {**json.loads(json.dumps(chosen, default=str)), **inputs}
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def standing(self) -> dict[str, Any]:
        """Say what the next step depends on besides networks and optimisers; called in every process."""

    @abstractmethod
    def take_up(self, standing: Mapping[str, Any]) -> None:
        """Take up what `standing` said."""

    def resume(self) -> bool:
        """Go on from the state in the folder; False where there is none.

        Raises:
            OutputError: the folder belongs to a training with other settings.
            CheckpointError: the state is damaged.
        """
        path = self.output / STATE_FILE
        state = load_state(path)
        if state is None:
            return False
        try:
            state = self.of_earlier_version(state)
            check_settings(self.output, state["settings"], self.settings)
            for name, network in self.networks.items():
                network.load_state_dict(state["networks"][name])
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(state["optimisers"][name])
            self.take_up(state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"'{path}' is not a state of this training ({error}): remove it") from error
        return True

    def of_earlier_version(self, state: dict[str, Any]) -> dict[str, Any]:
        """Bring a state that an earlier version wrote into today's form."""
        return state

    def save(self) -> None:
        """Write the state; every process calls it.

        Raises:
            OutputError: it cannot be written; the last one is whole.
        """
        standing = self.standing()
        if self.accelerator.is_main_process:
            state = {
                "settings": self.settings,
                "networks": {name: network.state_dict() for name, network in self.networks.items()},
                "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            }
            save_state(self.output / STATE_FILE, {**state, **standing})
        self.accelerator.wait_for_everyone()

    def autocast(self) -> torch.autocast:
        """In it networks compute in the precision of the options."""
        # Not accelerate's own: that is one setting for the whole process, and a test or a notebook trains twice.
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self._bf16)

    def check_shares(self, batch_size: int) -> None:
        """Refuse a batch, which is that of all processes together, where they cannot have equal shares of it.

        Raises:
            DataError: they cannot.
        """
        if batch_size % self.accelerator.num_processes:
            raise DataError(
                f"a batch of {batch_size} cannot be shared by {self.accelerator.num_processes} processes alike: choose "
                "a multiple"
            )

    def check_finite(self, loss: float, where: str) -> None:
        """Stop a training that diverged.

        Raises:
            CheckpointError: the loss is no number any more.
        """
        if not math.isfinite(loss):
            raise CheckpointError(
                f"the training diverged in {where}: start anew in another folder with a lower learning rate than "
                f"{self._learning_rate}"
            )

    def say(self, line: str) -> None:
        """Tell a line."""
        say(self.console, line)


def main_process_first() -> AbstractContextManager[None]:
    """Let the other processes of `accelerate launch`, if there are any, wait until the first one is through."""
    return cast("AbstractContextManager[None]", _process().main_process_first())


def main_console(console: Console | None) -> Console:
    """Where to say how it goes: as given, or standard error of the first process alone."""
    return console or Console(stderr=True, quiet=not _process().is_main_process)


def _process() -> PartialState:
    return PartialState(cpu=not torch.accelerator.is_available())


def digest_of(path: Path | None) -> str:
    """Name a file after its content, empty where there is none: the code that reads it reports that."""
    return sha256_of(path) if path is not None and path.is_file() else ""


def save_weights(path: Path, network: Network, *, licence: str) -> None:
    """Write trained weights as safetensors, whole or not at all.

    Raises:
        OutputError: they cannot be written; an older file is whole.
    """
    with writing(path):
        replace_atomically(path, lambda new: save_checkpoint(new, network, trained=True, licence=licence))
