"""TensorRT engines: what must hold without the library, and a real build where it is."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from visard_errors import ExportError
from visard_export.export import export_repository
from visard_export.graphs import ClassifierGraph
from visard_export.networks.resnet18 import ResNet18
from visard_export.onnx import export_onnx
from visard_export.options import ExportOptions
from visard_export.tensorrt import build_engine
from visard_testing.small_models import SMALL_CLASSIFIER, aligned_faces, small_checkpoints


@pytest.fixture
def no_tensorrt(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it fails, also where it is installed


@pytest.mark.usefixtures("no_tensorrt")
def test_absence_is_said_with_its_remedy(tmp_path):
    with pytest.raises(ExportError, match=r"needs TensorRT .* pip install 'tensorrt>=10'"):
        build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", 16)


@pytest.mark.usefixtures("no_tensorrt")
def test_absence_is_said_before_any_work(tmp_path):
    paths, lines = small_checkpoints(tmp_path), []
    with pytest.raises(ExportError, match="needs TensorRT"):
        export_repository(
            tmp_path / "repository",
            classifier=paths.classifier,
            to_male=paths.to_male,
            to_female=paths.to_female,
            faces=aligned_faces(),
            options=ExportOptions(profile="tensorrt"),
            report=lines.append,
        )
    assert not lines
    assert not (tmp_path / "repository").exists()


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="needs TensorRT and a GPU")
def test_engine_keeps_the_graphs_types(tmp_path):
    import tensorrt

    export_onnx(ClassifierGraph(ResNet18(SMALL_CLASSIFIER).eval(), "fp16"), tmp_path / "model.onnx")
    build_engine(tmp_path / "model.onnx", tmp_path / "model.plan", 16)
    engine = tensorrt.Runtime(tensorrt.Logger()).deserialize_cuda_engine((tmp_path / "model.plan").read_bytes())
    assert tensorrt.nptype(engine.get_tensor_dtype("image")) == np.uint8
    assert [shape[0] for shape in engine.get_tensor_profile_shape("image", 0)] == [1, 16, 16]
