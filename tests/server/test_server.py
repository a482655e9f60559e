"""The real Triton over real gRPC: what it answers, what it refuses, how it starts and how it ends."""

from __future__ import annotations

import importlib.util
import io
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

import visard_server.triton
from visard import Client, Connection
from visard.wire import (
    build_encoded_request,
    build_provenance_request,
    build_request,
    parse_encoded_swap,
    parse_provenance,
    parse_response,
)
from visard_errors import MissingExtra, RepositoryError, ServerError
from visard_server.triton import TritonServer
from visard_testing.tiny_models import (
    classifier,
    expected_gender,
    expected_swap,
    expected_to_female,
    expected_to_male,
    held,
    read_config,
    tiny_repository,
    without_stripe,
    write_config,
    written_personas,
)
from visard_testing.waiting import wait_until

SHM = Path("/dev/shm")


def faces(*brightness):
    """(N, 512, 512, 3) uint8: noise around each brightness; below 128 is female."""
    noise = np.random.default_rng(seed=sum(brightness)).integers(-20, 20, (len(brightness), 512, 512, 3))
    return (noise + np.array(brightness)[:, None, None, None]).clip(0, 255).astype(np.uint8)


def connect(server):
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(server.grpc_url, options=unlimited))


@pytest.fixture(scope="module")
def triton(tiny_server):
    return connect(tiny_server)


# -- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "brightness",
    [(40,), (200,), (40, 60), (210, 190, 200), (40, 200), (200, 40, 60, 190, 220), tuple(range(30, 222, 12))],
    ids=["female", "male", "all-female", "all-male", "mixed", "mixed-5", "mixed-16"],
)
def test_anonymizer_swaps_every_face_of_a_batch(triton, brightness):
    images = faces(*brightness)
    answer = parse_response("anonymizer", triton.ModelInfer(build_request("anonymizer", images)))
    np.testing.assert_array_equal(answer["swapped"], expected_swap(images))
    np.testing.assert_allclose(answer["gender"], expected_gender(images), atol=1e-4)
    np.testing.assert_allclose(answer["swapped_gender"], expected_gender(expected_swap(images)), atol=1e-4)


def test_a_swap_turns_the_apparent_gender(triton):
    answer = parse_response("anonymizer", triton.ModelInfer(build_request("anonymizer", faces(60, 190))))
    assert answer["gender"].argmax(axis=1).tolist() == [0, 1]
    assert answer["swapped_gender"].argmax(axis=1).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("model", "expected"), [("anonymizer_to_male", expected_to_male), ("anonymizer_to_female", expected_to_female)]
)
def test_a_given_direction_does_not_ask_the_classifier_first(triton, model, expected):
    images = faces(60, 190)
    answer = parse_response(model, triton.ModelInfer(build_request(model, images)))
    np.testing.assert_array_equal(answer["swapped"], expected(images))
    np.testing.assert_allclose(answer["swapped_gender"], expected_gender(expected(images)), atol=1e-4)


def test_requests_at_the_same_time_keep_their_own_faces(triton):
    batches = [faces(30 + 10 * i, 220 - 10 * i) for i in range(16)]
    with ThreadPoolExecutor(16) as threads:
        answers = threads.map(lambda images: triton.ModelInfer(build_request("anonymizer", images)), batches)
        for images, answer in zip(batches, answers, strict=True):
            np.testing.assert_array_equal(parse_response("anonymizer", answer)["swapped"], expected_swap(images))


@pytest.fixture(scope="module")
def writing(writing_server):
    return connect(writing_server)


NUMBERS = (2**31 - 1, 0, 1_234_567_890, -1, 3, 2**30, 99)


@pytest.mark.parametrize(
    "brightness",
    [(40,), (40, 60), (40, 200, 60, 190, 210), (200, 40, 190, 60)],
    ids=["one", "one-way", "mixed", "mixed-even"],
)
def test_each_face_s_persona_reaches_its_generator_unchanged(writing, brightness):
    images, numbers = faces(*brightness), NUMBERS[: len(brightness)]
    answer = parse_response("anonymizer", writing.ModelInfer(build_request("anonymizer", images, numbers)))
    assert written_personas(answer["swapped"]) == list(numbers)
    np.testing.assert_array_equal(without_stripe(answer["swapped"]), without_stripe(expected_swap(images)))


