"""The discriminator against its published size, a forward pass written out by hand, and its pooling."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from visard_training.swapper.discriminator import MultiScaleDiscriminator
from visard_training.swapper.options import DiscriminatorArchitecture

SMALL = DiscriminatorArchitecture(ndf=4, n_layers=2, n_scales=2)


def pictures(n=1, size=32):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.rand(n, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))


def test_the_published_one_has_5535618_parameters():
    with torch.device("meta"):
        discriminator = MultiScaleDiscriminator(DiscriminatorArchitecture())
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 5_535_618


def test_features_have_the_published_shapes():
    with torch.no_grad():
        outputs = MultiScaleDiscriminator(DiscriminatorArchitecture())(*pictures(n=2, size=64))
    # 4×4, padding 2: n → n/2 + 1 with stride 2, n → n + 1 with stride 1.
    assert [[tuple(layer.shape) for layer in scale] for scale in outputs] == [
        [(2, 64, 33, 33), (2, 128, 17, 17), (2, 256, 9, 9), (2, 512, 10, 10), (2, 1, 11, 11)],
        [(2, 64, 17, 17), (2, 128, 9, 9), (2, 256, 5, 5), (2, 512, 6, 6), (2, 1, 7, 7)],
    ]


def test_it_computes_what_is_written_out_by_hand():
    discriminator = MultiScaleDiscriminator(SMALL)
    for parameter in discriminator.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    photo, swapped = pictures(n=2)

    def norm(x):
        mean = x.mean((2, 3), keepdim=True)
        return (x - mean) / (((x - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5).sqrt()

    x = torch.cat((photo, swapped), 1)
    with torch.no_grad():
        outputs = discriminator(photo, swapped)
        for scale, features in zip(discriminator.scales, outputs, strict=True):
            weights = list(scale.parameters())
            y = functional.leaky_relu(functional.conv2d(x, weights[0], weights[1], stride=2, padding=2), 0.2)
            torch.testing.assert_close(features[0], y)
            for index, stride in ((2, 2), (4, 1)):
                y = functional.conv2d(y, weights[index], weights[index + 1], stride=stride, padding=2)
                y = functional.leaky_relu(norm(y), 0.2)
                torch.testing.assert_close(features[index // 2], y)
            torch.testing.assert_close(features[3], functional.conv2d(y, weights[6], weights[7], padding=2))
            # The mean of 3×3 pixels, those outside not counted.
            ones = torch.ones(1, 1, *x.shape[2:])
            kernel = torch.ones(1, 1, 3, 3)
            counted = functional.conv2d(ones, kernel, stride=2, padding=1)
            x = functional.conv2d(x.flatten(0, 1)[:, None], kernel, stride=2, padding=1) / counted
            x = x.view(2, 6, *counted.shape[2:])


def test_scores_of_a_pair_do_not_depend_on_its_neighbours():
    """Generated and real pairs are judged in one batch."""
    discriminator = MultiScaleDiscriminator(SMALL)
    photo, swapped = pictures(n=2)
    with torch.no_grad():
        together, alone = discriminator(photo, swapped), discriminator(photo[:1], swapped[:1])
    torch.testing.assert_close(together[1][-1][:1], alone[1][-1])


def test_sizes_that_make_no_network_are_refused():
    with pytest.raises(ValueError, match="n_scales must be at least 1, not 0"):
        DiscriminatorArchitecture(n_scales=0)
