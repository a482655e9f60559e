"""Requests and responses of the tensor contract, free of I/O.

`config.pbtxt` in the model repository is the authority; this module repeats names, types and shapes only, and a
test holds both against each other. Both clients, the synchronous and the asynchronous one, speak through these
functions. It knows nothing about photographs, connections or retries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from visard_errors import (
    DeadlineExceeded,
    Overloaded,
    PermissionDenied,
    ServerRefused,
    ServerUnavailable,
    VisardError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE_SIZE = 512
GENDERS = ("female", "male")  # the order of both gender tensors

Direction = Literal["opposite", "to_male", "to_female"]
ENSEMBLES: dict[Direction, str] = {
    "opposite": "anonymizer",
    "to_male": "anonymizer_to_male",
    "to_female": "anonymizer_to_female",
}

_NUMPY = {"UINT8": np.uint8, "FP32": np.float32, "BYTES": np.object_}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the contract: name, Triton data type and shape without the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """The inputs and outputs of one served model, in the order of its configuration."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


_IMAGE = TensorSpec("image", "UINT8", (IMAGE_SIZE, IMAGE_SIZE, 3))
_SWAPPED = TensorSpec("swapped", "UINT8", (IMAGE_SIZE, IMAGE_SIZE, 3))
_GENDER = TensorSpec("gender", "FP32", (2,))
_SWAPPED_GENDER = TensorSpec("swapped_gender", "FP32", (2,))

MODELS: Mapping[str, ModelSpec] = {
    "anonymizer": ModelSpec((_IMAGE,), (_SWAPPED, _GENDER, _SWAPPED_GENDER)),
    "anonymizer_to_male": ModelSpec((_IMAGE,), (_SWAPPED, _SWAPPED_GENDER)),
    "anonymizer_to_female": ModelSpec((_IMAGE,), (_SWAPPED, _SWAPPED_GENDER)),
    "gender_classifier": ModelSpec((_IMAGE,), (_GENDER,)),
    "gender_router": ModelSpec((_IMAGE, _GENDER), (_SWAPPED,)),
    "generator_to_male": ModelSpec((_IMAGE,), (_SWAPPED,)),
    "generator_to_female": ModelSpec((_IMAGE,), (_SWAPPED,)),
}


@dataclass(frozen=True, eq=False)
class Swap:
    """What the server says about one aligned face.

    Attributes:
        swapped: (512, 512, 3) uint8 RGB, the generated face.
        gender: (2,) float32 probabilities (female, male) of the aligned face; None where the caller gave the direction.
        swapped_gender: (2,) float32 probabilities (female, male) of the generated face.
    """

    swapped: NDArray[np.uint8]
    gender: NDArray[np.float32] | None
    swapped_gender: NDArray[np.float32]


def build_request(model: str, images: NDArray[np.uint8], *, timeout_s: float | None = None) -> Any:
    """Write one inference request.

    Args:
        model: a key of `MODELS` whose only input is `image`.
        images: (N, 512, 512, 3) uint8 RGB.
        timeout_s: how long the request may wait in the server's queues before it is rejected.

    Returns:
        `ModelInferRequest`, the tensors as raw bytes.

    Raises:
        ValueError: `images` has another shape or type.
    """
    from tritonclient.grpc import service_pb2

    spec = MODELS[model]
    (image,) = spec.inputs
    if images.dtype != _NUMPY[image.datatype] or images.shape[1:] != image.shape or not len(images):
        raise ValueError(f"aligned faces must be (N, 512, 512, 3) uint8, got {images.shape} {images.dtype}")
    request = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(name=image.name, datatype=image.datatype, shape=images.shape)
        ],
        outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=output.name) for output in spec.outputs],
        raw_input_contents=[images.tobytes()],
    )
    if timeout_s is not None:
        request.parameters["timeout"].int64_param = int(timeout_s * 1e6)  # Triton counts in microseconds
    return request