@pytest.mark.parametrize("model", ["anonymizer_to_male", "anonymizer_to_female", "generator_to_male"])
def test_a_persona_takes_every_way(writing, model):
    request = build_request(model, faces(40, 200, 60), NUMBERS[:3])
    assert written_personas(parse_response(model, writing.ModelInfer(request))["swapped"]) == list(NUMBERS[:3])


def test_requests_that_meet_keep_their_own_personas(writing):
    batches = [(faces(40 + i, 200 - i), (i, 2**31 - 1 - i)) for i in range(12)]
    with ThreadPoolExecutor(12) as threads:
        answers = threads.map(lambda batch: writing.ModelInfer(build_request("anonymizer", *batch)), batches)
        for (_, numbers), answer in zip(batches, answers, strict=True):
            assert written_personas(parse_response("anonymizer", answer)["swapped"]) == list(numbers)


@pytest.mark.parametrize("model", ["encoded_anonymizer", "encoded_anonymizer_to_male", "encoded_anonymizer_to_female"])
def test_an_encoded_face_s_persona_reaches_its_generator_unchanged(writing, model):
    for number in (2**31 - 1, 1_234_567_890):
        request = build_encoded_request(model, smooth_face(60)[None], number)
        assert written_personas(parse_encoded_swap(model, writing.ModelInfer(request)).swapped[None]) == [number]


def test_a_request_without_a_persona_is_refused(triton):
    request = build_request("anonymizer", faces(40))
    del request.inputs[1:], request.raw_input_contents[1:]
    with pytest.raises(grpc.RpcError, match="expected 2 inputs but got 1"):
        triton.ModelInfer(request)


def blind_repository(folder):
    """Tiny models whose classifier says nothing about faces darker than 50."""
    repository = tiny_repository(folder)
    onnx.save(classifier(unknown_below=50), repository / "gender_classifier" / "1" / "model.onnx")
    return repository


def test_an_unknown_gender_fails_its_own_request_alone(tmp_path):
    known = [faces(100), faces(200)]
    with TritonServer(blind_repository(tmp_path / "models")) as server:
        triton = connect(server)
        futures = [
            triton.ModelInfer.future(build_request("anonymizer", images)) for images in (*known, faces(40), *known)
        ]
        with pytest.raises(grpc.RpcError, match="no probability"):
            futures.pop(2).result()
        for images, future in zip(2 * known, futures, strict=True):
            np.testing.assert_array_equal(
                parse_response("anonymizer", future.result())["swapped"], expected_swap(images)
            )


def file_of(image, format, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


def ask_encoded(triton, *files, model="encoded_anonymizer"):
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="encoded_image", datatype="BYTES", shape=(len(files), 1))
    request.raw_input_contents.append(b"".join(len(file).to_bytes(4, "little") + file for file in files))
    request.inputs.add(name="persona", datatype="INT32", shape=(len(files), 1))
    request.raw_input_contents.append(bytes(4 * len(files)))
    return parse_response(model, triton.ModelInfer(request))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("encoded_anonymizer", expected_swap),
        ("encoded_anonymizer_to_male", expected_to_male),
        ("encoded_anonymizer_to_female", expected_to_female),
    ],
)
@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})])
def test_encoded_faces_are_swapped_like_pixels(writing, model, expected, format, options):
    images = np.stack([smooth_face(60), smooth_face(190)])
    answer = ask_encoded(writing, *(file_of(image, format, **options) for image in images), model=model)
    pictures = [Image.open(io.BytesIO(file)) for file in answer["encoded_swapped"][:, 0]]
    for picture in pictures:
        assert (picture.format, picture.size, picture.info.get("exif")) == ("JPEG", (512, 512), None)
    swapped = np.stack([np.asarray(picture) for picture in pictures])
    difference = np.abs(without_stripe(swapped).astype(int) - without_stripe(expected(images)))
    assert (difference.mean(axis=(1, 2, 3)) < 1).all()
    np.testing.assert_allclose(answer["swapped_gender"], expected_gender(swapped), atol=2e-3)


