"""The pix2pixHD `global` generator: a face in −1..1 in, the head's channels out.

The names in its state dict are the published ones: `model.{i}` with the indices of one flat `nn.Sequential`, so that
published checkpoints load without renaming. It knows nothing about uint8, warping or file formats.

Source: Wang et al.: High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs, 2018, appendix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

Head = Literal["image", "warp"]
HEAD_CHANNELS: dict[Head, int] = {"image": 3, "warp": 5}  # warp: displacement x and y, then an RGB residual

IMAGE_SIZE = 512  # side of an aligned face
FIRST_DOWNSAMPLING = 4  # index in the Sequential: 0 pad, 1 convolution, 2 norm, 3 ReLU stand before it
LAYERS_PER_STEP = 3  # convolution, norm, ReLU

MAX_NGF, MAX_DOWNSAMPLINGS, MAX_BLOCKS = 256, 6, 32


@dataclass(frozen=True, kw_only=True)
class Pix2PixHDArchitecture:
    """What distinguishes one generator from another; the defaults are the published one.

    Attributes:
        head: `image` ends in tanh and is the result; `warp` is a displacement field and a colour residual.
        ngf: channels after the first convolution.
        n_downsampling: number of convolutions that halve the size and double the channels.
        n_blocks: number of residual blocks at the smallest size.
        size: side in pixels at which the network works; `image` works at the size of the face.
    """

    head: Head = "image"
    ngf: int = 64
    n_downsampling: int = 4
    n_blocks: int = 9
    size: int = IMAGE_SIZE

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise ValueError(f"head must be one of {get_args(Head)}, not '{self.head}'")
        for name, value, most in (
            ("ngf", self.ngf, MAX_NGF),
            ("n_downsampling", self.n_downsampling, MAX_DOWNSAMPLINGS),
            ("n_blocks", self.n_blocks, MAX_BLOCKS),
        ):
            if not 1 <= value <= most:
                raise ValueError(f"{name} must be 1..{most}, not {value}")
        if self.head == "image" and self.size != IMAGE_SIZE:
            raise ValueError(f"the image head works at {IMAGE_SIZE} pixels, not {self.size}")
        step = 2**self.n_downsampling
        if not 2 * step <= self.size <= IMAGE_SIZE or self.size % step or IMAGE_SIZE % self.size:
            # The residual blocks reflect one pixel, so two must be left; the photo is shrunk by a whole factor.
            raise ValueError(f"size must divide {IMAGE_SIZE} and be a multiple of {step}, at least {2 * step}")

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], *, size: int = IMAGE_SIZE) -> Pix2PixHDArchitecture:
        """Read the architecture off a state dict's shapes; what else they hold is not judged here.

        Raises:
            ValueError: the layers that tell it are missing, or a size is not one of ours.
        """
        blocks = [
            int(found[1])
            for name in shapes
            if (found := re.fullmatch(r"model\.(\d{1,4})\.conv_block\.1\.weight", name))
        ]
        match shapes.get("model.1.weight"):
            case (ngf, 3, 7, 7) if blocks:
                pass
            case other:
                raise ValueError(
                    f"'model.1.weight' should have the shape (ngf, 3, 7, 7), found {other or 'nothing'}, "
                    f"and residual blocks should follow, found {len(blocks)}"
                )
        n_downsampling = (min(blocks) - FIRST_DOWNSAMPLING) // LAYERS_PER_STEP
        last = min(blocks) + len(blocks) + LAYERS_PER_STEP * n_downsampling + 1  # + 1: the padding before it
        channels = (shapes.get(f"model.{last}.weight") or (0,))[0]
        head = next((head for head, wanted in HEAD_CHANNELS.items() if wanted == channels), None)
        if head is None:
            raise ValueError(
                f"'model.{last}.weight' should have 3 (image) or 5 (warp) output channels, found {channels}"
            )
        return cls(head=head, ngf=ngf, n_downsampling=n_downsampling, n_blocks=len(blocks), size=size)


class InstanceNorm(nn.Module):
    """Instance normalisation without weights, always in float32: its sums over a whole image overflow in half."""

    def forward(self, x: Tensor) -> Tensor:
        """Give every channel of (N, C, H, W) zero mean and unit biased variance; eps 1e-5."""
        return nn.functional.instance_norm(x.float(), eps=1e-5).to(x.dtype)


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

    The warp head's last layer starts at zero, so that an untrained one returns the photo as it was.
    """

    def __init__(self, architecture: Pix2PixHDArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        ngf, steps = architecture.ngf, architecture.n_downsampling
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7), InstanceNorm(), nn.ReLU()]
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
        if architecture.head == "warp":
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network.

        Args:
            x: (N, 3, size, size) RGB in −1..1.

        Returns:
            (N, 3, size, size) RGB in −1..1, or (N, 5, size, size) without bounds: displacement x, y and residual RGB.
        """
        y: Tensor = self.model(x)
        return y
