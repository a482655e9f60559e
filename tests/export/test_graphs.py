"""The arithmetic inside the served graphs, against Pillow, numpy and cases whose answer is known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from visard.wire import build_small_request
from visard_export.graphs import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    AnonymizerGraph,
    ClassifierGraph,
    GeneratorGraph,
    SmallClassifierGraph,
    build_graph,
    fold_batch_norms,
)
from visard_export.networks.architectures import ResNet18Architecture
from visard_export.networks.atlas import DIRECTIONS
from visard_export.networks.pix2pixhd import Pix2PixHDGenerator
from visard_export.networks.resnet18 import ResNet18
from visard_testing.small_models import aligned_faces, small_generator, small_network


@pytest.fixture(scope="module")
def faces():
    return aligned_faces()


@pytest.fixture(scope="module")
def noise():
    """Everything that a resize can get wrong."""
    return np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), np.uint8)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    network = ResNet18(ResNet18Architecture(width=8)).eval()
    for name, tensor in network.state_dict().items():
        if ("bn" in name or "downsample.1" in name) and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return network


def run(graph, images):
    inputs = [torch.from_numpy(images)]
    if not isinstance(graph, ClassifierGraph):
        inputs.append(torch.zeros(len(images), 1, dtype=torch.int32))
    with torch.inference_mode():
        return graph(*inputs).numpy()


@pytest.mark.parametrize("head", ["persona", "image"])
def test_one_graph_gives_each_face_what_its_parts_give_one_after_the_other(head, faces):
    # Two faces that the classifier takes for one of each gender: the difference of its logits lies between theirs.
    judge = small_network("classifier")
    logits = run(ClassifierGraph(judge), faces)
    middle = np.log(logits[:, 1] / logits[:, 0]).mean()
    judge.fc.bias.data[1] -= middle
    generators = [small_network(head)] * 2
    if head == "image":  # of which each direction has its own
        generators = [generators[0], copy.deepcopy(generators[0])]
        generators[1].model[-2].weight.data.neg_()
    graph = AnonymizerGraph(judge, *generators)
    with torch.inference_mode():
        persona = torch.arange(len(faces), dtype=torch.int32)[:, None]
        swapped, gender, swapped_gender = (each.numpy() for each in graph(torch.from_numpy(faces), persona))
        parts = [
            build_graph(network, direction=direction)(torch.from_numpy(faces), persona).numpy()
            for network, direction in zip(generators, DIRECTIONS, strict=True)
        ]
    np.testing.assert_allclose(gender, run(ClassifierGraph(judge), faces), atol=1e-6)
    is_male = gender[:, 1] > gender[:, 0]
    assert sorted(is_male) == [False, True]
    assert (parts[0] != parts[1]).mean() > 0.1
    for face, male in enumerate(is_male):
        np.testing.assert_array_equal(swapped[face], parts[int(male)][face])
    np.testing.assert_allclose(swapped_gender, run(ClassifierGraph(judge), swapped), atol=1e-6)


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
    # For callers who have resized the face: nothing is left but what Pillow rounded.
    sent = build_small_request(faces[:1]).raw_input_contents[0]
    np.testing.assert_array_equal(np.frombuffer(sent, np.uint8).reshape(224, 224, 3), small[0])
    np.testing.assert_allclose(run(SmallClassifierGraph(classifier), small), logits.softmax(1), atol=1e-5)


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
