"""What the stage benchmark computes: operations of graphs, rates and ceilings."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from visard import Client
from visard_benchmarks.flops import count_flops, flops_by_node_type
from visard_benchmarks.rates import rate_of
from visard_benchmarks.stages import Stage, ceiling_of_stages, client_costs


def graph(nodes, inputs, weights):
    """A model of which only the shapes matter; its last node's output is its output."""
    made = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_convolution_by_hand():
    conv = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1])
    model = graph([conv], {"x": ["N", 3, 8, 8]}, {"w": (5, 3, 3, 3)})
    # 5 channels of 4×4 values, each 27 multiplications and 27 additions
    assert count_flops(model) == 5 * 16 * 27 * 2
    assert count_flops(model, batch=4) == 4 * 5 * 16 * 27 * 2


def test_groups_share_the_input_channels():
    conv = helper.make_node("Conv", ["x", "w"], ["y"], group=3)
    assert count_flops(graph([conv], {"x": [1, 3, 8, 8]}, {"w": (3, 1, 3, 3)})) == 3 * 36 * 9 * 2


def test_a_transposed_convolution_spreads_its_input():
    up = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
    # 4 channels of 8×8 values, each times 2 channels of 3×3
    assert count_flops(graph([up], {"x": [1, 4, 8, 8]}, {"w": (4, 2, 3, 3)})) == 4 * 64 * 18 * 2


def test_matrix_products_behind_nodes_that_only_move_values():
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("Transpose", ["positive"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["turned", "w"], ["product"]),
    ]
    model = graph(nodes, {"x": ["N", 7, 6]}, {"w": (7, 5)})
    assert flops_by_node_type(model, batch=2) == {"MatMul": 2 * 6 * 5 * 7 * 2}
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)
    assert count_flops(graph([gemm], {"x": [7, 6]}, {"w": (7, 5)})) == 6 * 5 * 7 * 2


def test_a_shape_that_cannot_be_told_is_an_error():
    nodes = [
        helper.make_node("NonZero", ["x"], ["indices"]),
        helper.make_node("Cast", ["indices"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "w"], ["y"]),
    ]
    with pytest.raises(ValueError, match="cannot be inferred"):
        count_flops(graph(nodes, {"x": [4, 4]}, {"w": (7, 5)}))


def test_the_published_generator_takes_435_gflop_per_face():
    """pix2pixHD with 64 channels at 512²: its convolutions' shapes, without its 182 million weights."""
    inputs = {"x": ["N", 3, 512, 512]}
    nodes = []

    def add(kind, shape, **attributes):
        index = len(nodes)
        inputs[f"w{index}"] = shape
        nodes.append(
            helper.make_node(kind, [f"y{index - 1}" if index else "x", f"w{index}"], [f"y{index}"], **attributes)
        )

    add("Conv", (64, 3, 7, 7), pads=[3] * 4)
    for channels in (64, 128, 256, 512):
        add("Conv", (2 * channels, channels, 3, 3), pads=[1] * 4, strides=[2, 2])
    for _ in range(2 * 9):
        add("Conv", (1024, 1024, 3, 3), pads=[1] * 4)
    for channels in (512, 256, 128, 64):
        add("ConvTranspose", (2 * channels, channels, 3, 3), pads=[1] * 4, strides=[2, 2], output_padding=[1, 1])
    add("Conv", (3, 64, 7, 7), pads=[3] * 4)

    assert count_flops(graph(nodes, inputs, {})) == pytest.approx(435e9, rel=0.001)


def test_a_rate_counts_the_calls_of_all_threads():
    threads = set()

    def work():
        threads.add(threading.get_ident())
        time.sleep(0.001)

    rate = rate_of(work, 0.2, workers=3)
    assert len(threads) == 3
    assert 0 < rate <= 3 / 0.001  # three threads that sleep a millisecond each can do no more


def test_a_stage_that_fails_ends_the_measurement():
    def work():
        raise RuntimeError("no face")

    with pytest.raises(RuntimeError, match="no face"):
        rate_of(work, 5, workers=2)


def test_ceilings_of_a_chain():
    slowest, together = ceiling_of_stages([10, 20, 20])
    assert slowest == 10
    assert together == pytest.approx(5)  # 100 + 50 + 50 ms of the same cores


def test_a_share_compares_what_was_measured_together():
    stage = Stage(name="decode", ceiling="libjpeg", rates=[50, 10, 45], ceilings=[100, 20, 100])
    assert stage.rate == 45
    assert stage.share == 0.5  # the slow minute slowed both


def test_what_a_photo_costs_the_client(tiny_server, astronaut):
    with Client(tiny_server.grpc_url) as client:
        costs = client_costs(astronaut.read_bytes(), client, 1)
    assert costs.pop("faces") == 1
    assert list(costs) == ["decode", "find", "align", "wire", "score", "identity", "blend", "encode", "limit"]
    assert min(costs.values()) > 0
