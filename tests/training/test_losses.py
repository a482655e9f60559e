"""The losses against cases computed by hand, and the networks behind the perceptual one."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from visard_errors import CheckpointError
from visard_export.graphs import ClassifierGraph
from visard_export.networks.architectures import ResNet18Architecture
from visard_export.networks.resnet18 import ResNet18
from visard_training.swapper.losses import (
    ClassifierFeatures,
    PerceptualLoss,
    VGG19Features,
    feature_matching_loss,
    lsgan_loss,
    reconstruction_loss,
)


def scores(*values):
    """Features of one scale with two layers before the scores."""
    return [torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1), torch.tensor(values).view(1, 1, 1, -1)]


def test_lsgan_sums_the_mean_squared_distances_of_the_scales():
    outputs = [scores(1.0, 3.0), scores(0.5)]
    assert lsgan_loss(outputs, 1.0).item() == pytest.approx((0 + 4) / 2 + 0.25)
    assert lsgan_loss(outputs, 0.0).item() == pytest.approx((1 + 9) / 2 + 0.25)


def test_feature_matching_weighs_layers_and_leaves_the_scores_out():
    def scale(first, second, score):
        return [torch.full((1, 2, 2, 2), first), torch.full((1, 3, 1, 1), second), torch.full((1, 1, 1, 1), score)]

    real, fake = [scale(0, 0, 0), scale(1, 1, 0)], [scale(1, 0.5, 9), scale(1, -1, 9)]
    # n_layers = 1: two layers with features; weight 4 / (1 + 1) / 2 scales = 1
    assert feature_matching_loss(real, fake).item() == pytest.approx(1 + 0.5 + 0 + 2)
    # n_layers = 3 and one scale, as deep as the published ones: weight 4 / (3 + 1) / 1 = 1
    deep = [torch.zeros(1)] * 4 + [torch.zeros(1)]
    assert feature_matching_loss([deep], [[torch.full((1,), 0.25)] * 4 + [torch.ones(1)]]).item() == pytest.approx(1)
    # three scales of it: the weight falls to a third, the sum is the same
    assert feature_matching_loss([deep] * 3, [[torch.full((1,), 0.25)] * 5] * 3).item() == pytest.approx(1)


def test_feature_matching_gives_the_real_side_no_gradient():
    real, fake = (torch.full((1,), value, requires_grad=True) for value in (0.0, 1.0))
    feature_matching_loss([[real, real, real]], [[fake, fake, fake]]).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_reconstruction_counts_values_and_half_of_each_derivative():
    real = torch.zeros(1, 1, 2, 2)
    fake = torch.tensor([[0.0, 1.0], [2.0, 5.0]]).view(1, 1, 2, 2)
    # values 8/4; along rows |2|, |4| → 3; along columns |1|, |3| → 2
    assert reconstruction_loss(fake, real).item() == pytest.approx(2 + 0.5 * 3 + 0.5 * 2)
    assert reconstruction_loss(fake + 1, fake).item() == pytest.approx(1)  # a shift of the level has no derivative


def vgg19_state(dtype=torch.float32):
    """A state dict with torchvision's names and shapes, up to relu5_1 and one layer of what is ignored."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, (channels, entry) in {
        0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
        16: (256, 256), 19: (256, 512), 21: (512, 512), 23: (512, 512), 25: (512, 512), 28: (512, 512),
    }.items():  # fmt: skip
        state[f"features.{index}.weight"] = torch.randn(entry, channels, 3, 3, generator=generator, dtype=dtype) * 0.05
        state[f"features.{index}.bias"] = torch.randn(entry, generator=generator, dtype=dtype)
    return state | {"features.30.weight": torch.zeros(512, 512, 3, 3), "classifier.6.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def vgg19_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(vgg19_state(), path)
    return path


def test_vgg19_gives_the_first_relu_of_each_block(vgg19_file, tmp_path):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    state = vgg19_state()
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x = ((picture + 1) / 2 - mean) / deviation
    wanted = []
    for block in ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28,)):
        if wanted:
            x = functional.max_pool2d(x, 2)
        for index in block:
            x = functional.conv2d(
                x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1
            ).relu()
            if index == block[0]:
                wanted.append(x)
    save_file(state, tmp_path / "vgg19.safetensors")
    for path in (vgg19_file, tmp_path / "vgg19.safetensors"):
        with torch.no_grad():
            stages = VGG19Features.load(path)(picture)
        assert [stage.shape[1] for stage in stages] == [64, 128, 256, 512, 512]
        for stage, expected in zip(stages, wanted, strict=True):
            torch.testing.assert_close(stage, expected, rtol=1e-4, atol=1e-3)


def test_a_vgg_file_that_runs_something_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    for name, write in (("zip.pth", torch.save), ("pickle.pth", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        write({"features.0.weight": Attack()}, tmp_path / name)
        with pytest.raises(CheckpointError, match="was not executed"):
            VGG19Features.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_another_network_is_refused_by_name(tmp_path):
    state = {name: tensor for name, tensor in vgg19_state().items() if not name.startswith("features.28")}
    save_file(state, tmp_path / "vgg11.safetensors")
    with pytest.raises(CheckpointError, match=r"not torchvision's VGG19.*features\.28\.weight"):
        VGG19Features.load(tmp_path / "vgg11.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        VGG19Features.load(tmp_path / "missing.pth")


def test_classifier_features_are_the_stages_of_the_served_classifier():
    network = ResNet18(ResNet18Architecture(width=8)).eval()
    picture = torch.randint(0, 256, (1, 512, 512, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    with torch.no_grad():
        stages = ClassifierFeatures(network, 512)(picture.permute(0, 3, 1, 2).float() / 127.5 - 1)
        probabilities = torch.softmax(network.fc(stages[-1].mean((2, 3))), 1)
        torch.testing.assert_close(probabilities, ClassifierGraph(network)(picture), rtol=1e-3, atol=1e-4)
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (8, 112, 112), (8, 56, 56), (16, 28, 28), (32, 14, 14), (64, 7, 7)
    ]  # fmt: skip


class _Levels(nn.Module):
    """Five stages that are the picture itself, a thousand times stronger each."""

    def forward(self, picture):
        return [picture * 1000**stage for stage in range(5)]


def test_the_perceptual_loss_weighs_deep_stages_more():
    loss = PerceptualLoss(_Levels())
    fake, real = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2)
    weights = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)
    wanted = sum(weight * 0.5 * 1000**stage for stage, weight in enumerate(weights))
    assert loss(fake, real).item() == pytest.approx(wanted)


def test_the_perceptual_loss_moves_pictures_and_never_its_network():
    network = ResNet18(ResNet18Architecture(width=8))
    loss = PerceptualLoss(ClassifierFeatures(network, 64)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fake = torch.zeros(1, 3, 64, 64, requires_grad=True)
    loss(fake, torch.ones(1, 3, 64, 64)).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