def parse_response(model: str, response: Any) -> dict[str, NDArray[Any]]:
    """Read the tensors of one `ModelInferResponse`.

    Returns:
        Output name → read-only array of shape (N, …), a view of the response's own bytes.

    Raises:
        ServerRefused: an output is missing, or its type or shape is not the contract's.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        expected = next((spec for spec in MODELS[model].outputs if spec.name == tensor.name), None)
        if expected is None:
            continue
        if tensor.datatype != expected.datatype or tuple(tensor.shape[1:]) != expected.shape:
            raise ServerRefused(_other_shape(model, expected, tensor.datatype, tuple(tensor.shape[1:])))
        dtype = np.dtype(_NUMPY[tensor.datatype])
        if len(raw) != int(np.prod(tensor.shape)) * dtype.itemsize:
            raise ServerRefused(f"model '{model}' sent {len(raw)} bytes for '{tensor.name}' {list(tensor.shape)}")
        tensors[tensor.name] = np.frombuffer(raw, dtype).reshape(tuple(tensor.shape))
    missing = [spec.name for spec in MODELS[model].outputs if spec.name not in tensors]
    if missing:
        raise ServerRefused(f"model '{model}' did not send {', '.join(missing)}; its repository needs a new export")
    return tensors


def parse_swap(model: str, response: Any) -> Swap:
    """Read the answer of one of `ENSEMBLES` to a request of one image."""
    tensors = parse_response(model, response)
    gender = tensors.get("gender")
    return Swap(
        swapped=tensors["swapped"][0],
        gender=None if gender is None else gender[0],
        swapped_gender=tensors["swapped_gender"][0],
    )


def check_metadata(model: str, metadata: Any) -> None:
    """Hold a server's `ModelMetadataResponse` against the contract.

    Raises:
        ServerRefused: a tensor is missing or has another type or shape.
    """
    for wanted, offered in ((MODELS[model].inputs, metadata.inputs), (MODELS[model].outputs, metadata.outputs)):
        by_name = {tensor.name: tensor for tensor in offered}
        for spec in wanted:
            tensor = by_name.get(spec.name)
            if tensor is None:
                raise ServerRefused(f"model '{model}' has no tensor '{spec.name}'; its repository needs a new export")
            shape = tuple(tensor.shape)[1:]  # the first dimension is the batch
            if (tensor.datatype, shape) != (spec.datatype, spec.shape):
                raise ServerRefused(_other_shape(model, spec, tensor.datatype, shape))


def _other_shape(model: str, spec: TensorSpec, datatype: str, shape: tuple[int, ...]) -> str:
    return (
        f"model '{model}' has '{spec.name}' as {datatype} {list(shape)}, this client needs "
        f"{spec.datatype} {list(spec.shape)}: export the models and update the client from the same version"
    )


def build_passports_request() -> Any:
    """Write the request for the passports of a server's models: plain inference, which every gateway lets through."""
    from tritonclient.grpc import service_pb2

    return service_pb2.ModelInferRequest(model_name="passport")


def parse_passports(response: Any) -> dict[str, dict[str, Any]]:
    """Read model name → passport."""
    raw = response.raw_output_contents[0]
    return dict(json.loads(raw[4:]))  # BYTES: a little-endian length of four bytes before the only element


# Triton's own words for a full queue and for a request that waited too long in one; both arrive as UNAVAILABLE.
_OVERLOAD_WORDS = ("maximum queue size", "request timeout expired")
_MISSING_MODEL_WORDS = ("unknown model", "is not found", "is not ready", "has no available versions")
_DETAILS_LIMIT = 300  # a proxy may answer with a whole page


def error_from_status(status: str, details: str, url: str) -> VisardError:
    """Translate a gRPC status into the error that says what the caller does next.

    Args:
        status: name of the `grpc.StatusCode`, such as ``UNAVAILABLE``.
        details: the server's or the transport's explanation.
        url: the server's address, for the message.
    """
    details = details[:_DETAILS_LIMIT]
    words = details.lower()
    if any(phrase in words for phrase in _OVERLOAD_WORDS):
        return Overloaded(f"the server at {url} has a full queue ({details}): retry later or send less at once")
    if any(phrase in words for phrase in _MISSING_MODEL_WORDS):
        return ServerRefused(f"the server at {url} lacks a model: {details}. Its operator has to export and load it")
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "protocol is restricted" in words:
        return PermissionDenied(f"the server at {url} rejected the credentials ({details}): check the token")
    if status == "RESOURCE_EXHAUSTED":
        return Overloaded(f"the server at {url} is limiting requests ({details}): retry later or send less at once")
    if status == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"no answer from {url} within the deadline: allow more time or send less at once")
    if status in ("UNAVAILABLE", "CANCELLED"):
        return ServerUnavailable(f"no server answers at {url} ({details}): is it running? `visard serve` starts one")
    return ServerRefused(f"the server at {url} refused the request ({status}: {details}): tell its operator")
