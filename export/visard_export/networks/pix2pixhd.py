"""The pix2pixHD `global` generator: a face in −1..1 in, the head's channels out.

The names in its state dict are the published ones: `model.{i}` with the indices of one flat `nn.Sequential`, so that
published checkpoints load without renaming. It knows nothing about uint8, personas' pictures or file formats.

Source: Wang et al.: High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs, 2018, appendix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

Head = Literal["image", "persona"]
# Channels in: RGB; for a persona also where each pixel lies (x, y) and the direction.
# Channels out: RGB; or where the surroundings come from (x, y), where in the personas' frame each pixel lies (x, y),
# and logits of being face and of being bare skin.
INPUT_CHANNELS: dict[Head, int] = {"image": 3, "persona": 6}
HEAD_CHANNELS: dict[Head, int] = {"image": 3, "persona": 6}

IMAGE_SIZE = 512  # side of an aligned face
FIRST_DOWNSAMPLING = 4  # index in the Sequential: 0 pad, 1 convolution, 2 norm, 3 ReLU stand before it
LAYERS_PER_STEP = 3  # convolution, norm, ReLU

MAX_NGF, MAX_DOWNSAMPLINGS, MAX_BLOCKS = 256, 6, 32


@dataclass(frozen=True, kw_only=True)
class Pix2PixHDArchitecture:
    """What distinguishes one generator from another; the defaults are the published one.

    Attributes:
        head: `image` ends in tanh and is the result; `persona` are fields and masks, see `HEAD_CHANNELS`.
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
            case (ngf, 3 | 6, 7, 7) if blocks:
                head: Head = "image" if shapes["model.1.weight"][1] == INPUT_CHANNELS["image"] else "persona"
            case other:
                raise ValueError(
                    f"'model.1.weight' should have the shape (ngf, 3, 7, 7) or (ngf, 6, 7, 7), found "
                    f"{other or 'nothing'}, and residual blocks should follow, found {len(blocks)}"
                )
        n_downsampling = (min(blocks) - FIRST_DOWNSAMPLING) // LAYERS_PER_STEP
        last = min(blocks) + len(blocks) + LAYERS_PER_STEP * n_downsampling + 1  # + 1: the padding before it
        channels = (shapes.get(f"model.{last}.weight") or (0,))[0]
        if channels != HEAD_CHANNELS[head]:
            raise ValueError(
                f"'model.{last}.weight' should have {HEAD_CHANNELS[head]} output channels ({head}), found {channels}"
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