def smooth_face(brightness):
    """(512, 512, 3) uint8: a slope, which JPEG keeps, unlike noise."""
    slope = np.linspace(-20, 20, 512) + brightness
    return np.broadcast_to(slope[:, None, None], (512, 512, 3)).round().astype(np.uint8)


PICTURE = smooth_face(60)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "neither a whole JPEG nor PNG nor WebP"),
        (b"secret secret secret", "neither a whole"),
        (file_of(PICTURE, "JPEG")[:-2000], "neither a whole"),
        (file_of(PICTURE, "PNG")[:-200], "neither a whole"),
        (file_of(PICTURE, "GIF"), "neither a whole"),
        (file_of(PICTURE[:511], "JPEG"), "512×511 pixels, not 512×512"),
        (file_of(np.zeros((9000, 9000, 3), np.uint8), "PNG"), "9000×9000"),
        (file_of(PICTURE, "JPEG") + bytes(2**21), "at most 2097152"),
    ],
    ids=["empty", "text", "cut-jpeg", "cut-png", "gif", "other-size", "bomb", "large"],
)
def test_a_file_that_is_no_face_fails_its_own_request_alone(writing, file, words):
    with pytest.raises(grpc.RpcError, match=words) as refused:
        ask_encoded(writing, file)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "secret" not in refused.value.details()
    assert ask_encoded(writing, file_of(PICTURE, "JPEG"))


def test_an_encoded_grey_picture_is_taken_as_rgb(writing):
    grey = PICTURE[..., 0]
    answer = ask_encoded(writing, file_of(grey, "PNG"))
    picture = np.asarray(Image.open(io.BytesIO(answer["encoded_swapped"][0, 0]))).astype(int)
    assert np.abs(without_stripe(picture[None]) - without_stripe(expected_swap(PICTURE[None]))).mean() < 1


def test_provenance_is_answered_through_inference(tmp_path):
    repository = tiny_repository(tmp_path / "models", only={"provenance", "gender_classifier"})
    written = '{"trained": false, "origin": "Zürich"}'
    (repository / "gender_classifier" / "1" / "provenance.json").write_text(written, encoding="utf-8")
    with TritonServer(repository) as server:
        provenance = parse_provenance(connect(server).ModelInfer(build_provenance_request()))
    assert provenance == {"gender_classifier": {"trained": False, "origin": "Zürich"}}


def test_models_are_listed(tiny_server):
    models = tiny_server.models()
    assert [model.name for model in models] == [
        "anonymizer",
        "anonymizer_to_female",
        "anonymizer_to_male",
        "gender_classifier",
        "gender_router",
        "generator_to_female",
        "generator_to_male",
        "provenance",
    ]
    assert all(model.ready and model.version == "1" for model in models)


# -- under load -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy_server(tmp_path_factory):
    repository = tiny_repository(tmp_path_factory.mktemp("slow") / "models", slow_s=0.1, max_queue_size=1)
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="module")
def slow(busy_server):
    return connect(busy_server)


def test_overload_is_answered_at_once_with_the_queue_s_own_words(busy_server, slow):
    images = faces(40)
    with held(busy_server.repository):
        futures = [slow.ModelInfer.future(build_request("anonymizer_to_male", images)) for _ in range(8)]
        wait_until(lambda: sum(future.done() for future in futures) >= 6)  # but the one at work and the one that waits
        assert all("maximum queue size" in future.exception().details() for future in futures if future.done())
    errors = [error for future in futures if (error := future.exception()) is not None]
    assert 6 <= len(errors) < 8
    for future in futures:
        if future.exception() is None:
            answer = parse_response("anonymizer_to_male", future.result())
            np.testing.assert_array_equal(answer["swapped"], expected_to_male(images))


