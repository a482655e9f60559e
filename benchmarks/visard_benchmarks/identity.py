"""A graph that returns its input, so that transport, batching and scheduling are all that is left to measure."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from visard_export.repository import adapt, static_repository

MODEL = "generator_to_male"  # whose place it takes, and whose configuration it is served with


def identity_models(folder: Path) -> tuple[Path, Path]:
    """Write the identity graph: the ONNX file, and a repository that serves it as one of our models does its graph."""
    shape: list[str | int | None] = ["N", 512, 512, 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["swapped"])],
        "identity",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, shape),
            helper.make_tensor_value_info("persona", TensorProto.INT32, ["N", 1]),  # as the generators have it
        ],
        [helper.make_tensor_value_info("swapped", TensorProto.UINT8, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    version = folder / "repository" / MODEL / "1"
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")
    static = (static_repository() / MODEL / "config.pbtxt").read_text(encoding="utf-8")
    config = adapt(MODEL, text_format.Parse(static, model_config_pb2.ModelConfig()), "cpu")
    config.dynamic_batching.default_queue_policy.max_queue_size = 256  # waiting for a graph that is free takes no time
    (version.parent / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    return version / "model.onnx", folder / "repository"
