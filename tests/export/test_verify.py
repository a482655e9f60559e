"""Verification passes a faithful export and stops every other."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from visard_errors import ExportError
from visard_export.graphs import ClassifierGraph, GeneratorGraph
from visard_export.onnx import export_onnx
from visard_export.verify import verify
from visard_testing.small_models import aligned_faces, small_network


@pytest.fixture(scope="module")
def generator():
    return small_network("image")


@pytest.fixture(scope="module")
def classifier():
    return small_network("classifier")


def tampered(path, folder, scale):
    """Multiply the first convolution's weights, which the file's readers cannot see."""
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("1.weight") and tensor.dims[2:])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(scale), weight.name))
    onnx.save(model, folder / "tampered.onnx")
    return folder / "tampered.onnx"


def test_faithful_generator(onnx_files, generator):
    graph = GeneratorGraph(generator)
    fp32 = verify(graph, onnx_files["image", "fp32"], aligned_faces(), "fp32")
    fp16 = verify(graph, onnx_files["image", "fp16"], aligned_faces(), "fp16")
    assert fp32.n_faces == 2
    assert fp32.mean_grey <= 0.02
    assert fp32.max_grey <= 2
    assert fp32.mean_grey < fp16.mean_grey <= 1  # half precision is seen, and mild


def test_faithful_generator_whose_activations_add_up_beyond_half(generator, tmp_path):
    # Norms take it all away again, if only their sums over an image hold it: the answer is the plain generator's.
    loud = copy.deepcopy(generator)
    *hidden, _ = (layer for layer in loud.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)))
    for layer in hidden:
        layer.weight.data *= 1000
        layer.bias.data.fill_(300)
    graph = GeneratorGraph(loud)
    faces = torch.from_numpy(aligned_faces()).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        sums = loud.model[1](loud.model[0](faces)).sum((2, 3))
    assert sums.abs().min() > torch.finfo(torch.float16).max
    export_onnx(GeneratorGraph(loud, "fp16"), tmp_path / "loud.onnx")
    verify(graph, tmp_path / "loud.onnx", aligned_faces(), "fp16")
    verify(GeneratorGraph(generator), tmp_path / "loud.onnx", aligned_faces(), "fp16")


def test_faithful_classifier(onnx_files, classifier):
    graph = ClassifierGraph(classifier)
    fp32 = verify(graph, onnx_files["classifier", "fp32"], aligned_faces(), "fp32")
    fp16 = verify(graph, onnx_files["classifier", "fp16"], aligned_faces(), "fp16")
    assert fp32.agreement == fp16.agreement == 1
    assert fp32.max_probability < 1e-5
    assert fp32.max_probability < fp16.max_probability < 0.02


def test_half_precision_does_not_pass_for_fp32(onnx_files, generator):
    with pytest.raises(ExportError, match="fp32 generator differs"):
        verify(GeneratorGraph(generator), onnx_files["image", "fp16"], aligned_faces(), "fp32")


def test_tampered_generator(onnx_files, generator, tmp_path):
    path = tampered(onnx_files["image", "fp32"], tmp_path, -1.0)
    with pytest.raises(ExportError, match=r"differs from its network by .* grey levels on average"):
        verify(GeneratorGraph(generator), path, aligned_faces(), "fp16")


def test_tampered_classifier(onnx_files, classifier, tmp_path):
    path = tampered(onnx_files["classifier", "fp32"], tmp_path, 1.5)
    with pytest.raises(ExportError, match="differs from its network by a probability of"):
        verify(ClassifierGraph(classifier), path, aligned_faces(), "fp32")


def test_numbers_that_are_none(onnx_files, classifier, tmp_path):
    path = tampered(onnx_files["classifier", "fp32"], tmp_path, float("nan"))
    with pytest.raises(ExportError, match="probability of nan"):
        verify(ClassifierGraph(classifier), path, aligned_faces(), "fp16")


def test_file_that_does_not_run(generator, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="cannot run the exported model"):
        verify(GeneratorGraph(generator), tmp_path / "model.onnx", aligned_faces(), "fp32")


@pytest.mark.parametrize(
    "faces", [np.zeros((0, 512, 512, 3), np.uint8), np.zeros((1, 256, 256, 3), np.uint8), np.zeros((1, 512, 512, 3))]
)
def test_other_faces_are_refused(onnx_files, generator, faces):
    with pytest.raises(ValueError, match=r"faces must be \(N, 512, 512, 3\) uint8"):
        verify(GeneratorGraph(generator), onnx_files["image", "fp32"], faces, "fp32")