def test_a_face_of_unknown_gender_is_refused_before_anything_is_computed(busy_server, slow):
    def classified():
        time.sleep(0.2)  # the counters follow the answers
        request = service_pb2.ModelStatisticsRequest(name="gender_classifier")
        (statistics,) = slow.ModelStatistics(request, metadata=list(busy_server.admin_headers.items())).model_stats
        return int(statistics.inference_count)

    before = classified()
    with held(busy_server.repository):
        futures = [slow.ModelInfer.future(build_request("anonymizer", faces(40))) for _ in range(12)]
        wait_until(lambda: any(future.done() for future in futures))
    refused = [error for future in futures if (error := future.exception()) is not None]
    assert 1 <= len(refused) < 12
    assert all("maximum queue size" in error.details() for error in refused)
    # Each accepted face was classified twice; a classifier before the queue would have seen all twelve, and more.
    assert classified() - before < 12


def test_a_timeout_reaches_the_generator_and_its_answer_the_caller(busy_server, slow):
    with held(busy_server.repository) as begun:
        first = slow.ModelInfer.future(build_request("anonymizer", faces(40)))
        wait_until(begun)  # the router has another instance free
        second = slow.ModelInfer.future(build_request("anonymizer", faces(60), timeout_s=0.05))
        assert "timeout expired" in second.exception().details()
    np.testing.assert_array_equal(parse_response("anonymizer", first.result())["swapped"], expected_to_male(faces(40)))


def test_a_failed_half_of_a_mixed_request_fails_it_in_the_generator_s_own_words(busy_server, slow):
    with held(busy_server.repository, "generator_to_female") as begun:
        first = slow.ModelInfer.future(build_request("anonymizer_to_female", faces(200)))
        wait_until(begun)  # only the generator of the second half is busy
        mixed = slow.ModelInfer.future(build_request("anonymizer", faces(40, 200), timeout_s=0.05))
        assert "timeout expired" in mixed.exception().details()
    assert first.exception() is None


def test_a_full_batch_of_the_router_reaches_the_generator_as_a_whole(tmp_path):
    repository = tiny_repository(tmp_path / "models", slow_s=0.1)
    for model in ("gender_router", "generator_to_male"):
        config = read_config(repository / model)
        config.instance_group[0].count = 1
        if model == "gender_router":  # which waits until a batch is full
            config.dynamic_batching.preferred_batch_size[:] = [16]
            config.dynamic_batching.max_queue_delay_microseconds = 10**9
        write_config(repository / model, config)
    with TritonServer(repository) as server:
        ask = connect(server).ModelInfer.future
        with held(repository) as begun:
            first = ask(build_request("anonymizer_to_male", faces(40)))
            wait_until(begun)
            futures = [ask(build_request("anonymizer", faces(40))) for _ in range(16)]
            waiting = 'nv_inference_pending_request_count{model="generator_to_male",version="1"} 16'
            wait_until(lambda: waiting in urllib.request.urlopen(server.metrics_url).read().decode())
        assert first.exception() is None
        for future in futures:
            answer = parse_response("anonymizer", future.result())
            np.testing.assert_array_equal(answer["swapped"], expected_to_male(faces(40)))


# -- what clients may not do -----------------------------------------------------------------------------------------

RESTRICTED = {
    "ModelConfig": service_pb2.ModelConfigRequest(name="gender_classifier"),
    "ModelStatistics": service_pb2.ModelStatisticsRequest(name="gender_classifier"),
    "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
    "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="gender_classifier"),
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="gender_classifier"),
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=1),
    "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
    "TraceSetting": service_pb2.TraceSettingRequest(),
    "LogSettings": service_pb2.LogSettingsRequest(),
}


@pytest.mark.parametrize("rpc", RESTRICTED)
def test_what_is_the_operator_s_is_refused_without_the_key(triton, rpc):
    with pytest.raises(grpc.RpcError, match="protocol is restricted"):
        getattr(triton, rpc)(RESTRICTED[rpc])
    with pytest.raises(grpc.RpcError, match="protocol is restricted"):
        getattr(triton, rpc)(RESTRICTED[rpc], metadata=[("triton-grpc-protocol-visard-admin", "guess")])


