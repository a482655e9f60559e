"""Requests and responses of the tensor contract, free of I/O. What a refusal means is in `statuses`.

`config.pbtxt` in the model repository is the authority; this module repeats names, types and shapes only, and a
test holds both against each other. Both clients, the synchronous and the asynchronous one, speak through these
functions. Connections and retries are in `client`.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from visard_errors import ServerRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

IMAGE_SIZE = 512
GENDERS = ("female", "male")  # the order of both gender tensors
DRAWN_BY_GRAPH = -1  # instead of a persona's number: for callers that send no choice of their own

Direction = Literal["opposite", "to_male", "to_female"]
ENSEMBLES: dict[Direction, str] = {
    "opposite": "anonymizer",
    "to_male": "anonymizer_to_male",
    "to_female": "anonymizer_to_female",
}
CLASSIFIER = "gender_classifier"
SMALL_CLASSIFIER = "gender_classifier_224"  # beside a router: for callers who ask for the direction first
SMALL_SIZE = 224
GENERATORS: dict[Direction, str] = {"to_male": "generator_to_male", "to_female": "generator_to_female"}
ENCODED_ENSEMBLES: dict[Direction, str] = {direction: f"encoded_{model}" for direction, model in ENSEMBLES.items()}

_NUMPY = {
    "UINT8": np.uint8,
    "INT32": np.int32,
    "FP32": np.float32,
    "BYTES": np.object_,
}  # BYTES is what configurations call STRING


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
_SMALL_IMAGE = TensorSpec("image", "UINT8", (SMALL_SIZE, SMALL_SIZE, 3))
_PERSONA = TensorSpec("persona", "INT32", (1,))
_SWAPPED = TensorSpec("swapped", "UINT8", (IMAGE_SIZE, IMAGE_SIZE, 3))
_GENDER = TensorSpec("gender", "FP32", (2,))
_SWAPPED_GENDER = TensorSpec("swapped_gender", "FP32", (2,))
_ENCODED_IMAGE = TensorSpec("encoded_image", "BYTES", (1,))
_ENCODED_SWAPPED = TensorSpec("encoded_swapped", "BYTES", (1,))

MODELS: Mapping[str, ModelSpec] = {
    "anonymizer": ModelSpec((_IMAGE, _PERSONA), (_SWAPPED, _GENDER, _SWAPPED_GENDER)),
    "anonymizer_to_male": ModelSpec((_IMAGE, _PERSONA), (_SWAPPED, _SWAPPED_GENDER)),
    "anonymizer_to_female": ModelSpec((_IMAGE, _PERSONA), (_SWAPPED, _SWAPPED_GENDER)),
    "gender_classifier": ModelSpec((_IMAGE,), (_GENDER,)),
    "generator_to_male": ModelSpec((_IMAGE, _PERSONA), (_SWAPPED,)),
    "generator_to_female": ModelSpec((_IMAGE, _PERSONA), (_SWAPPED,)),
}
# What a repository has besides where it was exported with `--encoded`.
ENCODED_MODELS: Mapping[str, ModelSpec] = {
    "encoded_anonymizer": ModelSpec((_ENCODED_IMAGE, _PERSONA), (_ENCODED_SWAPPED, _GENDER, _SWAPPED_GENDER)),
    "encoded_anonymizer_to_male": ModelSpec((_ENCODED_IMAGE, _PERSONA), (_ENCODED_SWAPPED, _SWAPPED_GENDER)),
    "encoded_anonymizer_to_female": ModelSpec((_ENCODED_IMAGE, _PERSONA), (_ENCODED_SWAPPED, _SWAPPED_GENDER)),
    "face_decoder": ModelSpec((_ENCODED_IMAGE,), (_IMAGE,)),
    "face_encoder": ModelSpec((_SWAPPED,), (_ENCODED_SWAPPED,)),
}
# What it has where `anonymizer` is an ensemble.
ROUTED_MODELS: Mapping[str, ModelSpec] = {SMALL_CLASSIFIER: ModelSpec((_SMALL_IMAGE,), (_GENDER,))}
_SPECS = {**MODELS, **ENCODED_MODELS, **ROUTED_MODELS}


# Of faces that travel as files: a tenth of the bytes for 0.7 grey levels, colours at full resolution.
_JPEG = {"quality": 95, "subsampling": 0}

# Where each tensor of one face lies in a region of shared memory, whichever ensemble it goes through. The persona is in
# the message: four bytes.
_REGION_OFFSETS = {"image": 0, "swapped": 786_432, "gender": 1_572_864, "swapped_gender": 1_572_928}
REGION_SIZE = 1_576_960  # whole pages of 4,096 bytes


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


def check_images(images: NDArray[np.uint8]) -> None:
    """Raise ValueError where `images` is not what every model's `image` takes, (N, 512, 512, 3) uint8."""
    if images.dtype != _NUMPY[_IMAGE.datatype] or images.shape[1:] != _IMAGE.shape or not len(images):
        raise ValueError(f"aligned faces must be (N, 512, 512, 3) uint8, got {images.shape} {images.dtype}")


