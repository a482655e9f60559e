"""Requests, responses and statuses without a server."""

import math
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2

from visard import statuses, wire
from visard_errors import (
    DeadlineExceeded,
    Overloaded,
    PermissionDenied,
    ServerRefused,
    ServerUnavailable,
)


def image_batch(n=1):
    return np.random.default_rng(n).integers(0, 256, (n, 512, 512, 3), dtype=np.uint8)


def answer(model="anonymizer", **changes):
    """A response as Triton writes it; `changes` replaces tensors by name."""
    image = image_batch()
    tensors = {
        "swapped": image,
        "gender": np.array([[0.9, 0.1]], np.float32),
        "swapped_gender": np.array([[0.2, 0.8]], np.float32),
    } | changes
    names = [spec.name for spec in wire.MODELS[model].outputs if tensors[spec.name] is not None]
    return service_pb2.ModelInferResponse(
        model_name=model,
        outputs=[
            service_pb2.ModelInferResponse.InferOutputTensor(
                name=name,
                datatype={"u": "UINT8", "f": "FP32"}[tensors[name].dtype.kind],
                shape=tensors[name].shape,
            )
            for name in names
        ],
        raw_output_contents=[tensors[name].tobytes() for name in names],
    )


def test_request_carries_the_pixels_and_asks_for_every_output():
    images = image_batch(2)
    request = wire.build_request("anonymizer", images, timeout_s=1.5)
    assert np.array_equal(np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(images.shape), images)
    assert list(request.inputs[0].shape) == [2, 512, 512, 3]
    assert [output.name for output in request.outputs] == ["swapped", "gender", "swapped_gender"]
    assert request.parameters["timeout"].int64_param == 1_500_000


@pytest.mark.parametrize("name", ["gender", "swapped_gender"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_a_gender_that_is_no_probability_is_not_guessed(name, value):
    wire.parse_swap("anonymizer", answer(**{name: np.array([[0.0, 1.0]], np.float32)}))
    with pytest.raises(ServerRefused, match=f"no probabilities as '{name}'"):
        wire.parse_swap("anonymizer", answer(**{name: np.array([[0.5, value]], np.float32)}))


def sent_personas(request):
    """The numbers of a request, as a server reads them: the last of its raw tensors."""
    tensor = request.inputs[-1]
    assert (tensor.name, tensor.datatype) == ("persona", "INT32")
    return np.frombuffer(request.raw_input_contents[-1], "<i4").reshape(tuple(tensor.shape))[:, 0].tolist()


@pytest.mark.parametrize("region", [None, "visard-0"])
def test_request_carries_the_personas(region):
    request = wire.build_request("anonymizer", image_batch(), [2**31 - 1], region=region)
    assert sent_personas(request) == [2**31 - 1]
    assert sent_personas(wire.build_request("generator_to_male", image_batch(3), [0, 5, 2**30])) == [0, 5, 2**30]
    assert sent_personas(wire.build_request("anonymizer", image_batch(2))) == [-1, -1]  # the graph draws


def test_encoded_request_carries_the_persona():
    assert sent_personas(wire.build_encoded_request("encoded_anonymizer_to_male", image_batch(), 77)) == [77]
    assert sent_personas(wire.build_encoded_request("encoded_anonymizer", image_batch())) == [-1]


@pytest.mark.parametrize("personas", [[], [31337, 31337], [2**31 + 31337], [-31337]])
def test_request_refuses_personas_that_do_not_fit_and_does_not_repeat_them(personas):
    with pytest.raises(ValueError, match="persona") as refused:
        wire.build_request("anonymizer", image_batch(), personas)
    assert "31337" not in str(refused.value)


def test_a_classifier_has_no_persona():
    assert [tensor.name for tensor in wire.build_request("gender_classifier", image_batch()).inputs] == ["image"]
    with pytest.raises(ValueError, match="takes no personas"):
        wire.build_request("gender_classifier", image_batch(), [1])


def metadata(model, **changes):
    """What Triton says of a model; `changes` replaces tensors by name, None leaves one out."""
    spec = wire.MODELS[model]
    answer = service_pb2.ModelMetadataResponse(name=model)
    for tensors, written in ((spec.inputs, answer.inputs), (spec.outputs, answer.outputs)):
        for tensor in (changes.get(spec.name, spec) for spec in tensors):
            if tensor is not None:
                written.add(name=tensor.name, datatype=tensor.datatype, shape=(-1, *tensor.shape))
    return answer


def test_a_server_from_before_the_personas_needs_a_new_export():
    wire.check_metadata("anonymizer", metadata("anonymizer"))
    with pytest.raises(ServerRefused, match="'anonymizer' has no tensor 'persona'; its repository needs a new export"):
        wire.check_metadata("anonymizer", metadata("anonymizer", persona=None))
    with pytest.raises(ServerRefused, match=r"INT64 \[1\], this client needs INT32 \[1\]"):
        wire.check_metadata("anonymizer", metadata("anonymizer", persona=wire.TensorSpec("persona", "INT64", (1,))))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 256, 256, 3), np.uint8),
        np.zeros((1, 512, 512, 3), np.float32),
        np.zeros((0, 512, 512, 3), np.uint8),
        np.zeros((512, 512, 3), np.uint8),
    ],
)
def test_request_refuses_what_the_contract_does_not_know(images):
    with pytest.raises(ValueError, match="512"):
        wire.build_request("anonymizer", images)


