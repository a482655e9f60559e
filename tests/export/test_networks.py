"""The networks against their published names and sizes, and against forward passes written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from visard_export.networks.architectures import INPUT_CHANNELS, Pix2PixHDArchitecture, ResNet18Architecture
from visard_export.networks.pix2pixhd import InstanceNorm, Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18


def pix2pixhd_by_hand(weights, x, n_downsampling, n_blocks, tanh):
    def norm(x):
        mean = x.mean((2, 3), keepdim=True)
        return (x - mean) / (((x - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5).sqrt()

    def conv(x, name, reflect=0, **options):
        x = functional.pad(x, (reflect,) * 4, mode="reflect")
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    x = norm(conv(x, "model.1", 3)).relu()
    index = 4
    for _ in range(n_downsampling):
        x = norm(conv(x, f"model.{index}", stride=2, padding=1)).relu()
        index += 3
    for _ in range(n_blocks):
        y = norm(conv(x, f"model.{index}.conv_block.1", 1)).relu()
        x = x + norm(conv(y, f"model.{index}.conv_block.5", 1))
        index += 1
    for _ in range(n_downsampling):
        weight, bias = weights[f"model.{index}.weight"], weights[f"model.{index}.bias"]
        x = norm(functional.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)).relu()
        index += 3
    x = conv(x, f"model.{index + 1}", 3)
    return x.tanh() if tanh else x


def resnet18_by_hand(weights, x):
    def norm(x, name):
        mean, variance, scale, shift = (
            weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = norm(functional.conv2d(x, weights["conv1.weight"], stride=2, padding=3), "bn1").relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = norm(functional.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1")
            y = norm(functional.conv2d(y.relu(), weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                x = norm(functional.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
            x = (x + y).relu()
    return functional.adaptive_avg_pool2d(x, 1).flatten(1) @ weights["fc.weight"].T + weights["fc.bias"]


def randomise(network):
    """Give every tensor its own values, so that no layer is an accident of its initialisation."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.05, 0.3) if tensor.dim() == 1 else tensor.normal_(0, 0.2)


def test_published_generator_has_its_names_and_sizes():
    with torch.device("meta"):
        weights = Pix2PixHDGenerator(Pix2PixHDArchitecture()).state_dict()
    assert len(weights) == 56
    assert sum(tensor.numel() for tensor in weights.values()) == 182_443_267
    plain = (1, 4, 7, 10, 13, 25, 28, 31, 34, 38)
    names = {f"model.{i}" for i in plain} | {f"model.{i}.conv_block.{j}" for i in range(16, 25) for j in (1, 5)}
    assert weights.keys() == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    assert weights["model.13.weight"].shape == (1024, 512, 3, 3)
    assert weights["model.25.weight"].shape == (1024, 512, 3, 3)  # transposed: inputs first
    assert weights["model.38.weight"].shape == (3, 64, 7, 7)


def test_published_classifier_has_its_names_and_sizes():
    with torch.device("meta"):
        network = ResNet18(ResNet18Architecture())
    weights = network.state_dict()
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_177_538
    assert len(weights) == 122  # torchvision's resnet18
    assert weights["layer1.0.bn1.running_var"].shape == (64,)
    assert weights["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert weights["fc.weight"].shape == (2, 512)
    assert "layer1.0.downsample.0.weight" not in weights


@pytest.mark.parametrize(("head", "n_downsampling", "n_blocks"), [("image", 2, 3), ("persona", 3, 1)])
def test_generator_equals_its_formula(head, n_downsampling, n_blocks):
    torch.manual_seed(0)
    architecture = Pix2PixHDArchitecture(head=head, ngf=3, n_downsampling=n_downsampling, n_blocks=n_blocks)
    network = Pix2PixHDGenerator(architecture)
    randomise(network)
    x = torch.rand(2, INPUT_CHANNELS[head], 32, 48) * 2 - 1
    with torch.no_grad():
        by_hand = pix2pixhd_by_hand(network.state_dict(), x, n_downsampling, n_blocks, tanh=head == "image")
        torch.testing.assert_close(network(x), by_hand, rtol=1e-4, atol=1e-4)
    assert by_hand.std() > 0.1


def test_classifier_equals_its_formula():
    torch.manual_seed(0)
    network = ResNet18(ResNet18Architecture(width=4)).eval()
    randomise(network)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(x), resnet18_by_hand(network.state_dict(), x), rtol=1e-4, atol=1e-4)


def test_untrained_persona_head_moves_nothing():
    architecture = Pix2PixHDArchitecture(head="persona", ngf=2, n_downsampling=1, n_blocks=1, size=64)
    with torch.no_grad():
        assert not Pix2PixHDGenerator(architecture)(torch.rand(1, 6, 64, 64)).any()


def test_instance_norm_survives_sums_that_half_cannot_hold():
    x = torch.full((1, 1, 64, 64), 60_000.0).half()
    x[..., ::2] = -60_000
    y = InstanceNorm()(x)
    assert y.dtype == torch.float16
    assert y.float().abs().sub(1).abs().max() < 1e-3  # ±60,000 is one standard deviation


@pytest.mark.parametrize(
    "architecture",
    [
        Pix2PixHDArchitecture(),
        Pix2PixHDArchitecture(head="persona", ngf=16, n_downsampling=3, n_blocks=4, size=256),
        Pix2PixHDArchitecture(ngf=1, n_downsampling=1, n_blocks=1),
    ],
)
def test_generator_architecture_is_read_from_shapes(architecture):
    with torch.device("meta"):
        weights = Pix2PixHDGenerator(architecture).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    assert Pix2PixHDArchitecture.from_shapes(shapes, size=architecture.size) == architecture


def test_classifier_architecture_is_read_from_shapes():
    assert ResNet18Architecture.from_shapes({"conv1.weight": (24, 3, 7, 7)}) == ResNet18Architecture(width=24)


@pytest.mark.parametrize(
    "wrong",
    [{"head": "both"}, {"ngf": 0}, {"n_blocks": 1000}, {"size": 256}, {"head": "persona", "size": 100}],
)
def test_impossible_generator_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must|works at"):
        Pix2PixHDArchitecture(**wrong)
