"""Batches of pairs: decoded once into an array on the disk, drawn in a repeatable order, both sides varied the same.

What a step draws depends on the seed and the step alone, so that a resumed training sees what it would have seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from visard_errors import DataError, PhotoError
from visard_preprocess.files import replace_atomically
from visard_preprocess.photo import read_photo
from visard_training.data.augmentation import degrade, flip, relight, turn
from visard_training.pairs.folder import Pair
from visard_training.runs.progress import track
from visard_training.runs.state import generator, writing
from visard_training.swapper.options import Direction


class PairImages:
    """The decoded pictures of some pairs, (n, 2, size, size, 3) uint8 RGB: photo, then swapped.

    Args:
        pairs: what to decode.
        direction: which side is the photo and which the swapped one.
        size: side in pixels; the images are brought there by the mean of the pixels that fall into one.
        cache: an existing folder. The array lies there as a file and is used again for the same pairs.
        console: where progress goes.

    Attributes:
        pictures: the array, mapped from the file.
        digest: of which pairs these are.
        broken: image files that could not be read; their pairs are left out.

    Raises:
        DataError: no pair is left.
        OutputError: the folder cannot be written.
    """

    def __init__(
        self, pairs: Sequence[Pair], direction: Direction, size: int, cache: Path, console: Console | None = None
    ) -> None:
        sides = [(p.female, p.male) if direction == "to_male" else (p.male, p.female) for p in pairs]
        self.digest = _digest(sides, size)
        path = cache / f"pairs_{self.digest}.u8"
        self.broken: list[Path] = []
        if not path.is_file():
            self._decode(sides, size, path, console)
        shape = (2, size, size, 3)
        n = path.stat().st_size // math.prod(shape)
        if not n:
            raise DataError(f"none of {len(pairs)} pairs can be read: make the pairs again")
        self.pictures: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", shape=(n, *shape))

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Give pairs as (N, 2, 3, size, size) float32 in −1..1."""
        return torch.from_numpy(self.pictures[list(indices)]).permute(0, 1, 4, 2, 3).float() / 127.5 - 1

    def _decode(self, sides: Sequence[tuple[Path, Path]], size: int, path: Path, console: Console | None) -> None:
        def write(new: Path) -> None:
            with ThreadPoolExecutor() as pool, new.open("wb") as file:
                decoded = pool.map(lambda pair: _read_pair(pair, size), sides)
                for pictures in track(decoded, "Decoding pairs", len(sides), console):
                    if isinstance(pictures, Path):
                        self.broken.append(pictures)
                    else:
                        file.write(pictures.tobytes())

        with writing(path):
            replace_atomically(path, write)


class Sampler:
    """Says which pairs belong to which step: every epoch a new order, its last incomplete batch left out.

    Args:
        n: how many pairs there are.
        batch_size: pairs in a step, over all processes; lowered to `n` where that is less.
        seed: decides about the order.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.batch_size, self._n, self._seed = min(batch_size, n), n, seed
        self.steps_per_epoch = n // self.batch_size
        self._order: tuple[int, list[int]] = (-1, [])

    def batch(self, step: int) -> list[int]:
        """Give the indices of a step, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, torch.randperm(self._n, generator=generator(self._seed, "order", epoch)).tolist())
        start = position * self.batch_size
        return self._order[1][start : start + self.batch_size]


def vary(pairs: Tensor, seed: int, *position: int, strong: bool) -> Tensor:
    """Mirror pairs at random and, if asked, change place, light, colour and sharpness: photo and swapped alike.

    Args:
        pairs: (N, 2, 3, S, S) float in −1..1.
        seed: decides about everything that is random, together with the position.
        position: such as the step and the process.
        strong: do more than mirroring.

    Returns:
        The same shape and range.
    """
    sides = []
    for side in pairs.unbind(1):
        random = generator(seed, *position)  # begun anew for each side, so that both draw the same
        side = flip(side, random)
        if strong:
            side = degrade(relight(turn((side + 1) / 2, random), random), random) * 2 - 1
        sides.append(side)
    return torch.stack(sides, 1)


def _read_pair(pair: tuple[Path, Path], size: int) -> NDArray[np.uint8] | Path:
    """Read both pictures as (2, size, size, 3), or say which one is broken."""
    pictures = []
    for path in pair:
        try:
            image = Image.fromarray(read_photo(path))
        except PhotoError:
            return path
        pictures.append(np.asarray(image.resize((size, size), Image.Resampling.BOX)))
    both: NDArray[np.uint8] = np.stack(pictures)
    return both


def _digest(sides: Sequence[tuple[Path, Path]], size: int) -> str:
    """Name a decoded array after what it holds; a rewritten image has another time or length."""
    digest = hashlib.sha256(str(size).encode())
    for path in (path for pair in sides for path in pair):
        status = path.stat()
        digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
