"""Triton's gRPC with grpcio alone: the two messages of an inference, encoded by hand.

The numbers of the fields are those of `grpc_service.proto` of the KServe protocol, version 2, which Triton extends by
raw contents.
"""

from __future__ import annotations

from collections.abc import Sequence

METHOD = "/inference.GRPCInferenceService/ModelInfer"
_MODEL_NAME, _INPUTS, _OUTPUTS, _RAW_INPUT = 1, 5, 6, 7  # of a request
_NAME, _DATATYPE, _SHAPE = 1, 2, 3  # of an input; an output has a name
_RAW_OUTPUT = 6  # of an answer
_BYTES = 2  # the wire type of strings, messages and packed numbers; answers have no other, nor do requests


def request(
    model: str, inputs: Sequence[tuple[str, str, Sequence[int]]], outputs: Sequence[str], contents: Sequence[bytes]
) -> bytes:
    """Encode a request.

    Args:
        model: its name.
        inputs: name, datatype and shape of each.
        outputs: names of those that are wanted.
        contents: bytes of each input.
    """
    parts = [_field(_MODEL_NAME, model.encode())]
    for name, datatype, shape in inputs:
        fields = (_NAME, name.encode()), (_DATATYPE, datatype.encode()), (_SHAPE, b"".join(map(_varint, shape)))
        parts.append(_field(_INPUTS, b"".join(_field(number, data) for number, data in fields)))
    parts += [_field(_OUTPUTS, _field(_NAME, name.encode())) for name in outputs]
    parts += [_field(_RAW_INPUT, each) for each in contents]
    return b"".join(parts)


def first_output(answer: bytes) -> memoryview:
    """Find the raw contents of an answer's first output."""
    view, at = memoryview(answer), 0
    while at < len(view):
        tag, at = _read_varint(view, at)
        length, at = _read_varint(view, at)
        if tag == _RAW_OUTPUT << 3 | _BYTES:
            return view[at : at + length]
        at += length
    raise ValueError("an answer without raw contents")


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the eighth set."""
    coded = bytearray()
    while value > 127:
        coded.append(value & 127 | 128)
        value >>= 7
    return bytes([*coded, value])


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
