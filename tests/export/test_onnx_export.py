"""The ONNX files: names, types, free batch, precision, and the same bytes every time."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from visard_errors import ExportError
from visard_export.graphs import build_graph
from visard_export.onnx import OPSET, check_precision, export_onnx, precision_histogram
from visard_testing.small_models import aligned_faces, small_network


def inputs(kind, faces):
    """What a graph of a kind takes."""
    personas = {} if kind == "classifier" else {"persona": np.arange(len(faces), dtype=np.int32)[:, None]}
    return {"image": faces, **personas}


KINDS = pytest.mark.parametrize("kind", ["classifier", "image", "persona"])
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "fp16"])


@KINDS
@PRECISIONS
def test_names_types_and_opset(onnx_files, kind, precision):
    model = onnx.load(onnx_files[kind, precision])
    (image, *rest), (output,) = model.graph.input, model.graph.output
    wanted = [(image, "image", onnx.TensorProto.UINT8, ["batch", 512, 512, 3])]
    if kind != "classifier":
        (persona,) = rest
        wanted.append((persona, "persona", onnx.TensorProto.INT32, ["batch", 1]))
    for tensor, name, elem_type, shape in wanted:
        dims = [dim.dim_param or dim.dim_value for dim in tensor.type.tensor_type.shape.dim]
        assert (tensor.name, tensor.type.tensor_type.elem_type, dims) == (name, elem_type, shape)
    assert output.name == ("gender" if kind == "classifier" else "swapped")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not model.functions


@KINDS
@PRECISIONS
def test_no_input_is_left_unused(onnx_files, kind, precision):
    # onnxruntime leaves it out of its engine and then finds that the cached profile, without it, is another one.
    graph = onnx.load(onnx_files[kind, precision]).graph
    asked = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.input} <= asked


@KINDS
@PRECISIONS
def test_batch_size_is_free(onnx_files, kind, precision):
    session = onnxruntime.InferenceSession(onnx_files[kind, precision], providers=["CPUExecutionProvider"])
    faces = np.concatenate([aligned_faces(), aligned_faces()[:1, ::-1]])
    together = session.run(None, inputs(kind, faces))[0]
    assert together.shape == ((3, 2) if kind == "classifier" else (3, 512, 512, 3))
    assert together.dtype == (np.float32 if kind == "classifier" else np.uint8)
    for i in range(3):
        alone = session.run(None, {name: each[i : i + 1] for name, each in inputs(kind, faces).items()})[0]
        np.testing.assert_allclose(alone[0].astype(float), together[i].astype(float), atol=1)
    assert not np.array_equal(together[0], together[1])


@KINDS
def test_fp32_is_fp32_everywhere(onnx_files, kind):
    histogram = precision_histogram(onnx.load(onnx_files[kind, "fp32"]))
    assert histogram["initializers"].get("FLOAT16", 0) == (kind == "persona")  # its atlas
    assert all(set(counts) == {"FLOAT"} for counts in histogram["compute"].values())


@pytest.mark.parametrize(("kind", "convolutions", "norms"), [("image", 6, 7), ("persona", 10, 7)])
def test_fp16_generator_computes_in_half_and_sums_in_float32(onnx_files, kind, convolutions, norms):
    model = onnx.load(onnx_files[kind, "fp16"])
    compute = precision_histogram(model)["compute"]
    assert compute["Conv"] == {"FLOAT16": convolutions}
    assert compute["ConvTranspose"] == {"FLOAT16": 2}
    assert compute["LayerNormalization"] == {"FLOAT16, statistics in FLOAT": norms}
    assert "InstanceNormalization" not in compute
    if kind == "persona":
        assert compute["GridSample"] == {"FLOAT": 2}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    weights = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(weights) == convolutions + 2
    assert {types[weight] for weight in weights} == {onnx.TensorProto.FLOAT16}


def test_fp16_norm_adds_up_what_half_cannot_hold(onnx_files):
    graph = onnx.load(onnx_files["image", "fp16"]).graph
    norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
    pixels = (1, 2, 512, 512)
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, pixels) for name in (norm.input[0], "y"))
    norm.output[0] = "y"
    scale = [tensor for tensor in graph.initializer if tensor.name == norm.input[1]]
    opset = helper.make_opsetid("", OPSET)
    alone = helper.make_model(helper.make_graph([norm], "norm", [x], [y], scale), opset_imports=[opset], ir_version=10)
    noise = np.random.default_rng(0).standard_normal(pixels)
    photo = (300 + noise * np.array([1, 30]).reshape(1, 2, 1, 1)).astype(np.float16)  # a flat channel and a lively one
    with np.errstate(over="ignore"):
        assert np.isinf(photo.sum((2, 3), dtype=np.float16)).all()
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {norm.input[0]: photo})
    exact = photo.astype(np.float64)
    exact -= exact.mean((2, 3), keepdims=True)
    exact /= np.sqrt((exact**2).mean((2, 3), keepdims=True) + 1e-5)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float64), exact, atol=4e-3)  # half rounds to 2e-3 between 4 and 8


def test_fp16_classifier_resizes_and_decides_in_float32(onnx_files):
    compute = precision_histogram(onnx.load(onnx_files["classifier", "fp16"]))["compute"]
    assert compute["Conv"] == {"FLOAT16": 20}
    assert compute["Gemm"] == {"FLOAT16": 1}
    assert compute["MatMul"] == {"FLOAT": 2}
    assert compute["Softmax"] == {"FLOAT": 1}


@pytest.mark.parametrize(("really", "called"), [("fp32", "fp16"), ("fp16", "fp32")])
@KINDS
def test_precision_is_not_taken_on_trust(onnx_files, kind, really, called):
    with pytest.raises(ExportError, match=f"the {called} graph computes Conv in"):
        check_precision(precision_histogram(onnx.load(onnx_files[kind, really])), called)


@pytest.mark.parametrize("kind", ["image", "persona"])
def test_fp16_norms_stand_between_no_casts(onnx_files, kind):
    graph = onnx.load(onnx_files[kind, "fp16"]).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert norms
    assert {made_by[norm.input[0]] for norm in norms} == {"Conv", "ConvTranspose"}
    normed = {norm.output[0] for norm in norms}
    assert not [node for node in graph.node if node.op_type == "Cast" and normed & {*node.input}]


@pytest.mark.parametrize(
    ("precision", "operator", "counts"),
    [
        ("fp16", "LayerNormalization", {"FLOAT16, statistics in FLOAT": 2, "FLOAT16, statistics in FLOAT16": 1}),
        ("fp16", "LayerNormalization", {"FLOAT, statistics in FLOAT": 3}),  # twice the bytes
        ("fp16", "InstanceNormalization", {"FLOAT16": 3}),  # statistics in what the runtime likes
        ("fp16", "InstanceNormalization", {"FLOAT": 3}),
        ("fp32", "LayerNormalization", {"FLOAT16, statistics in FLOAT": 3}),
        ("fp32", "InstanceNormalization", {"FLOAT": 2, "FLOAT16": 1}),
    ],
)
def test_other_norms_are_refused(precision, operator, counts):
    with pytest.raises(ExportError, match=f"the {precision} graph computes {operator} in"):
        check_precision({"initializers": {}, "compute": {operator: counts}}, precision)


def test_statistics_of_a_norm_are_read_off_the_node(onnx_files):
    model = onnx.load(onnx_files["image", "fp16"])
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    stash = next(attribute for attribute in norm.attribute if attribute.name == "stash_type")
    stash.i = onnx.TensorProto.FLOAT16
    with pytest.raises(ExportError, match="statistics in FLOAT16"):
        check_precision(precision_histogram(model), "fp16")
    norm.attribute.remove(stash)  # FLOAT is what ONNX takes where nothing is said
    check_precision(precision_histogram(model), "fp16")


@KINDS
@PRECISIONS
def test_uint8_is_only_cast(onnx_files, kind, precision):
    # TensorRT has uint8 at the borders of a network and nowhere inside.
    model = onnx.shape_inference.infer_shapes(onnx.load(onnx_files[kind, precision]))
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    bytes_ = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    assert bytes_ == ({"image"} if kind == "classifier" else {"image", "swapped"})
    touching = [node for node in graph.node if bytes_ & {*node.input, *node.output}]
    assert {node.op_type for node in touching} == {"Cast"}


def test_same_graph_gives_the_same_bytes(onnx_files, tmp_path):
    export_onnx(build_graph(small_network("persona"), "fp16"), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == onnx_files["persona", "fp16"].read_bytes()


def test_engines_of_other_weights_are_cached_under_another_name(onnx_files, tmp_path):
    network = small_network("persona")
    network.trunk.model[1].bias.data[0] += 1
    export_onnx(build_graph(network), tmp_path / "other.onnx")
    assert onnx.load(tmp_path / "other.onnx").graph.name != onnx.load(onnx_files["persona", "fp32"]).graph.name


@KINDS
def test_nothing_about_the_exporting_machine_is_told(onnx_files, kind):
    content = onnx_files[kind, "fp32"].read_bytes()
    for trace in (str(Path(__file__).parents[2]).encode(), b"site-packages", b".py", b"stack_trace"):
        assert trace not in content


def test_export_is_silent(tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        export_onnx(build_graph(small_network("image")), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
