"""Graphs written as ONNX files, and what such a file says about its own precision."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import onnx
import torch

from visard_errors import ExportError
from visard_export.graphs import Graph
from visard_export.options import Precision
from visard_export.precision import dtype_of

# What torch's exporter speaks natively, so nothing is converted; it has all that is needed (GridSample is in since 16,
# today's Resize since 18), and onnxruntime >= 1.14 and TensorRT >= 10 read it.
OPSET = 18

_CONVOLUTIONS = ("Conv", "ConvTranspose", "Gemm")
_IN_FLOAT = ("InstanceNormalization", "GridSample", "Resize", "Softmax")
_COMPUTE = (*_CONVOLUTIONS, *_IN_FLOAT, "LayerNormalization", "MatMul")


class PrecisionHistogram(TypedDict):
    """What a graph is made of: how many initializers of each type, and how many nodes compute in it.

    A layer norm's type is that of its pixels, followed by that of its statistics: `FLOAT16, statistics in FLOAT`.
    """

    initializers: dict[str, int]
    compute: dict[str, dict[str, int]]


def export_onnx(graph: Graph, path: Path) -> PrecisionHistogram:
    """Write a graph with a free batch size; the same graph gives the same bytes.

    Args:
        graph: its `inputs` and `outputs` name the tensors, its `size` is that of the image.
        path: the file to write; its folder must exist.

    Returns:
        The precision of what was written, which is asserted to be the graph's.

    Raises:
        ExportError: the graph cannot be written, or not in its precision.
    """
    examples = {
        "image": torch.zeros(2, graph.size, graph.size, 3, dtype=torch.uint8),
        "persona": torch.zeros(2, 1, dtype=torch.int32),
    }
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                graph.eval(),
                tuple(examples[name] for name in graph.inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=graph.inputs,
                output_names=graph.outputs,
                dynamic_shapes={name: {0: batch} for name in graph.inputs},
                verbose=False,
            )
        assert program is not None  # noqa: S101 - None only where dynamo=False
        model = program.model_proto
    except Exception as error:  # the exporter raises many kinds, some of them private
        raise ExportError(f"torch {torch.__version__} could not export this graph: {error}") from error
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    histogram = precision_histogram(model)
    half = dtype_of(graph.network) == torch.float16
    check_precision(histogram, "fp16" if half else "fp32")
    # onnxruntime names the TensorRT engines that it caches after the graph and not after its weights.
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    model.graph.name = f"{'_'.join(graph.outputs)}_{digest[:16]}"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return histogram


def precision_histogram(model: onnx.ModelProto) -> PrecisionHistogram:
    """Count initializers by type and the nodes that do the arithmetic by operator and the type that they compute in."""
    name_of = onnx.TensorProto.DataType.Name
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*inferred.value_info, *inferred.output]}
    compute: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        if node.op_type in _COMPUTE:
            kind = name_of(types[node.output[0]])
            if node.op_type == "LayerNormalization":
                stash = next((each.i for each in node.attribute if each.name == "stash_type"), onnx.TensorProto.FLOAT)
                kind += f", statistics in {name_of(stash)}"
            compute.setdefault(node.op_type, Counter())[kind] += 1
    return PrecisionHistogram(
        initializers=dict(sorted(Counter(name_of(tensor.data_type) for tensor in model.graph.initializer).items())),
        compute={operator: dict(counts) for operator, counts in sorted(compute.items())},
    )


def check_precision(histogram: PrecisionHistogram, precision: Precision) -> None:
    """Check that a graph has the requested precision: a file's name proves nothing.

    Raises:
        ExportError: a convolution or a layer norm's pixels are not in that precision; a norm's statistics, sampling or
            softmax are not in float32; or nothing promises that a half-precision norm's statistics are.
    """
    chosen = "FLOAT16" if precision == "fp16" else "FLOAT"
    wanted = dict.fromkeys(_IN_FLOAT, "FLOAT") | dict.fromkeys(_CONVOLUTIONS, chosen)
    wanted["LayerNormalization"] = f"{chosen}, statistics in FLOAT"
    if precision == "fp16":  # in half nothing is promised, and in float it would be all casts
        wanted["InstanceNormalization"] = "a LayerNormalization"
    for operator, counts in histogram["compute"].items():
        if operator in wanted and set(counts) != {wanted[operator]}:
            raise ExportError(f"the {precision} graph computes {operator} in {counts}, not all in {wanted[operator]}")


def _strip(model: onnx.ModelProto) -> None:
    """Drop names of the exporting machine's files and the exporter's notes: they reveal and they vary."""
    model.ClearField("metadata_props")
    model.graph.ClearField("metadata_props")
    model.graph.doc_string = model.doc_string = ""
    for item in [*model.graph.node, *model.graph.initializer, *model.graph.value_info]:
        item.ClearField("metadata_props")
        item.doc_string = ""
    for value in [*model.graph.input, *model.graph.output]:
        value.ClearField("metadata_props")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on itself and on absent libraries away from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