def check_personas(personas: Sequence[int], faces: int) -> None:
    """Raise ValueError, which does not repeat them, where `personas` are not one number in −1..2³¹ − 1 per face."""
    if len(personas) != faces:
        raise ValueError(f"there are {faces} faces, not {len(personas)} personas")
    if not all(DRAWN_BY_GRAPH <= persona < 2**31 for persona in personas):
        raise ValueError("a persona is a number in 0..2³¹ − 1, or −1 to have the graph draw one")


def build_request(
    model: str,
    images: NDArray[np.uint8],
    personas: Sequence[int] | None = None,
    *,
    timeout_s: float | None = None,
    region: str | None = None,
) -> Any:
    """Write one inference request.

    Args:
        model: a key of `MODELS`.
        images: (N, 512, 512, 3) uint8 RGB; one image where a region is given.
        personas: which persona takes each face's place, see `check_personas`; by default the graph draws them. The
            classifier has none.
        timeout_s: how long the request may wait in the server's queues before it is rejected.
        region: name of shared memory that holds the image already (`write_region`) and will take the answer.

    Returns:
        `ModelInferRequest`, the tensors as raw bytes or, with a region, as references.

    Raises:
        ValueError: `images` has another shape or type, or `personas` are not what the model takes.
    """
    check_images(images)
    spec = _SPECS[model]
    request = _request(model, images.shape, timeout_s)
    if region is None:
        request.raw_input_contents.append(images.tobytes())
    else:
        for written, tensor in zip((request.inputs[0], *request.outputs), (_IMAGE, *spec.outputs), strict=True):
            written.parameters["shared_memory_region"].string_param = region
            written.parameters["shared_memory_offset"].int64_param = _REGION_OFFSETS[tensor.name]
            written.parameters["shared_memory_byte_size"].int64_param = _size(tensor.datatype, tensor.shape)
    _add_personas(request, personas, len(images))
    return request


def build_small_request(image: NDArray[np.uint8], *, timeout_s: float | None = None) -> Any:
    """Write the request that asks for the direction of a face, with a fifth of its bytes.

    Args:
        image: (1, 512, 512, 3) uint8 RGB.
        timeout_s: how long the request may wait in the server's queue before it is rejected.

    Returns:
        `ModelInferRequest` to `SMALL_CLASSIFIER`. Pillow resizes as the large classifier's graph does.

    Raises:
        ValueError: `image` has another shape or type.
    """
    from PIL import Image

    check_images(image)
    small = Image.fromarray(image[0]).resize((SMALL_SIZE, SMALL_SIZE), Image.Resampling.BILINEAR)
    request = _request(SMALL_CLASSIFIER, (1, *_SMALL_IMAGE.shape), timeout_s)
    request.raw_input_contents.append(small.tobytes())
    return request


def build_encoded_request(
    model: str, image: NDArray[np.uint8], persona: int = DRAWN_BY_GRAPH, *, timeout_s: float | None = None
) -> Any:
    """Write one inference request whose face travels as a JPEG file.

    Args:
        model: a value of `ENCODED_ENSEMBLES`.
        image: (1, 512, 512, 3) uint8 RGB.
        persona: which one takes its place, see `check_personas`.
        timeout_s: how long the request may wait in the server's queues before it is rejected.

    Returns:
        `ModelInferRequest`.

    Raises:
        ValueError: `image` has another shape or type, or `persona` is out of range.
    """
    from PIL import Image
    from tritonclient.utils import serialize_byte_tensor

    check_images(image)
    file = BytesIO()
    Image.fromarray(image[0]).save(file, "JPEG", **_JPEG)
    request = _request(model, (1, 1), timeout_s)
    request.raw_input_contents.append(serialize_byte_tensor(np.array([file.getvalue()], np.object_)).item())
    _add_personas(request, [persona], 1)
    return request


