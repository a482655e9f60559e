"""The graph of dlib's face recogniser as an ONNX file without weights: these are read from dlib's own file.

`visard_preprocess/data/face_recogniser.onnx` is what this writes; it is written anew with

    python -m visard_testing.recogniser_graph
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from visard_preprocess.align import installed_model
from visard_preprocess.recogniser import GRAPH, WEIGHTS

# dlib's `serialize` for tensors (dlib/cuda/tensor.h): version 2, four sizes of one byte for their length and then so
# many bytes, and the values as little-endian float32. Before a layer's tensor stand its name and, where it is fully
# connected, 128 outputs and 256 inputs.
_LAYER = re.compile(rb"(con_4|affine_|fc_2\x01\x80\x02\x00\x01)\x01\x02")

# Red, green and blue that are taken off before pixels are divided by 256.
_MEAN, _SCALE = (122.782, 117.001, 104.298), 256.0

# Channels of a level, whether it begins with a block that halves the picture, and how many other blocks it has.
_LEVELS = ((32, False, 3), (64, True, 3), (128, True, 2), (256, True, 2), (256, True, 0))


def recogniser_graph(weights: bytes) -> onnx.ModelProto:
    """Write down the network of `anet_type` in dlib's example dnn_face_recognition_ex.cpp.

    Args:
        weights: dlib_face_recognition_resnet_model_v1.dat, to find each layer's numbers in it.

    Returns:
        `chips`, (N, 150, 150, 3) uint8 RGB, to `descriptors`, (N, 128) float32.
    """
    return _Network(weights).model()


def _tensors(weights: bytes) -> Iterator[tuple[int, int]]:
    """Offset and number of the values of each layer, from the picture on."""
    for layer in _LAYER.finditer(weights):
        at, count = layer.end(), 1
        for _ in range(4):
            length = weights[at]
            count *= int.from_bytes(weights[at + 1 : at + 1 + length], "little")
            at += 1 + length
        yield at, count


class _Network:
    def __init__(self, weights: bytes) -> None:
        self._tensors = _tensors(weights)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []

    def model(self) -> onnx.ModelProto:
        pixels = self._add("Transpose", self._add("Cast", "chips", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
        mean = self._constant(np.array(_MEAN, np.float32).reshape(1, 3, 1, 1))
        x = self._add("Div", self._add("Sub", pixels, mean), self._constant(np.array(_SCALE, np.float32)))
        x = self._add("Relu", self._convolve(x, 3, 32, edge=7, stride=2))
        x = self._add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
        size, channels = 35, 32
        for wide, halves, blocks in _LEVELS:
            if halves:
                x, size = self._halve(x, size, channels, wide)
                channels = wide
            for _ in range(blocks):
                x = self._add("Relu", self._add("Add", self._block(x, wide, wide, stride=1), x))
        x = self._add("Flatten", self._add("GlobalAveragePool", x))
        (last,) = self._read((256, 128))
        self._nodes.append(helper.make_node("MatMul", [x, last], ["descriptors"]))
        graph = helper.make_graph(
            self._nodes,
            "face_recogniser",
            [helper.make_tensor_value_info("chips", TensorProto.UINT8, ["faces", 150, 150, 3])],
            [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["faces", 128])],
            self._initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _halve(self, x: str, size: int, narrow: int, wide: int) -> tuple[str, int]:
        """A block of stride 2 beside the mean of 2×2 pixels; dlib adds tensors of other sizes as if padded by zeros."""
        through, beside = (size - 3) // 2 + 1, (size - 2) // 2 + 1
        size = max(through, beside)
        mean = self._add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        both = (
            self._pad(self._block(x, narrow, wide, stride=2), 0, size - through),
            self._pad(mean, wide - narrow, size - beside),
        )
        return self._add("Relu", self._add("Add", *both)), size

    def _block(self, x: str, narrow: int, wide: int, *, stride: int) -> str:
        first = self._add("Relu", self._convolve(x, narrow, wide, edge=3, stride=stride))
        return self._convolve(first, wide, wide, edge=3, stride=1)

    def _convolve(self, x: str, narrow: int, wide: int, *, edge: int, stride: int) -> str:
        """A convolution, which dlib pads where its stride is 1, and what became of its batch normalisation."""
        padding = edge // 2 if stride == 1 else 0
        filters, biases = self._read((wide, narrow, edge, edge), (wide,))
        x = self._add("Conv", x, filters, biases, strides=[stride] * 2, pads=[padding] * 4)
        gamma, beta = self._read((1, wide, 1, 1), (1, wide, 1, 1))
        return self._add("Add", self._add("Mul", x, gamma), beta)

    def _pad(self, x: str, channels: int, pixels: int) -> str:
        if not channels and not pixels:
            return x
        return self._add("Pad", x, self._constant(np.array([0, 0, 0, 0, 0, channels, pixels, pixels])))

    def _read(self, *shapes: tuple[int, ...]) -> list[str]:
        """Name the next layer's numbers, which its tensor holds one after the other."""
        offset, count = next(self._tensors)
        assert count == sum(map(math.prod, shapes)), (count, shapes)
        names = []
        for shape in shapes:
            names.append(f"weights_{len(self._initializers)}")
            tensor = TensorProto(
                name=names[-1], data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL
            )
            for key, value in (("location", WEIGHTS), ("offset", offset), ("length", 4 * math.prod(shape))):
                tensor.external_data.add(key=key, value=str(value))
            self._initializers.append(tensor)
            offset += 4 * math.prod(shape)
        return names

    def _constant(self, value: NDArray[np.generic]) -> str:
        self._initializers.append(numpy_helper.from_array(value, f"constant_{len(self._initializers)}"))
        return self._initializers[-1].name

    def _add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


def main() -> None:
    GRAPH.write_bytes(recogniser_graph(installed_model(WEIGHTS).read_bytes()).SerializeToString())


if __name__ == "__main__":
    main()
