"""The StyleGAN2 generator in inference form: z → w by the mapping network, w → a picture by the synthesis network.

Plain torch operations in float32, with the noise inputs fixed, so that one w always gives one picture. The names in
its state dict are those of NVIDIA's published networks.

Source: Karras, Laine, Aittala, Hellsten, Lehtinen, Aila: Analyzing and Improving the Image Quality of StyleGAN, 2020
(arXiv 1912.04958): weight demodulation in section 2.2, skip generator in section 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

FIRST_RESOLUTION, MAX_BLOCKS = 4, 10  # up to 2048²
MAPPING_LEARNING_RATE = 0.01  # relative to the other layers; stored weights are divided by it
BLUR = (1.0, 3.0, 3.0, 1.0)  # per axis, before normalisation
_GAIN = math.sqrt(2)  # restores the variance that the leaky ReLU takes
_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Architecture:
    """What distinguishes one StyleGAN2 generator from another.

    Attributes:
        mapping: widths of the mapping network from z to w; nine numbers for the published eight layers.
        channels: of every block, from 4×4 to the full resolution.
        clamp: bound of every layer's output; None in networks that were trained in float32.
    """

    mapping: tuple[int, ...]
    channels: tuple[int, ...]
    clamp: float | None = None

    def __post_init__(self) -> None:
        if len(self.mapping) < 2 or not 1 <= len(self.channels) <= MAX_BLOCKS:
            raise ValueError(f"it has {len(self.mapping) - 1} mapping layers and {len(self.channels)} blocks")
        if not min(self.mapping + self.channels) > 0:
            raise ValueError("a layer has no channels")
        if self.clamp is not None and not self.clamp > 0:
            raise ValueError(f"its outputs are clamped to ±{self.clamp}")

    @property
    def resolution(self) -> int:
        """Edge of the picture in pixels."""
        return FIRST_RESOLUTION << (len(self.channels) - 1)

    @property
    def n_ws(self) -> int:
        """How many copies of w the synthesis network takes: one per convolution and one for the last RGB layer."""
        return 2 * len(self.channels)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], *, clamp: float | None = None) -> StyleGAN2Architecture:
        """Read the architecture off a state dict's shapes; what else they hold is not judged here.

        Raises:
            ValueError: the mapping network or the blocks are missing, or have gaps.
        """
        layers = [shapes.get(f"mapping.fc{i}.weight", ()) for i in range(_count(shapes, r"mapping\.fc\d+\.weight"))]
        blocks = _count(shapes, r"synthesis\.b\d+\.conv1\.weight")
        convolutions = [shapes.get(f"synthesis.b{FIRST_RESOLUTION << i}.conv1.weight", ()) for i in range(blocks)]
        if not layers or not all(len(shape) == 2 for shape in layers):
            raise ValueError("'mapping.fc0.weight', 'mapping.fc1.weight'… are missing or have gaps")
        if not convolutions or not all(len(shape) == 4 for shape in convolutions):
            raise ValueError("'synthesis.b4.conv1.weight', 'synthesis.b8.conv1.weight'… are missing or have gaps")
        return cls(
            mapping=(layers[0][1], *(shape[0] for shape in layers)),
            channels=tuple(shape[0] for shape in convolutions),
            clamp=clamp,
        )


class StyleGAN2Generator(nn.Module):
    """Mapping and synthesis; at FFHQ's 1024² (config-f) 30,370,060 parameters and 18 w."""

    def __init__(self, architecture: StyleGAN2Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.mapping = MappingNetwork(architecture.mapping)
        self.synthesis = SynthesisNetwork(architecture)


class MappingNetwork(nn.Module):
    """z → w, drawn towards the mean w on request."""

    w_avg: Tensor

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.n_layers = len(widths) - 1
        for i, (width_in, width) in enumerate(pairwise(widths)):
            self.add_module(f"fc{i}", EqualisedLinear(width_in, width, MAPPING_LEARNING_RATE))
        self.register_buffer("w_avg", torch.zeros(widths[-1]))

    def forward(self, z: Tensor, psi: float = 1.0) -> Tensor:
        """Map (N, z_dim) to (N, w_dim).

        Args:
            z: standard normal.
            psi: truncation: 1 keeps w, 0 gives the mean face; less variety for fewer broken pictures.
        """
        x = z * (z.square().mean(1, keepdim=True) + _EPSILON).rsqrt()
        for i in range(self.n_layers):
            x = functional.leaky_relu(self.get_submodule(f"fc{i}")(x), 0.2) * _GAIN
        return torch.lerp(self.w_avg, x, psi)


class SynthesisNetwork(nn.Module):
    """w → picture: blocks of doubling resolution, whose RGB outputs are summed up."""

    def __init__(self, architecture: StyleGAN2Architecture) -> None:
        super().__init__()
        self.n_ws, w_dim, clamp = architecture.n_ws, architecture.mapping[-1], architecture.clamp
        self.resolutions = [FIRST_RESOLUTION << i for i in range(len(architecture.channels))]
        channels_in = 0
        for resolution, channels in zip(self.resolutions, architecture.channels, strict=True):
            block = SynthesisBlock(channels_in, channels, w_dim, resolution, clamp)
            self.add_module(f"b{resolution}", block)
            channels_in = channels

    def forward(self, ws: Tensor) -> Tensor:
        """Render.

        Args:
            ws: (N, n_ws, w_dim): one w per layer; the same w in each gives an ordinary sample.

        Returns:
            (N, 3, resolution, resolution) RGB, about −1..1, not clamped.
        """
        if ws.shape[1] != self.n_ws:
            raise ValueError(f"the network takes {self.n_ws} w per picture, not {ws.shape[1]}")
        x: Tensor | None = None
        picture: Tensor | None = None
        layer = 0
        for resolution in self.resolutions:
            block = self.get_submodule(f"b{resolution}")
            x, picture = block(x, picture, ws[:, layer:])
            layer += 1 if resolution == FIRST_RESOLUTION else 2
        assert picture is not None  # noqa: S101 - there is at least one block
        return picture


class SynthesisBlock(nn.Module):
    """One resolution: an up-sampling and a plain convolution, and the picture so far, enlarged and added to."""

    def __init__(self, channels_in: int, channels: int, w_dim: int, resolution: int, clamp: float | None) -> None:
        super().__init__()
        if resolution == FIRST_RESOLUTION:
            self.const = nn.Parameter(torch.randn(channels, resolution, resolution))
        else:
            self.conv0 = StyledConvolution(channels_in, channels, w_dim, resolution, clamp, up=True)
        self.conv1 = StyledConvolution(channels, channels, w_dim, resolution, clamp)
        self.torgb = ToRGB(channels, w_dim, clamp)

    def forward(self, x: Tensor | None, picture: Tensor | None, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Give the block's features and picture; the RGB layer shares its w with the next block's first layer."""
        if x is None or picture is None:
            x = self.conv1(self.const.expand(len(ws), -1, -1, -1), ws[:, 0])
            return x, self.torgb(x, ws[:, 1])
        x = self.conv1(self.conv0(x, ws[:, 0]), ws[:, 1])
        return x, upsample(picture) + self.torgb(x, ws[:, 2])


class StyledConvolution(nn.Module):
    """3×3 convolution modulated by w, then noise, bias, leaky ReLU."""

    noise_const: Tensor

    def __init__(
        self, channels_in: int, channels: int, w_dim: int, resolution: int, clamp: float | None, *, up: bool = False
    ) -> None:
        super().__init__()
        self.up, self.clamp = up, clamp
        self.weight = nn.Parameter(torch.randn(channels, channels_in, 3, 3))
        self.affine = EqualisedLinear(w_dim, channels_in, bias=1.0)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H, W), twice as large where it up-samples."""
        x = modulated_convolution(x, self.weight, self.affine(w), up=self.up)
        x = x + self.noise_const * self.noise_strength + self.bias.view(-1, 1, 1)
        return _clamped(functional.leaky_relu(x, 0.2) * _GAIN, self.clamp)


class ToRGB(nn.Module):
    """1×1 convolution to RGB, modulated by w but not demodulated."""

    def __init__(self, channels: int, w_dim: int, clamp: float | None) -> None:
        super().__init__()
        self.clamp = clamp
        self.weight = nn.Parameter(torch.randn(3, channels, 1, 1))
        self.affine = EqualisedLinear(w_dim, channels, bias=1.0)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, 3, H, W)."""
        styles = self.affine(w) / math.sqrt(x.shape[1])
        x = functional.conv2d(x * styles[:, :, None, None], self.weight)
        return _clamped(x + self.bias.view(-1, 1, 1), self.clamp)


class EqualisedLinear(nn.Module):
    """Linear layer whose stored weights have unit variance: they are scaled down when it runs."""

    def __init__(self, width_in: int, width: int, learning_rate: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.weight = nn.Parameter(torch.randn(width, width_in) / learning_rate)
        self.bias = nn.Parameter(torch.full((width,), bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width_in) to (N, width)."""
        scale = self.learning_rate / math.sqrt(x.shape[1])
        return functional.linear(x, self.weight * scale, self.bias * self.learning_rate)


def modulated_convolution(x: Tensor, weight: Tensor, styles: Tensor, *, up: bool) -> Tensor:
    """Convolve each picture with its own weights: input channels scaled by its styles, output channels to unit norm.

    Scaling the features before and after one shared convolution is the same as scaling the weights.

    Args:
        x: (N, I, H, W).
        weight: (O, I, 3, 3).
        styles: (N, I).
        up: double the size on the way, by a transposed convolution and a blur.

    Returns:
        (N, O, H, W) or (N, O, 2H, 2W).
    """
    norm = (styles.square() @ weight.square().sum((2, 3)).T + _EPSILON).rsqrt()  # (N, O), equation 3 of the paper
    x = x * styles[:, :, None, None]
    if up:
        x = functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # 2H + 1
        x = functional.conv2d(x, _blur_kernel(x), padding=1, groups=x.shape[1])
    else:
        x = functional.conv2d(x, weight, padding=1)
    return x * norm[:, :, None, None]


def upsample(picture: Tensor) -> Tensor:
    """Double the size of (N, C, H, W) by inserting zeros and blurring."""
    return functional.conv_transpose2d(picture, _blur_kernel(picture), stride=2, padding=1, groups=picture.shape[1])


def _blur_kernel(x: Tensor) -> Tensor:
    """(C, 1, 4, 4) for a depthwise convolution of x; its sum of 4 makes up for the zeros of up-sampling."""
    axis = torch.tensor(BLUR, dtype=x.dtype, device=x.device)
    axis = axis * (2 / axis.sum())
    return torch.outer(axis, axis).expand(x.shape[1], 1, -1, -1)


def _clamped(x: Tensor, clamp: float | None) -> Tensor:
    return x if clamp is None else x.clamp(-clamp, clamp)


def _count(names: Mapping[str, object], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)
