"""The generator while it is trained and when it is done: differentiable swapping, first weights, export.

It knows nothing about losses, data or the order of a training.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from visard_errors import CheckpointError
from visard_export.checkpoints import load_generator, save_checkpoint
from visard_export.graphs import apply_warp, sampling_grid
from visard_export.networks.pix2pixhd import Pix2PixHDArchitecture, Pix2PixHDGenerator, ResidualBlock
from visard_training.state import replace_atomically


class Swapped(NamedTuple):
    """What a generator makes of photos.

    Attributes:
        picture: (N, 3, S, S) float32 RGB.
        residual: (N, 3, s, s) float32, the colours that a warp head adds; None of an image head.
    """

    picture: Tensor
    residual: Tensor | None


class SwapModel(nn.Module):
    """The generator as it is trained: photo in, swapped photo out, both in −1..1, differentiable."""

    grid: Tensor

    def __init__(self, network: Pix2PixHDGenerator, photo_size: int, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.network = network
        self._gradient_checkpointing = gradient_checkpointing
        self.register_buffer("grid", sampling_grid(photo_size), persistent=False)

    def forward(self, photo: Tensor) -> Swapped:
        """Swap (N, 3, S, S) RGB in −1..1; the warp head's result is not clamped."""
        if self.network.architecture.head == "image":
            return Swapped(self._trunk(photo).float(), None)
        factor = photo.shape[-1] // self.network.architecture.size
        output = self._trunk(functional.avg_pool2d(photo, factor) if factor > 1 else photo).float()
        with torch.autocast(photo.device.type, enabled=False):  # in half, a displacement would be off by whole pixels
            return Swapped(apply_warp(photo, output, self.grid, unit=1), output[:, 2:])

    def _trunk(self, x: Tensor) -> Tensor:
        for layer in self.network.model:
            if self._gradient_checkpointing and self.training and isinstance(layer, ResidualBlock):
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return x


def initial_network(initial: Path | None, architecture: Pix2PixHDArchitecture) -> Pix2PixHDGenerator:
    """Build the generator that a training starts from: random, or of a file whose working size may be another one.

    Raises:
        CheckpointError: the file cannot be used or holds another architecture.
    """
    if initial is None:
        return Pix2PixHDGenerator(architecture)
    network = load_generator(initial).network()
    assert isinstance(network, Pix2PixHDGenerator)  # noqa: S101 - for the type checker
    if replace(network.architecture, size=architecture.size) != architecture:
        raise CheckpointError(f"'{initial}' is {network.architecture}, not {architecture}: give the same sizes")
    network.architecture = architecture
    return network.train()


def amplified(network: Pix2PixHDGenerator, factor: float) -> Pix2PixHDGenerator:
    """Give a copy of a warp-head generator whose displacement and residual are `factor` times as large.

    Both are linear in the last layer, which is scaled. Generators fall short of the effect that they were taught.

    Raises:
        ValueError: the network has an image head, whose effect is not linear in any layer.
    """
    if network.architecture.head != "warp":
        raise ValueError("only a warp head can be amplified")
    network = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in network.model[-1].parameters():
            parameter.mul_(factor)
    return network


def export_generator(
    path: Path, network: Pix2PixHDGenerator, *, licence: str, amplification: float = 1.0, half: bool = False
) -> None:
    """Write a trained generator as safetensors and, with an image head, also as `{stem}_net_G.pth` beside it.

    The published layout has no room for a warp head's working size, so that head is written as safetensors alone.

    Args:
        path: of the safetensors file; its folder must exist.
        network: is left as it is.
        licence: of the weights.
        amplification: how many times the learned effect is written, see `amplified`.
        half: write half precision, at half the size.

    Raises:
        CheckpointError: a file cannot be written; an older one is untouched.
    """
    network = amplified(network, amplification) if amplification != 1 else copy.deepcopy(network)
    network = (network.half() if half else network).cpu()
    try:
        replace_atomically(path, lambda new: save_checkpoint(new, network, trained=True, licence=licence))
        if network.architecture.head == "image":
            published = path.with_name(f"{path.stem}_net_G.pth")
            replace_atomically(published, lambda new: torch.save(network.state_dict(), new))
    except OSError as error:
        raise CheckpointError(f"cannot write '{path}' ({error.strerror}): make room, then run it again") from error
