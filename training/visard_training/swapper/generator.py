"""The generator while it is trained and when it is done: differentiable swapping, first weights, export."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visard_errors import CheckpointError
from visard_export.checkpoints import load_generator
from visard_export.networks.architectures import Pix2PixHDArchitecture
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator, ResidualBlock
from visard_preprocess.files import replace_atomically
from visard_training.runs.run import save_weights
from visard_training.runs.state import writing


class SwapModel(nn.Module):
    """The generator as it is trained: photo in, swapped photo out, both (N, 3, S, S) RGB in −1..1.

    Args:
        network: with an image head.
        gradient_checkpointing: while training, compute the residual blocks twice instead of keeping what they compute.
    """

    def __init__(self, network: Pix2PixHDGenerator, *, gradient_checkpointing: bool) -> None:
        super().__init__()
        self.network = network
        self._gradient_checkpointing = gradient_checkpointing

    def forward(self, photo: Tensor) -> Tensor:
        """Swap photos; the result is float32 also under autocast."""
        x = photo
        for layer in self.network.model:
            if self._gradient_checkpointing and self.training and isinstance(layer, ResidualBlock):
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return x.float()


def initial_network(initial: Path | None, architecture: Pix2PixHDArchitecture) -> Pix2PixHDGenerator:
    """Build the generator that a training starts from: random, or of a file.

    Raises:
        CheckpointError: the file cannot be used or holds another architecture.
    """
    if initial is None:
        return Pix2PixHDGenerator(architecture)
    network = load_generator(initial).network()
    assert isinstance(network, Pix2PixHDGenerator)  # noqa: S101 - for the type checker
    if network.architecture != architecture:
        raise CheckpointError(f"'{initial}' is {network.architecture}, not {architecture}: give the same sizes")
    return network.train()


def export_generator(path: Path, network: Pix2PixHDGenerator, *, licence: str, half: bool = False) -> None:
    """Write a trained generator as safetensors and, in the published layout, as `{stem}_net_G.pth` beside it.

    Args:
        path: of the safetensors file; its folder must exist.
        network: is left as it is.
        licence: of the weights.
        half: write half precision, at half the size.

    Raises:
        OutputError: a file cannot be written; an older one is untouched.
    """
    network = copy.deepcopy(network)
    network = (network.half() if half else network).cpu()
    save_weights(path, network, licence=licence)
    published = path.with_name(f"{path.stem}_net_G.pth")
    with writing(published):
        replace_atomically(published, lambda new: torch.save(network.state_dict(), new))
