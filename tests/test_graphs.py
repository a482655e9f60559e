"""The arithmetic inside the served graphs, against Pillow, numpy and cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from small_models import aligned_faces, small_generator
from visard_export.graphs import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    ClassifierGraph,
    GeneratorGraph,
    apply_warp,
    fold_batch_norms,
    resize_bands,
    resize_matrix,
    sampling_grid,
)
from visard_export.networks.pix2pixhd import Pix2PixHDArchitecture, Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18, ResNet18Architecture


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return aligned_faces()


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Everything that a resize can get wrong."""
    return np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), np.uint8)


@pytest.fixture(scope="module")
def classifier() -> ResNet18:
    torch.manual_seed(0)
    network = ResNet18(ResNet18Architecture(width=8)).eval()
    for name, tensor in network.state_dict().items():
        if ("bn" in name or "downsample.1" in name) and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return network


def warp_network(**last_bias: float) -> Pix2PixHDGenerator:
    """A warp head that answers the same everywhere: displacement `x`, `y` and residual `red`, `green`, `blue`."""
    network = Pix2PixHDGenerator(small_generator("warp"))
    last = network.model[-1]
    for channel, name in enumerate(("x", "y", "red", "green", "blue")):
        last.bias.data[channel] = last_bias.get(name, 0.0)
    return network


def run(graph: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return graph(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("picture", ["faces", "noise"])
def test_resize_is_pillows(picture, request):
    image = request.getfixturevalue(picture)[0]
    matrix = resize_matrix(512, 224).numpy()
    ours = np.stack([matrix @ image[..., channel] @ matrix.T for channel in range(3)], -1)
    pillows = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR))
    assert np.abs(ours.round() - pillows).max() <= 1  # Pillow rounds after each of its two passes
    assert np.abs(ours - pillows).mean() < 0.35


@pytest.mark.parametrize(("size_in", "size_out"), [(512, 224), (512, 256), (100, 37)])
def test_resize_matrix_is_torchs_antialiasing(size_in, size_out):
    column = torch.eye(size_in)[None, None]
    theirs = functional.interpolate(column, (size_out, size_in), mode="bilinear", antialias=True)[0, 0]
    torch.testing.assert_close(resize_matrix(size_in, size_out), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("size_in", "size_out", "count"), [(512, 224, 28), (512, 224, 1), (100, 36, 9), (36, 100, 10)])
def test_bands_are_the_whole_matrix(size_in, size_out, count):
    matrix = resize_matrix(size_in, size_out)
    bands, columns = resize_bands(matrix, count)
    whole = torch.zeros(count, size_out // count, size_in).scatter_(
        2, columns[:, None].expand(-1, size_out // count, -1), bands
    )
    torch.testing.assert_close(whole.reshape(size_out, size_in), matrix, rtol=0, atol=0)
    assert bands.shape[2] <= size_in / count + 2 * max(1, size_in / size_out) + 2


def test_classifier_graph_is_pillow_and_imagenet_before_the_network(classifier, faces):
    small = np.stack(
        [np.asarray(Image.fromarray(face).resize((224, 224), Image.Resampling.BILINEAR)) for face in faces]
    )
    normalised = (small / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_DEVIATION)
    with torch.no_grad():
        logits = classifier(torch.from_numpy(normalised).float().permute(0, 3, 1, 2))
    gender = run(ClassifierGraph(classifier), faces)
    np.testing.assert_allclose(gender, logits.softmax(1), atol=2e-3)
    np.testing.assert_allclose(gender.sum(1), 1, atol=1e-6)
    assert gender.dtype == np.float32


def test_colours_reach_the_classifier_in_order(classifier, faces):
    # A network that looks at red alone must not notice another blue.
    network = ResNet18(ResNet18Architecture(width=8)).eval()
    network.load_state_dict(classifier.state_dict())
    network.conv1.weight.data[:, 1:] = 0
    graph = ClassifierGraph(network)
    other_blue, other_red = faces.copy(), faces.copy()
    other_blue[..., 2] //= 2
    other_red[..., 0] //= 2
    np.testing.assert_array_equal(run(graph, other_blue), run(graph, faces))
    assert np.abs(run(graph, other_red) - run(graph, faces)).max() > 1e-4


def test_folded_batch_norms_change_nothing(classifier):
    folded = fold_batch_norms(classifier)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in classifier.modules())
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), classifier(x), rtol=1e-4, atol=1e-4)