def test_the_key_opens_statistics_but_no_model_control(tiny_server, triton):
    admin = list(tiny_server.admin_headers.items())
    assert triton.ModelStatistics(RESTRICTED["ModelStatistics"], metadata=admin).model_stats
    with pytest.raises(grpc.RpcError, match="explicit model load / unload is not allowed"):
        triton.RepositoryModelUnload(RESTRICTED["RepositoryModelUnload"], metadata=admin)


@pytest.mark.parametrize(
    "path",
    [
        "repository/index",
        "repository/models/gender_classifier/unload",
        "models/gender_classifier/config",
        "models/gender_classifier/stats",
        "systemsharedmemory/status",
        "trace/setting",
        "logging",
    ],
)
def test_http_is_restricted_in_the_same_way(tiny_server, path):
    body = b"{}" if path.startswith("repository") else None
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{tiny_server.http_url}/v2/{path}", data=body)
    with refused.value:
        assert refused.value.code == 403


def test_health_and_metrics_are_open(tiny_server, triton):
    assert triton.ServerReady(service_pb2.ServerReadyRequest()).ready
    with urllib.request.urlopen(f"{tiny_server.http_url}/v2/health/ready") as answer:
        assert answer.status == 200
    with urllib.request.urlopen(tiny_server.metrics_url) as page:
        assert b"nv_inference_request_success" in page.read()


def test_it_listens_on_loopback_only(tiny_server):
    urls = (tiny_server.grpc_url, tiny_server.http_url, tiny_server.metrics_url)
    ports = {int(url.removesuffix("/metrics").rpartition(":")[2]) for url in urls}
    assert len(ports) == 3
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text(encoding="utf-8").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == "0A" and int(port, 16) in ports:  # LISTEN
                listening.add((address, int(port, 16)))
    assert {port for _, port in listening} == ports
    assert {address[-8:] for address, _ in listening} == {"0100007F"}  # 127.0.0.1, also as an address mapped to IPv6


# -- starting -------------------------------------------------------------------------------------------------------


def settled(log):
    """Wait until nothing more comes, and give what came."""
    said = None
    while said != log.getvalue():
        said = log.getvalue()
        time.sleep(1)
    return said


