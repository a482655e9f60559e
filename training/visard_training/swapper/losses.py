"""What the swapper's training minimises: adversarial, feature matching, perceptual and reconstruction losses.

All are plain functions of tensors, means over everything but what their docstrings sum.

Sources: Mao et al.: Least Squares Generative Adversarial Networks, 2017; Wang et al. (pix2pixHD), 2018, section 3.3
and the code published with it; Johnson et al.: Perceptual Losses, 2016.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from visard_errors import CheckpointError
from visard_export.checkpoints import read_tensors
from visard_export.graphs import IMAGENET_DEVIATION, IMAGENET_MEAN, resize_matrix
from visard_export.networks.architectures import CLASSIFIER_SIZE
from visard_export.networks.resnet18 import ResNet18
from visard_training.swapper.discriminator import Features

STAGE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # of the five perceptual stages, shallow to deep

# VGG19 up to relu5_1: channels of its 3×3 convolutions, "M" halves the size.
_VGG19 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512)
_VGG19_STAGES = (1, 6, 11, 20, 29)  # indices of relu1_1, relu2_1, relu3_1, relu4_1, relu5_1


def lsgan_loss(outputs: list[Features], target: float) -> Tensor:
    """Mean squared distance of the scores from `target` (1 real, 0 generated), summed over the scales."""
    return torch.stack([(features[-1].float() - target).square().mean() for features in outputs]).sum()


def feature_matching_loss(real: list[Features], fake: list[Features]) -> Tensor:
    """L1 between the discriminator's features of real and generated pairs, the scores left out.

    Every layer weighs 4 / (n_layers + 1) / n_scales, as published; the real side receives no gradient.
    """
    total = torch.zeros((), device=fake[0][0].device)
    for real_scale, fake_scale in zip(real, fake, strict=True):
        n_layers = len(fake_scale) - 2  # beside them: the last layer with features, and the scores
        weight = 4 / (n_layers + 1) / len(fake)
        for real_layer, fake_layer in zip(real_scale[:-1], fake_scale[:-1], strict=True):
            total = total + weight * functional.l1_loss(fake_layer.float(), real_layer.detach().float())
    return total


def reconstruction_loss(fake: Tensor, real: Tensor) -> Tensor:
    """L1 of the pictures plus half the L1 of their derivatives along rows and columns.

    The derivatives keep edges where the teacher put them: a plain L1 prefers blur.
    """
    difference = fake - real
    rows = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    columns = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    return difference.abs().mean() + 0.5 * (rows + columns)


class PerceptualLoss(nn.Module):
    """Weighted L1 between the features of two pictures in a fixed network of five stages."""

    def __init__(self, features: VGG19Features | ClassifierFeatures) -> None:
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Compare (N, 3, H, W) RGB in −1..1; the real side receives no gradient."""
        with torch.no_grad():
            wanted = self.features(real)
        return torch.stack(
            [
                weight * functional.l1_loss(stage.float(), target.float())
                for weight, stage, target in zip(STAGE_WEIGHTS, self.features(fake), wanted, strict=True)
            ]
        ).sum()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in evaluation mode: batch norms of the classifier must not move."""
        return super().train(False)


class VGG19Features(nn.Module):
    """VGG19's activations after relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1.

    Names are torchvision's (`features.{i}.weight`). Unlike the code published with pix2pixHD, which feeds −1..1
    directly, the input is normalised as the network was trained.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in _VGG19:
            if isinstance(entry, int):
                layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU()]
                channels = entry
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        _register_normalisation(self)

    @classmethod
    def load(cls, path: Path) -> VGG19Features:
        """Read torchvision's VGG19 weights, `.pth` or safetensors; its classifier and later layers are ignored.

        Raises:
            CheckpointError: the file is unsafe, damaged or another network.
        """
        tensors, _ = read_tensors(path)
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in cls().features.state_dict().items()}
        found = {name: tensors.get(f"features.{name}") for name in wanted}
        wrong = [name for name, tensor in found.items() if tensor is None or tuple(tensor.shape) != wanted[name]]
        if wrong:
            raise CheckpointError(
                f"'{path}' is not torchvision's VGG19: missing or of another shape are "
                f"{', '.join(f'features.{name}' for name in wrong[:4])}{' …' if len(wrong) > 4 else ''}"
            )
        network = cls()
        network.features.load_state_dict({name: tensor.float() for name, tensor in found.items() if tensor is not None})
        return network

    def forward(self, picture: Tensor) -> Features:
        """Give the five activations of (N, 3, H, W) RGB in −1..1."""
        x = picture * self.scale + self.shift
        stages = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _VGG19_STAGES:
                stages.append(x)
        return stages


class ClassifierFeatures(nn.Module):
    """The gender classifier's activations after its stem and its four stages."""

    resize: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, network: ResNet18, size: int) -> None:
        """Take a trained classifier, and the side in pixels of the pictures to come."""
        super().__init__()
        self.network = network
        self.register_buffer("resize", resize_matrix(size, CLASSIFIER_SIZE), persistent=False)
        _register_normalisation(self)

    def forward(self, picture: Tensor) -> Features:
        """Give the five activations of (N, 3, size, size) RGB in −1..1, resized as the served classifier does."""
        network = self.network
        x = (self.resize @ picture @ self.resize.T) * self.scale + self.shift
        x = torch.relu(network.bn1(network.conv1(x)))
        stages = [x]
        x = network.maxpool(x)
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = layer(x)
            stages.append(x)
        return stages


def _register_normalisation(module: nn.Module) -> None:
    """Give the module what turns −1..1 into ImageNet's zero mean and unit deviation."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    module.register_buffer("scale", 0.5 / deviation, persistent=False)
    module.register_buffer("shift", (0.5 - mean) / deviation, persistent=False)
