"""Counts the floating-point operations of an ONNX graph: two for each multiplication with its addition.

Convolutions, transposed convolutions and matrix products are counted, which is where nearly all work of these networks
is; element-wise nodes, norms, padding and sampling are not, so a graph can do no less work than this says. Shapes come
from ONNX's own shape inference, with every free dimension set to the batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import onnx

Shape = tuple[int, ...]


def count_flops(model: onnx.ModelProto | Path, batch: int = 1) -> int:
    """Operations of one run.

    Args:
        model: the graph, or its file.
        batch: what the free dimensions of the inputs become.

    Raises:
        ValueError: a shape that counts cannot be inferred.
    """
    return sum(flops_by_node_type(model, batch).values())


def flops_by_node_type(model: onnx.ModelProto | Path, batch: int = 1) -> dict[str, int]:
    """Operations of one run by the type of the node: `Conv`, `ConvTranspose`, `MatMul` and `Gemm`."""
    model = onnx.load(model) if isinstance(model, Path) else model
    shapes = infer_shapes(model, batch)
    totals: dict[str, int] = defaultdict(int)
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            totals[node.op_type] += _node_flops(node, shapes)
    return dict(totals)


def infer_shapes(model: onnx.ModelProto, batch: int = 1) -> dict[str, Shape]:
    """Tensor name → shape, of all tensors whose shape can be inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.input:
        for dimension in tensor.type.tensor_type.shape.dim:
            if not dimension.HasField("dim_value"):
                dimension.dim_value = batch
    del copy.graph.value_info[:]  # what the exporter wrote there has the free dimension in it
    for tensor in copy.graph.output:
        tensor.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for node in inferred.node:
        if node.op_type == "Constant":
            value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
            if value is not None:
                shapes[node.output[0]] = tuple(value.dims)
    for tensor in (*inferred.input, *inferred.value_info, *inferred.output):
        dimensions = tensor.type.tensor_type.shape.dim
        if all(dimension.HasField("dim_value") for dimension in dimensions):
            shapes[tensor.name] = tuple(dimension.dim_value for dimension in dimensions)
    return shapes


def _node_flops(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    def shape(name: str) -> Shape:
        if name not in shapes:
            raise ValueError(f"the shape of '{name}', which the {node.op_type} '{node.name}' needs, cannot be inferred")
        return shapes[name]

    if node.op_type == "Conv":  # weight (out, in / groups, kernel…): every output value sums over one filter
        return 2 * math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, kernel…): every input value is spread by one filter
        return 2 * math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return 2 * math.prod(shape(node.output[0])) * shape(node.input[0])[0 if transposed else -1]
    return 2 * math.prod(shape(node.output[0])) * shape(node.input[0])[-1]
