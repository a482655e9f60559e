"""The pix2pixHD `global` generator: a face in −1..1 in, the head's channels out.

The names in its state dict are the published ones: `model.{i}` with the indices of one flat `nn.Sequential`, so that
published checkpoints load without renaming. `visard_export.graphs` converts from and to uint8.

Source: Wang et al.: High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs, 2018, appendix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visard_export.networks.architectures import HEAD_CHANNELS, INPUT_CHANNELS, Pix2PixHDArchitecture


class InstanceNorm(nn.Module):
    """Instance normalisation without weights; its sums over a whole image, which overflow in half, are in float32.

    In half, where reading and writing twice the bytes would cost more than the arithmetic, it is a layer norm over each
    channel's pixels: the same formula, and ONNX promises float32 statistics for that operator alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Give every channel of (N, C, H, W) zero mean and unit biased variance; eps 1e-5."""
        if x.dtype == torch.float16:
            y = nn.functional.layer_norm(x, x.shape[2:], eps=1e-5)
        else:
            y = nn.functional.instance_norm(x.float(), eps=1e-5)
        return y.to(x.dtype)  # autocast gives float32


class ResidualBlock(nn.Module):
    """Two reflected 3×3 convolutions beside the identity, with no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            InstanceNorm(),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            InstanceNorm(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        y: Tensor = x + self.conv_block(x)
        return y


class Pix2PixHDGenerator(nn.Module):
    """The global generator; 182,443,267 parameters in 56 tensors at the defaults.

    The persona head's last layer starts at zero: an untrained one moves nothing.
    """

    def __init__(self, architecture: Pix2PixHDArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        ngf, steps = architecture.ngf, architecture.n_downsampling
        first = nn.Conv2d(INPUT_CHANNELS[architecture.head], ngf, 7)
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), first, InstanceNorm(), nn.ReLU()]
        for step in range(steps):
            channels = ngf * 2**step
            layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1), InstanceNorm(), nn.ReLU()]
        layers += [ResidualBlock(ngf * 2**steps) for _ in range(architecture.n_blocks)]
        for step in reversed(range(steps)):
            channels = ngf * 2**step
            layers += [nn.ConvTranspose2d(2 * channels, channels, 3, 2, 1, 1), InstanceNorm(), nn.ReLU()]
        last = nn.Conv2d(ngf, HEAD_CHANNELS[architecture.head], 7)
        layers += [nn.ReflectionPad2d(3), last]
        if architecture.head == "image":
            layers.append(nn.Tanh())
        self.model = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.normal_(module.weight, 0.0, 0.02)  # as published
        if architecture.head == "persona":
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: (N, 3, size, size) RGB in −1..1, or the persona head's (N, 6, size, size); see `INPUT_CHANNELS`.

        Returns:
            (N, 3, size, size) RGB in −1..1, or (N, 6, size, size) without bounds; see `HEAD_CHANNELS`.
        """
        y: Tensor = self.model(x)
        return y