def test_swap_is_read_from_the_answer():
    swap = wire.parse_swap("anonymizer", answer())
    assert np.array_equal(swap.swapped, image_batch()[0])
    assert swap.gender.tolist() == pytest.approx([0.9, 0.1])
    assert swap.swapped_gender.tolist() == pytest.approx([0.2, 0.8])


def test_swap_in_a_given_direction_has_no_gender_before():
    assert wire.parse_swap("anonymizer_to_male", answer("anonymizer_to_male")).gender is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"swapped": np.zeros((1, 256, 256, 3), np.uint8)}, "256"),
        ({"gender": np.zeros((1, 2), np.uint8)}, "UINT8"),
        ({"swapped_gender": None}, "did not send swapped_gender"),
    ],
)
def test_answer_of_another_shape_is_refused(changes, words):
    with pytest.raises(ServerRefused, match=words):
        wire.parse_swap("anonymizer", answer(**changes))


def bytes_tensor(*elements):
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def jpeg(size=512, format="JPEG"):
    file = BytesIO()
    Image.new("RGB", (size, size), (200, 100, 50)).save(file, format)
    return file.getvalue()


def encoded_answer(raw):
    genders = {"gender": [[0.9, 0.1]], "swapped_gender": [[0.2, 0.8]]}
    response = service_pb2.ModelInferResponse(model_name="encoded_anonymizer")
    response.outputs.add(name="encoded_swapped", datatype="BYTES", shape=(1, 1))
    response.raw_output_contents.append(raw)
    for name, values in genders.items():
        response.outputs.add(name=name, datatype="FP32", shape=(1, 2))
        response.raw_output_contents.append(np.array(values, np.float32).tobytes())
    return response


def test_encoded_request_carries_a_file_and_asks_for_every_output():
    image = np.full((1, 512, 512, 3), 90, np.uint8)
    request = wire.build_encoded_request("encoded_anonymizer", image, timeout_s=1.5)
    raw, _ = request.raw_input_contents
    picture = Image.open(BytesIO(raw[4:]))
    assert int.from_bytes(raw[:4], "little") == len(raw) - 4
    assert (picture.format, picture.size) == ("JPEG", (512, 512))
    assert [output.name for output in request.outputs] == ["encoded_swapped", "gender", "swapped_gender"]
    assert request.parameters["timeout"].int64_param == 1_500_000
    with pytest.raises(ValueError, match="512"):
        wire.build_encoded_request("encoded_anonymizer", np.zeros((1, 256, 256, 3), np.uint8))