def test_image_head_truncates(faces):
    torch.manual_seed(0)
    network = Pix2PixHDGenerator(small_generator("image")).eval()
    with torch.no_grad():
        y = network(torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1).permute(0, 2, 3, 1).numpy()
    expected = np.clip((y + 1) / 2 * np.float32(255), 0, 255).astype(np.uint8)  # numpy's cast truncates
    np.testing.assert_array_equal(run(GeneratorGraph(network), faces), expected)
    assert (np.round((y + 1) / 2 * 255) != expected).mean() > 0.3  # rounding would have been seen


def test_image_head_reaches_black_and_white(faces):
    network = Pix2PixHDGenerator(small_generator("image"))
    last = network.model[-2]
    last.weight.data.zero_()
    last.bias.data[:] = torch.tensor([100.0, -100.0, 0.0])
    swapped = run(GeneratorGraph(network), faces[:1])
    assert (swapped == np.array([255, 0, 127], np.uint8)).all()


@pytest.mark.parametrize("picture", ["faces", "noise"])
@pytest.mark.parametrize("size", [64, 256, 512])
def test_warp_head_that_moves_nothing_returns_the_photo(picture, size, request):
    image = request.getfixturevalue(picture)
    network = Pix2PixHDGenerator(Pix2PixHDArchitecture(head="warp", ngf=2, n_downsampling=1, n_blocks=1, size=size))
    np.testing.assert_array_equal(run(GeneratorGraph(network), image), image)


def test_warp_head_displaces_by_its_scale(noise):
    # The photo spans 2, so a displacement of 2/512 · 5 / 0.15 looks five pixels to the right, and three up.
    pixel = 2 / 512 / 0.15
    swapped = run(GeneratorGraph(warp_network(x=5 * pixel, y=-3 * pixel)), noise)[0]
    np.testing.assert_array_equal(swapped[3:, :-5], noise[0, :-3, 5:])
    np.testing.assert_array_equal(swapped[3:, -5:], np.repeat(noise[0, :-3, -1:], 5, 1))  # the border is repeated


def test_warp_head_adds_its_residual_rounds_and_clips(noise):
    swapped = run(GeneratorGraph(warp_network(red=0.217, green=0.215, blue=-10.0)), noise)[0]
    expected = noise[0].astype(int) + np.array([28, 27, -1275])  # from 27.67 and 27.41
    np.testing.assert_array_equal(swapped, np.clip(expected, 0, 255))


def test_warp_is_the_same_in_training_and_in_the_graph(faces):
    output = torch.randn(1, 5, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.1
    photo = torch.from_numpy(faces[:1]).permute(0, 3, 1, 2).float()
    grid = sampling_grid(512)
    trained = apply_warp(photo / 127.5 - 1, output, grid)
    torch.testing.assert_close((trained + 1) * 127.5, apply_warp(photo, output, grid, unit=127.5), rtol=0, atol=1e-3)


def test_faces_of_a_batch_do_not_touch_each_other(faces):
    torch.manual_seed(0)
    network = Pix2PixHDGenerator(small_generator("image"))
    graph = GeneratorGraph(network)
    together = run(graph, faces)
    alone = np.concatenate([run(graph, faces[i : i + 1]) for i in range(len(faces))])
    difference = np.abs(together.astype(int) - alone)
    assert difference.max() <= 1
    assert difference.mean() < 0.01


def test_building_a_half_precision_graph_leaves_the_network_as_it_is(classifier):
    graph = ClassifierGraph(classifier, "fp16")
    assert next(graph.network.parameters()).dtype == torch.float16
    assert next(classifier.parameters()).dtype == torch.float32