def parse_encoded_swap(model: str, response: Any) -> Swap:
    """Read the answer to `build_encoded_request`.

    Raises:
        ServerRefused: an output is missing or is not the contract's, the picture among them.
    """
    from PIL import Image

    tensors = parse_response(model, response)
    try:
        with Image.open(BytesIO(tensors["encoded_swapped"][0, 0]), formats=["JPEG"]) as picture:
            if picture.size != (IMAGE_SIZE, IMAGE_SIZE):  # before anything is decoded
                raise ValueError
            swapped = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError):  # whose words may quote the file
        raise ServerRefused(f"model '{model}' sent something else than a JPEG of {IMAGE_SIZE} pixels") from None
    return swap_of(tensors, swapped)


def opposite_of(gender: NDArray[np.float32]) -> Direction:
    """Say which way a face of (2,) probabilities (female, male) goes; a tie counts as female, as the router has it."""
    female, male = gender
    return "to_female" if male > female else "to_male"


def write_region(memory: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
    """Put one (512, 512, 3) uint8 image where a request with a region refers to it."""
    memory[: image.size] = image.reshape(-1)


def parse_response(model: str, response: Any, memory: NDArray[np.uint8] | None = None) -> dict[str, NDArray[Any]]:
    """Read the tensors of one `ModelInferResponse`.

    Args:
        model: which one answered.
        response: its answer.
        memory: the region of shared memory that the request named, with one image's tensors in it.

    Returns:
        Output name → read-only array of shape (N, …), a view of the response's own bytes or a copy from the region.

    Raises:
        ServerRefused: an output is missing, its type or shape is not the contract's, or a probability is none: a face
            whose gender is not known must not be guessed.
    """
    tensors: dict[str, NDArray[Any]] = {}
    if len(response.outputs) != len(response.raw_output_contents):
        raise ServerRefused(f"model '{model}' sent {len(response.outputs)} tensors with other contents")
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        expected = next((spec for spec in _SPECS[model].outputs if spec.name == tensor.name), None)
        if expected is None:
            continue
        if tensor.datatype != expected.datatype or tuple(tensor.shape[1:]) != expected.shape or not tensor.shape[0]:
            raise ServerRefused(_other_shape(model, expected, tensor.datatype, tuple(tensor.shape[1:])))
        if memory is not None:
            offset = _REGION_OFFSETS[tensor.name]
            raw = memory[offset : offset + _size(expected.datatype, expected.shape)].tobytes()
        if tensor.datatype == "BYTES":
            tensors[tensor.name] = _read_bytes(model, tensor, raw)
            continue
        if len(raw) != _size(tensor.datatype, tensor.shape):
            raise ServerRefused(f"model '{model}' sent {len(raw)} bytes for '{tensor.name}' {list(tensor.shape)}")
        values: NDArray[Any] = np.frombuffer(raw, _NUMPY[tensor.datatype]).reshape(tuple(tensor.shape))
        check_probabilities(model, tensor.name, values)
        tensors[tensor.name] = values
    missing = [spec.name for spec in _SPECS[model].outputs if spec.name not in tensors]
    if missing:
        raise ServerRefused(f"model '{model}' did not send {', '.join(missing)}; its repository needs a new export")
    return tensors


def parse_swap(model: str, response: Any, memory: NDArray[np.uint8] | None = None) -> Swap:
    """Read the answer of one of `ENSEMBLES` to a request of one image."""
    tensors = parse_response(model, response, memory)
    return swap_of(tensors, tensors["swapped"][0])


def swap_of(tensors: Mapping[str, NDArray[Any]], swapped: NDArray[np.uint8]) -> Swap:
    """Put the answer about one face together: its genders, and the picture."""
    gender = tensors.get("gender")
    return Swap(
        swapped=swapped,
        gender=None if gender is None else gender[0],
        swapped_gender=tensors["swapped_gender"][0],
    )


def check_metadata(model: str, metadata: Any) -> None:
    """Check a server's `ModelMetadataResponse` against the contract.

    Raises:
        ServerRefused: a tensor is missing or has another type or shape.
    """
    # The first dimension is the batch.
    inputs, outputs = (
        [TensorSpec(each.name, each.datatype, tuple(each.shape)[1:]) for each in tensors]
        for tensors in (metadata.inputs, metadata.outputs)
    )
    check_tensors(model, inputs, outputs)


def check_tensors(model: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Check what a model takes and gives against the contract.

    Raises:
        ServerRefused: a tensor is missing or has another type or shape.
    """
    for wanted, offered in ((_SPECS[model].inputs, inputs), (_SPECS[model].outputs, outputs)):
        by_name = {tensor.name: tensor for tensor in offered}
        for spec in wanted:
            tensor = by_name.get(spec.name)
            if tensor is None:
                raise ServerRefused(f"model '{model}' has no tensor '{spec.name}'; its repository needs a new export")
            if tensor != spec:
                raise ServerRefused(_other_shape(model, spec, tensor.datatype, tensor.shape))


def check_probabilities(model: str, name: str, values: NDArray[Any]) -> None:
    """Raise ServerRefused where a gender is no probability: a face whose gender is not known must not be guessed."""
    if values.dtype == np.float32 and not ((values >= 0) & (values <= 1)).all():  # so that NaN fails
        raise ServerRefused(f"model '{model}' sent no probabilities as '{name}': its weights are damaged")


def _read_bytes(model: str, tensor: Any, raw: bytes) -> NDArray[Any]:
    """Take the elements of a BYTES tensor apart."""
    from tritonclient.utils import deserialize_bytes_tensor

    try:
        elements: NDArray[Any] = deserialize_bytes_tensor(raw)
        return elements.reshape(tuple(tensor.shape))
    except (struct.error, ValueError) as error:
        raise ServerRefused(f"model '{model}' sent a damaged '{tensor.name}' {list(tensor.shape)}: {error}") from None


def _request(model: str, shape: Sequence[int], timeout_s: float | None) -> Any:
    """Name a model's first input, of a shape, and all its outputs; the bytes are still to come."""
    from tritonclient.grpc import service_pb2

    spec = _SPECS[model]
    given = spec.inputs[0]
    request = service_pb2.ModelInferRequest(
        model_name=model,
        inputs=[service_pb2.ModelInferRequest.InferInputTensor(name=given.name, datatype=given.datatype, shape=shape)],
        outputs=[service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=output.name) for output in spec.outputs],
    )
    if timeout_s is not None:
        request.parameters["timeout"].int64_param = int(timeout_s * 1e6)  # Triton counts in microseconds
    return request


def _add_personas(request: Any, personas: Sequence[int] | None, faces: int) -> None:
    """Add the second input, where the model has one; its bytes follow those of the first, if these are there."""
    if _PERSONA not in _SPECS[request.model_name].inputs:
        if personas is not None:
            raise ValueError(f"model '{request.model_name}' takes no personas")
        return
    personas = [DRAWN_BY_GRAPH] * faces if personas is None else personas
    check_personas(personas, faces)
    request.inputs.add(name=_PERSONA.name, datatype=_PERSONA.datatype, shape=(faces, 1))
    request.raw_input_contents.append(np.array(personas, _NUMPY[_PERSONA.datatype]).tobytes())


def _size(datatype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * np.dtype(_NUMPY[datatype]).itemsize


def _other_shape(model: str, spec: TensorSpec, datatype: str, shape: tuple[int, ...]) -> str:
    return (
        f"model '{model}' has '{spec.name}' as {datatype} {list(shape)}, this client needs "
        f"{spec.datatype} {list(spec.shape)}: export the models and update the client from the same version"
    )


def build_provenance_request() -> Any:
    """Write the request for the provenance of a server's models: plain inference, which every gateway lets through."""
    from tritonclient.grpc import service_pb2

    return service_pb2.ModelInferRequest(model_name="provenance")


def parse_provenance(response: Any) -> dict[str, dict[str, Any]]:
    """Read model name → provenance.

    Raises:
        ServerRefused: it is something else.
    """
    from tritonclient.utils import deserialize_bytes_tensor

    try:
        told = json.loads(deserialize_bytes_tensor(response.raw_output_contents[0])[0])
        return {str(model): dict(origin) for model, origin in told.items()}
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, struct.error):
        raise ServerRefused("the server's model 'provenance' sent something else than provenance") from None
