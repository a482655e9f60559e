"""A tiny real recogniser in an ONNX file, whose descriptors numpy can predict: the mean colour of each column."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def mean_colour_recogniser(
    path: Path, *, size: int, channels_first: bool = True, kind: str = "FLOAT", batch: str | int = "N"
) -> Path:
    """Write a model (N, 3, size, size) or (N, size, size, 3) → (N, 3 · size), by channel or by column first.

    `batch` may be 1 instead of a free dimension.
    """
    shape = [batch, 3, size, size] if channels_first else [batch, size, size, 3]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["columns"], keepdims=0),
        helper.make_node("Flatten", ["columns"], ["descriptor"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [2 if channels_first else 1])
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("pixels", getattr(TensorProto, kind), shape)],
        [helper.make_tensor_value_info("descriptor", TensorProto.FLOAT, [batch, 3 * size])],
        [axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
