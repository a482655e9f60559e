"""Training state on disk: written whole or not at all, read without executing anything.

A training that is killed at any moment finds its last complete state here. Randomness needs no place in it: `generator`
derives the random numbers of every step from the seed and the step's number, so a resumed run draws what an
uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from visard_errors import CheckpointError, OutputError
from visard_preprocess.files import write_atomically

if TYPE_CHECKING:
    import torch


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context that writes to a path.

    Raises:
        OutputError: it cannot be written, the disk is full for instance.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"cannot write '{path}' ({reason}): make room and start again, it goes on where it was; or choose another "
            "folder"
        ) from error


def check_settings(folder: Path, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume in a folder with other settings than it was begun with.

    Raises:
        OutputError: some differ; they are named.
    """
    if changed := sorted(name for name in begun.keys() | now.keys() if begun.get(name) != now.get(name)):
        raise OutputError(
            f"'{folder}' was begun with other settings ({', '.join(changed)}): repeat them to go on, or choose another "
            "folder"
        )


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, and lists and dicts of them.

    Raises:
        OutputError: it cannot be written, the disk is full for instance; the older file is untouched.
    """
    import torch

    buffer = BytesIO()
    torch.save(state, buffer)
    with writing(path):
        write_atomically(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote, onto the CPU; None where there is no such file. Nothing in it is executed.

    Raises:
        CheckpointError: the file is damaged, or holds more than `save_state` writes.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # a hostile file may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(f"'{path}' is not a training state ({reason}): remove it to start anew") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"'{path}' is not a training state: remove it to start anew")
    return state


def generator(seed: int, *position: int | str) -> torch.Generator:
    """Random numbers of their own for one place in the training, such as an epoch or a step of one process."""
    import torch

    digest = hashlib.sha256(repr((seed, *position)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
