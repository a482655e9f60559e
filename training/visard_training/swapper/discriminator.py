"""The multi-scale patch discriminator of pix2pixHD: tells real pairs (photo, swapped) from generated ones, in patches.

Each scale sees the same pair at half the size of the one before.

Source: Wang et al.: High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs, 2018, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from visard_export.networks.pix2pixhd import InstanceNorm
from visard_training.swapper.options import DiscriminatorArchitecture

PAIR_CHANNELS = 6  # photo and swapped, RGB each
MAX_CHANNELS = 512
LEAK = 0.2

Features = list[Tensor]  # of one scale: after every layer, the last is the score of every patch


class PatchDiscriminator(nn.Module):
    """One scale: 4×4 convolutions with padding 2; 2,767,809 parameters at the defaults."""

    def __init__(self, architecture: DiscriminatorArchitecture) -> None:
        super().__init__()
        channels = [min(architecture.ndf * 2**layer, MAX_CHANNELS) for layer in range(architecture.n_layers + 1)]
        layers = [nn.Sequential(nn.Conv2d(PAIR_CHANNELS, channels[0], 4, 2, 2), nn.LeakyReLU(LEAK))]
        for layer in range(1, architecture.n_layers + 1):
            stride = 2 if layer < architecture.n_layers else 1
            convolution = nn.Conv2d(channels[layer - 1], channels[layer], 4, stride, 2)
            layers.append(nn.Sequential(convolution, InstanceNorm(), nn.LeakyReLU(LEAK)))
        layers.append(nn.Sequential(nn.Conv2d(channels[-1], 1, 4, 1, 2)))
        self.layers = nn.ModuleList(layers)

    def forward(self, pair: Tensor) -> Features:
        """Give the features after every layer of (N, 6, H, W); the last are (N, 1, h, w) scores without bounds."""
        features = []
        for layer in self.layers:
            pair = layer(pair)
            features.append(pair)
        return features


class MultiScaleDiscriminator(nn.Module):
    """The discriminators of all scales; 5,535,618 parameters at the defaults."""

    def __init__(self, architecture: DiscriminatorArchitecture) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(architecture) for _ in range(architecture.n_scales))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, photo: Tensor, swapped: Tensor) -> list[Features]:
        """Look at pairs.

        Args:
            photo: (N, 3, H, W) RGB in −1..1, what the generator saw.
            swapped: (N, 3, H, W) RGB in −1..1, what it or the teacher made of it.

        Returns:
            The features of every scale, the full size first.
        """
        pair = torch.cat((photo, swapped), 1)
        outputs = []
        for scale in self.scales:
            outputs.append(scale(pair))
            pair = functional.avg_pool2d(pair, 3, stride=2, padding=1, count_include_pad=False)
        return outputs
