"""A graph that returns its input, so that transport, batching and scheduling are all that is left to measure."""

from __future__ import annotations

from pathlib import Path

import onnx.parser
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from visard_export.repository import adapt, static_repository

MODEL = "generator_to_male"  # whose place it takes, and whose configuration it is served with


def identity_models(folder: Path) -> tuple[Path, Path]:
    """Write the identity graph: the ONNX file, and a repository that serves it as one of our models does its graph."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        identity (uint8[N, 512, 512, 3] image, int32[N, 1] persona) => (uint8[N, 512, 512, 3] swapped) {
            swapped = Identity(image)
        }
    """)  # the persona as the generators have it
    version = folder / "repository" / MODEL / "1"
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")
    static = (static_repository() / MODEL / "config.pbtxt").read_text(encoding="utf-8")
    config = adapt(MODEL, text_format.Parse(static, model_config_pb2.ModelConfig()), "cpu")
    config.dynamic_batching.default_queue_policy.max_queue_size = 256  # waiting for a graph that is free takes no time
    (version.parent / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    return version / "model.onnx", folder / "repository"