def test_encoded_swap_is_read_from_the_answer():
    swap = wire.parse_encoded_swap("encoded_anonymizer", encoded_answer(bytes_tensor(jpeg())))
    assert swap.swapped.shape == (512, 512, 3)
    assert np.abs(swap.swapped.reshape(-1, 3).mean(0) - (200, 100, 50)).max() < 2
    assert swap.gender.tolist() == pytest.approx([0.9, 0.1])
    assert swap.swapped_gender.tolist() == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (bytes_tensor(jpeg(500)), "something else than a JPEG of 512"),
        (bytes_tensor(jpeg(format="PNG")), "something else"),
        (bytes_tensor(jpeg()[:-500]), "something else"),
        (bytes_tensor(b""), "something else"),
        (bytes_tensor(), "damaged"),
        (bytes_tensor(jpeg(), jpeg()), "damaged"),
        (bytes_tensor(jpeg())[:-1], "damaged"),
        (bytes_tensor(jpeg()) + b"x", "damaged"),
        (b"\xff\xff\xff\xff" + jpeg(), "damaged"),
    ],
)
def test_encoded_answer_that_is_no_picture_is_refused(raw, words):
    with pytest.raises(ServerRefused, match=words):
        wire.parse_encoded_swap("encoded_anonymizer", encoded_answer(raw))


def test_answer_with_missing_bytes_is_refused():
    response = answer()
    response.raw_output_contents[0] = response.raw_output_contents[0][:-1]
    with pytest.raises(ServerRefused, match="bytes"):
        wire.parse_swap("anonymizer", response)


@pytest.mark.parametrize(
    ("status", "details", "error"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", ServerUnavailable),
        ("UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", Overloaded),
        ("INTERNAL", "in ensemble 'anonymizer', Exceeds maximum queue size", Overloaded),
        ("UNAVAILABLE", "Request timeout expired", Overloaded),
        ("RESOURCE_EXHAUSTED", "rate limit", Overloaded),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", ServerRefused),
        ("INTERNAL", "Received RST_STREAM with error code 2", ServerUnavailable),
        ("UNAVAILABLE", "x" * 300 + " CERTIFICATE_VERIFY_FAILED: certificate has expired", ServerRefused),
        ("UNAVAILABLE", "Tls handshake failed: WRONG_VERSION_NUMBER", ServerRefused),
        ("UNAVAILABLE", "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame)", ServerRefused),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        ("UNAUTHENTICATED", "no token", PermissionDenied),
        ("PERMISSION_DENIED", "", PermissionDenied),
        ("UNAVAILABLE", "This protocol is restricted, expecting header", PermissionDenied),
        ("UNAVAILABLE", "Request for unknown model: 'anonymizer' is not found", ServerRefused),
        ("NOT_FOUND", "Request for unknown model: 'anonymizer' has no available versions", ServerRefused),
        ("INVALID_ARGUMENT", "unexpected shape", ServerRefused),
        ("INTERNAL", "onnxruntime failed", ServerRefused),
    ],
)
def test_status_becomes_the_error_that_says_what_to_do(status, details, error):
    translated = statuses.error_from_status(status, details, "host:8001")
    assert type(translated) is error
    assert "host:8001" in str(translated)


@pytest.mark.parametrize(
    ("metadata", "seconds"),
    [
        ((), 0),
        ((("grpc-retry-pushback-ms", "250"),), 0.25),
        ((("grpc-retry-pushback-ms", "-1"),), math.inf),
        ((("grpc-retry-pushback-ms", "9" * 5000),), math.inf),
    ],
)
def test_the_pause_that_a_server_asks_for(metadata, seconds):
    assert statuses.parse_retry_after_s(metadata) == seconds


def test_a_proxys_page_is_cut():
    assert len(str(statuses.error_from_status("INTERNAL", "<html>" * 1000, "host:1"))) < 500


# --- found by `make fuzz` -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "contents", [[], [b""], [b"\x01"], [b"\x04\0\0\0abcd"], [b"\x02\0\0\0[]"], [b'\x07\0\0\0{"a":1}']]
)
def test_provenance_that_is_none_is_the_servers_fault(contents):
    with pytest.raises(ServerRefused, match="provenance"):
        wire.parse_provenance(service_pb2.ModelInferResponse(raw_output_contents=contents))


def test_an_answer_whose_contents_are_missing_is_the_servers_fault():
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="gender", datatype="FP32", shape=[1, 2])
    with pytest.raises(ServerRefused, match="contents"):
        wire.parse_response("gender_classifier", response)


def test_an_answer_for_no_face_is_the_servers_fault():
    response = service_pb2.ModelInferResponse(raw_output_contents=[b""])
    response.outputs.add(name="gender", datatype="FP32", shape=[0, 2])
    with pytest.raises(ServerRefused, match="gender"):
        wire.parse_response("gender_classifier", response)