def test_it_leaves_nothing_behind_and_logs_no_requests(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    repository = blind_repository(tmp_path / "models")
    written = sorted(repository.rglob("*"))
    log = io.StringIO()
    start = time.monotonic()
    with TritonServer(repository, log=log) as server:
        print(f"ready in {time.monotonic() - start:.1f} s")
        (folder,) = tmp_path.glob("visard-server-*")
        assert list(SHM.glob(f"{folder.name}*"))
        connect(server).ModelInfer(build_request("anonymizer", faces(60)))  # Triton warns once of missing pinned memory
        length = len(settled(log))
        assert "successfully loaded 'anonymizer'" in log.getvalue()
        connect(server).ModelInfer(build_request("anonymizer", faces(60, 200)))
        with pytest.raises(grpc.RpcError):
            connect(server).ModelInfer(build_request("anonymizer", faces(40)))
        assert settled(log)[length:] == ""
    assert not processes_of(repository)
    assert not list(tmp_path.glob("visard-server-*"))
    assert not list(SHM.glob(f"{folder.name}*"))
    assert [path for path in sorted(repository.rglob("*")) if "__pycache__" not in path.parts] == written
    server.stop()  # harmless when repeated


def test_a_model_finishes_its_work_before_the_end(tmp_path):
    repository = tiny_repository(tmp_path / "models", slow_s=1.0, only={"generator_to_male"})
    with TritonServer(repository) as server:
        with held(repository) as begun:
            future = connect(server).ModelInfer.future(build_request("generator_to_male", faces(40)))
            wait_until(begun)
        server.stop()  # within the second that the model sleeps
        assert future.result().raw_output_contents[0] == expected_to_male(faces(40)).tobytes()


DIRECT = {"anonymizer_to_male", "generator_to_male", "gender_classifier"}


@pytest.mark.parametrize("port", ["grpc_port", "http_port", "metrics_port"])
def test_a_taken_port_is_named(tmp_path, port):
    repository = tiny_repository(tmp_path / "models", only={"provenance"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{number} \(Address already in use\).*another port"):
            TritonServer(repository, **{port: number}).start()


def test_a_port_lost_while_the_models_load_is_replaced(tmp_path, monkeypatch):
    choose = visard_server.triton._choose_ports
    calls = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))

        def lose_the_first(host, wanted):
            calls.append(choose(host, wanted))
            return (taken.getsockname()[1], *calls[-1][1:]) if len(calls) == 1 else calls[-1]

        monkeypatch.setattr(visard_server.triton, "_choose_ports", lose_the_first)
        with TritonServer(tiny_repository(tmp_path / "models", only={"provenance"})) as server:
            assert server.grpc_url == f"127.0.0.1:{calls[1][0]}"
            assert [model.ready for model in server.models()] == [True]


def test_every_model_that_does_not_load_is_named_with_its_own_reason(tmp_path):
    broken = {
        "gender_classifier/1/model.onnx": ("junk", "Protobuf parsing failed"),
        "generator_to_female/config.pbtxt": ("colour: 3", 'no field named "colour"'),
        "generator_to_male/config.pbtxt": ("pixels: 3", 'no field named "pixels"'),
        "provenance/1/model.py": ("def broken(", "SyntaxError: '(' was never closed"),
    }
    repository = tiny_repository(tmp_path / "models", only={file.split("/")[0] for file in broken})
    for file, (content, _) in broken.items():
        (repository / file).write_text(content, encoding="utf-8")
    with pytest.raises(RepositoryError) as refused:
        TritonServer(repository).start()
    message, _, advice = str(refused.value).partition("What to do: ")
    said = dict(re.findall(r"model '(\w+)' does not load: (.*?)(?=; model|\. $)", message))
    assert said.keys() == {file.split("/")[0] for file in broken}
    for file, (_, reason) in broken.items():
        others = [other for _, other in broken.values() if other != reason]
        assert reason in said[file.split("/")[0]]
        assert not any(other in said[file.split("/")[0]] for other in others)
    assert "\\n" not in message
    assert "export it again" in advice


def test_an_ensemble_without_its_parts_is_named(tmp_path):
    repository = tiny_repository(tmp_path / "models", only={"anonymizer_to_male", "gender_classifier"})
    with pytest.raises(RepositoryError, match=r"'anonymizer_to_male' does not load.*generator_to_male"):
        TritonServer(repository).start()


def test_an_empty_repository_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match="holds no model"):
        TritonServer(tmp_path).start()
    with pytest.raises(RepositoryError, match="holds no model"):
        TritonServer(tmp_path / "nowhere").start()


def test_a_server_that_does_not_get_ready_in_time_is_ended(tmp_path):
    repository = tiny_repository(tmp_path / "models", only={"provenance"})
    (repository / "provenance" / "1" / "model.py").write_text("import time; time.sleep(60)", encoding="utf-8")
    with pytest.raises(ServerError, match=r"not ready within 1 s"):
        TritonServer(repository, startup_timeout_s=1).start()
    assert not processes_of(repository)


@pytest.mark.parametrize("missing", ["pytriton", "onnxruntime"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    with pytest.raises(MissingExtra, match=r"visard\[serve\]"):
        TritonServer(tmp_path).start()


def test_an_unsupported_python_or_system_is_refused(tmp_path, monkeypatch):
    for module, name, value, said in (
        (platform, "machine", lambda: "riscv64", "Linux on riscv64 with"),
        (sys, "version_info", (3, 13, 0), r"with Python 3\.13: use --engine local"),
        (sys, "platform", "darwin", "runs on Linux"),
    ):
        with monkeypatch.context() as here:
            here.setattr(module, name, value)
            with pytest.raises(ServerError, match=said):
                TritonServer(tmp_path).start()


# -- ending ---------------------------------------------------------------------------------------------------------

PARENT = """
import os
from visard_server.triton import TritonServer

print("starting", flush=True)
with TritonServer(os.environ["REPOSITORY"]) as server:
    print("ready", flush=True)
    server.wait()
print("ended", flush=True)
"""


def processes_of(repository):
    """Command lines of the living processes of a server: Triton and its models name the repository."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(repository).encode() in command:
            found.append(command.decode().replace("\0", " "))
    return found


@pytest.fixture
def parent(tmp_path):
    """A Python program that serves a repository in `tmp_path` and keeps its temporary files there too."""
    repository = tiny_repository(tmp_path / "models", only=DIRECT)
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, "REPOSITORY": str(repository), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


def read_line(process):
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_killed_parent_takes_the_server_and_its_models_along(parent, tmp_path):
    assert [read_line(parent), read_line(parent)] == ["starting", "ready"]
    assert len(processes_of(tmp_path)) >= 3  # Triton and its two models
    (folder,) = tmp_path.glob("visard-server-*")
    parent.kill()
    wait_until(lambda: not processes_of(tmp_path))
    assert not folder.exists()
    assert not list(SHM.glob(f"{folder.name}*"))


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.4, 0.6])  # in every phase of loading the models
def test_a_parent_killed_during_the_start_leaves_nothing_behind(parent, tmp_path, delay_s):
    assert read_line(parent) == "starting"
    wait_until(lambda: processes_of(tmp_path))
    time.sleep(delay_s)
    (folder,) = tmp_path.glob("visard-server-*")
    parent.kill()
    wait_until(lambda: not processes_of(tmp_path))
    assert not folder.exists()
    assert not list(SHM.glob(f"{folder.name}*"))


def catches(process, sign):
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
    return bool(int(caught, 16) >> (sign - 1) & 1)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_waiting_parent_in_order(parent, tmp_path, sign):
    assert [read_line(parent), read_line(parent)] == ["starting", "ready"]
    wait_until(lambda: catches(parent, signal.SIGTERM))  # it waits
    parent.send_signal(sign)
    assert read_line(parent) == "ended"
    assert parent.wait(60) == 0
    assert not processes_of(tmp_path)
    assert not list(tmp_path.glob("visard-server-*"))


def test_ctrl_c_during_the_start_cleans_up(parent, tmp_path):
    assert read_line(parent) == "starting"
    wait_until(lambda: processes_of(tmp_path))
    parent.send_signal(signal.SIGINT)
    assert parent.wait(60) == -signal.SIGINT
    assert not processes_of(tmp_path)
    assert not list(tmp_path.glob("visard-server-*"))


def crash(server, sign=signal.SIGSEGV):
    """Bring upon Triton what a bad pointer in it would, and wait until it is gone."""
    supervisor = server._process.pid
    (triton,) = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text(encoding="utf-8").split()
    os.kill(int(triton), sign)
    wait_until(lambda: not Path(f"/proc/{triton}").exists())


def is_live(server):
    try:
        return bool(connect(server).ServerLive(service_pb2.ServerLiveRequest(), timeout=10).live)
    except grpc.RpcError:
        return False


def test_a_crashed_triton_is_started_anew_and_a_face_under_way_is_answered(tmp_path):
    repository = tiny_repository(tmp_path / "models", slow_s=0.1)
    with TritonServer(repository) as server:
        before = len(processes_of(tmp_path))
        connection = Connection(url=server.grpc_url, max_attempts=1000, deadline_s=120)
        with Client(connection) as client, ThreadPoolExecutor() as pool:
            with held(repository) as begun:
                asked = pool.submit(client.swap, faces(60))
                wait_until(begun)
                crash(server)
            (swap,) = asked.result(120)
        assert np.array_equal(swap.swapped, expected_swap(faces(60))[0])
        wait_until(lambda: len(processes_of(tmp_path)) == before)  # no model's process of the first life is left
    assert not processes_of(tmp_path)


def test_a_triton_that_crashes_again_and_again_is_given_up(tmp_path):
    with TritonServer(tiny_repository(tmp_path / "models", only={"provenance"})) as server:
        for _ in range(3):
            crash(server)
            wait_until(lambda: is_live(server))
        crash(server)
        with pytest.raises(ServerError, match="ended by itself"):
            server.wait()
    assert not processes_of(tmp_path)


def test_wait_says_when_the_server_ended_by_itself(tmp_path):
    with TritonServer(tiny_repository(tmp_path / "models", only={"provenance"})) as server:
        os.kill(server._process.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="ended by itself"):
            server.wait()
    assert not processes_of(tmp_path)


# -- where it runs -------------------------------------------------------------------------------------------------

PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY")


def test_no_proxy_is_asked_for_a_server_on_this_machine(tmp_path, monkeypatch):
    with socket.socket() as proxy:  # takes connections and never answers
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        for variable in PROXIES:
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        repository = tiny_repository(tmp_path / "models", only={"provenance"})
        with TritonServer(repository, host="0.0.0.0", startup_timeout_s=60) as server:
            port = server.grpc_url.rpartition(":")[2]
            for variable in PROXIES:
                for host in ("127.0.0.1", "localhost", "0.0.0.0"):
                    with monkeypatch.context() as alone:
                        for other in set(PROXIES) - {variable}:
                            alone.delenv(other)
                        with Client(f"{host}:{port}") as client:
                            assert client.models()
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            proxy.accept()


def test_it_listens_on_ipv6(tmp_path):
    repository = tiny_repository(tmp_path / "models", only={"provenance"})
    with TritonServer(repository, host="::1") as server:
        assert server.grpc_url.startswith("[::1]:")
        with Client(server.grpc_url) as client:
            assert client.models()
        for url in (f"{server.http_url}/v2/health/ready", server.metrics_url):
            assert urllib.request.urlopen(url, timeout=5).status == 200
        with pytest.raises(ServerError, match=r"cannot listen on \[::1\]:\d+ \(Address already in use\)"):
            TritonServer(repository, host="::1", grpc_port=int(server.grpc_url.rpartition(":")[2])).start()


def test_a_host_that_is_not_here_is_named(tmp_path):
    repository = tiny_repository(tmp_path / "models", only={"provenance"})
    for host in ("192.0.2.1", "no-such-host.invalid", "2001:db8::1"):
        with pytest.raises(ServerError, match=rf"cannot listen on \[?{host}\]?:8001"):
            TritonServer(repository, host=host, grpc_port=8001).start()


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    repository = tiny_repository(tmp_path / "models", only={"provenance"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # stands for a full disk
    try:
        with pytest.raises(ServerError, match=rf"temporary folder {tmp_path} .*File too large.*TMPDIR"):
            TritonServer(repository).start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ServerError, match=rf"temporary folder {tmp_path}/nowhere .*No such file.*TMPDIR"):
        TritonServer(repository).start()


def copy_without_mode(file, folder):
    shutil.copyfile(file, folder / file.name)


def test_a_temporary_folder_that_runs_no_programs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # as on a disk that is mounted noexec: it cannot be run
    monkeypatch.setattr(shutil, "copy", copy_without_mode)
    with pytest.raises(ServerError, match=rf"temporary folder {tmp_path} .*noexec.*TMPDIR"):
        TritonServer(tiny_repository(tmp_path / "models", only={"provenance"})).start()


def test_a_killed_triton_is_started_anew_once(tmp_path):
    with TritonServer(tiny_repository(tmp_path / "models", only={"provenance"})) as server:
        assert not server.ended
        crash(server, signal.SIGKILL)  # as the kernel does where memory is short
        wait_until(lambda: is_live(server))
        crash(server, signal.SIGKILL)
        wait_until(lambda: server.ended)
    assert not processes_of(tmp_path)
