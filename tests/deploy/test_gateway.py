"""The shipped gateway, a real nginx with its rendered template, in front of two real Tritons."""

from __future__ import annotations

import asyncio
import datetime
import http.server
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from typing import ClassVar

import grpc
import numpy as np
import pytest
import trustme
from opentelemetry import trace
from tritonclient.grpc import service_pb2, service_pb2_grpc

from visard import AsyncClient, Client, Connection, Overloaded, PermissionDenied, ServerRefused, ServerUnavailable
from visard.wire import build_request
from visard_server.triton import TritonServer
from visard_testing.nginx_gateway import HOST, Gateway
from visard_testing.tiny_models import expected_to_male, held, tiny_repository
from visard_testing.waiting import is_free, wait_until

pytestmark = pytest.mark.nginx

MODELS = {"anonymizer_to_male", "generator_to_male", "gender_classifier"}  # loads in half the time of all
IMAGE = np.linspace(0, 90, 512 * 512 * 3).reshape(1, 512, 512, 3).astype(np.uint8)
RPCS = sorted(service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name)
OPEN_RPCS = {"ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"}
CALLERS = 6


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return tiny_repository(tmp_path_factory.mktemp("repository") / "1", only=MODELS, slow_s=0.05)


@pytest.fixture(scope="module")
def tritons(repository):
    with TritonServer(repository) as one, TritonServer(repository) as two:
        yield [one, two]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, tritons):
    with Gateway(folder=tmp_path_factory.mktemp("gateway"), tritons=tritons) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def key(gateway):
    key = gateway.new_key("alice")
    gateway.reload()
    return key


def through(gateway, key, **values):
    defaults = {"root_certificates": gateway.certificate, "api_key": key}
    return Connection(url=gateway.grpc_url, **{**defaults, **values})


def swap(connection):
    with Client(connection) as client:
        (answer,) = client.swap(IMAGE, "to_male")
    np.testing.assert_array_equal(answer.swapped, expected_to_male(IMAGE)[0])


@contextmanager
def channel(gateway):
    credentials = grpc.ssl_channel_credentials(gateway.certificate.read_bytes())
    with grpc.secure_channel(gateway.grpc_url, credentials) as channel:
        yield channel


class Load:
    """Callers that each send their next face when the last one is back, inside the `with` block."""

    def __init__(self, connection):
        self._connection = connection
        self._ended = threading.Event()
        self.answered = 0
        self.errors = []

    def __enter__(self):
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()
        wait_until(lambda: self.answered >= CALLERS)
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def wait(self, answers):
        """Let that many more faces through."""
        wanted = self.answered + answers
        wait_until(lambda: self.answered >= wanted or self.errors)

    def stands(self):
        """Whether nothing came back for a second: by then every caller waits for an answer."""
        answered = self.answered
        time.sleep(1)
        return self.answered == answered

    async def _run(self):
        async def caller():
            while not self._ended.is_set():
                try:
                    (answer,) = await client.swap(IMAGE, "to_male")
                    assert np.array_equal(answer.swapped, expected)
                    self.answered += 1
                except Exception as error:
                    self.errors.append(error)
                    await asyncio.sleep(0.05)

        expected = expected_to_male(IMAGE)[0]
        async with AsyncClient(self._connection) as client:
            await asyncio.gather(*(caller() for _ in range(CALLERS)))


def last_inference(gateway):
    """The log's line about an inference that has just ended; nginx writes it after the answer has gone out."""
    wait_until(lambda: gateway.access_log()[-1]["path"].endswith("ModelInfer"))
    return gateway.access_log()[-1]


def faces_served(triton):
    """Faces that a Triton has swapped since its start."""
    with urllib.request.urlopen(triton.metrics_url) as page:
        text = page.read().decode()
    (count,) = re.findall(r'nv_inference_request_success\{model="anonymizer_to_male",version="\d+"\} (\d+)', text)
    return float(count)


# -- who is let in --------------------------------------------------------------------------------------------------


def test_the_sdk_works_through_tls_and_a_key(gateway, key):
    swap(through(gateway, key))
    swap(through(gateway, None, token=key))


@pytest.mark.parametrize("wrong", [None, "", "guess", "0" * 64])
def test_no_key_and_a_wrong_key_are_refused(gateway, key, wrong):
    with pytest.raises(PermissionDenied, match="API key missing or unknown"):
        swap(through(gateway, wrong))


def test_a_keys_hash_is_no_key(gateway, key):
    stored = (gateway.folder / "keys.map").read_text()
    assert key not in stored
    with pytest.raises(PermissionDenied):
        swap(through(gateway, stored.split()[0]))


def test_a_foreign_authority_is_not_trusted(gateway, key, tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "foreign.pem")
    with pytest.raises(ServerRefused, match="certificate"):
        swap(through(gateway, key, root_certificates=tmp_path / "foreign.pem"))


def test_an_expired_certificate_is_refused(gateway, key, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    kept = {name: (gateway.folder / name).read_bytes() for name in ("tls.crt", "tls.key")}
    try:
        for not_after in (yesterday + datetime.timedelta(days=2), yesterday):
            own = authority.issue_cert(HOST, not_after=not_after)
            own.cert_chain_pems[0].write_to_path(gateway.folder / "tls.crt")
            own.private_key_pem.write_to_path(gateway.folder / "tls.key")
            gateway.reload()
            connection = through(gateway, key, root_certificates=tmp_path / "authority.pem")
            if not_after != yesterday:
                swap(connection)  # the same authority, not expired
                continue
            with pytest.raises(ServerRefused, match="expired"):
                swap(connection)
    finally:
        for name, content in kept.items():
            (gateway.folder / name).write_bytes(content)
        gateway.reload()


def test_plaintext_is_not_spoken(gateway):
    with pytest.raises(ServerRefused, match="encryption"):
        swap(Connection(url=gateway.grpc_url))


def test_tls_to_a_bare_triton_is_explained(gateway, tritons):
    with pytest.raises(ServerRefused, match="encryption"):
        swap(Connection(url=tritons[0].grpc_url, root_certificates=gateway.certificate))


# -- what is let through ----------------------------------------------------------------------------------------------


def call(channel, path, body, key):
    metadata = [("x-api-key", key), ("triton-grpc-protocol-visard-admin", "guess")]
    return bytes(channel.unary_unary(path)(body, metadata=metadata, timeout=60))


@pytest.mark.parametrize("rpc", sorted(set(RPCS) - OPEN_RPCS))
def test_what_is_the_operators_is_not_offered(gateway, key, tritons, rpc):
    path = f"/inference.GRPCInferenceService/{rpc}"
    with channel(gateway) as secure, pytest.raises(grpc.RpcError) as refused:
        call(secure, path, b"", key)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    if rpc != "ModelStreamInfer":  # inference, which Triton itself gives to everyone
        with grpc.insecure_channel(tritons[0].grpc_url) as bare, pytest.raises(grpc.RpcError, match="is restricted"):
            call(bare, path, b"", key)


@pytest.mark.parametrize("path", ["/", "/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/modelinfer"])
def test_unknown_paths_are_not_offered(gateway, key, path):
    with channel(gateway) as secure, pytest.raises(grpc.RpcError) as refused:
        call(secure, path, b"", key)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_health_and_metadata_are_open(gateway, key):
    with channel(gateway) as secure:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(secure)
        metadata = [("x-api-key", key)]
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), metadata=metadata).live
        assert stub.ServerReady(service_pb2.ServerReadyRequest(), metadata=metadata).ready
        assert stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=metadata).name == "triton"
        request = service_pb2.ModelReadyRequest(name="anonymizer_to_male")
        assert stub.ModelReady(request, metadata=metadata).ready


def test_a_message_of_two_faces_is_too_large(gateway, key):
    request = build_request("anonymizer_to_male", np.concatenate([IMAGE, IMAGE])).SerializeToString()
    with channel(gateway) as secure, pytest.raises(grpc.RpcError) as refused:
        call(secure, "/inference.GRPCInferenceService/ModelInfer", request, key)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in (refused.value.details() or "")


# -- HTTP -------------------------------------------------------------------------------------------------------------


def fetch(gateway, path, *, key, data=None, headers=None):
    request = urllib.request.Request(gateway.http_url + path, data=data, headers=headers or {})
    if key:
        request.add_header("x-api-key", key)
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=gateway.certificate)) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())  # never a page


def test_http_infers_with_a_key_only(gateway, key):
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 512, 512, 3]}
    image["parameters"] = {"binary_data_size": IMAGE.nbytes}
    persona = {"name": "persona", "datatype": "INT32", "shape": [1, 1], "data": [7]}
    header = json.dumps({"inputs": [image, persona], "parameters": {"binary_data_output": True}}).encode()
    path = "/v2/models/anonymizer_to_male/infer"
    status, answer = fetch(
        gateway,
        path,
        key=key,
        data=header + IMAGE.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"},
    )
    assert status == 200, answer
    assert expected_to_male(IMAGE).tobytes() in answer
    assert fetch(gateway, path, key=None, data=b"{}")[0] == 401
    assert fetch(gateway, path, key=key, data=bytes(2**21))[0] == 413


@pytest.mark.parametrize(
    "path",
    ["/", "/metrics", "/v2/models/gender_classifier/config", "/v2/models/stats", "/v2/repository/index", "/v2/logging",
     "/v2/systemsharedmemory/status", "/v2/trace/setting", "/v2/models/../repository/index"],
)  # fmt: skip
def test_http_administration_is_not_offered(gateway, key, path):
    assert fetch(gateway, path, key=key)[0] in (400, 404)


def test_http_health_needs_a_key_and_the_gateways_own_none(gateway, key):
    assert fetch(gateway, "/v2/health/ready", key=key)[0] == 200
    assert fetch(gateway, "/v2/health/ready", key=None)[0] == 401
    assert fetch(gateway, "/healthz", key=None)[0] == 200


def test_even_nonsense_is_answered_in_json(gateway):
    with socket.create_connection((HOST, gateway.ports[1])) as plain:
        plain.send(b"GET / HTTP/1.1\r\n\r\n")
        assert b'{"error":"malformed request"}' in plain.recv(4096)


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory, tritons):
    """A gateway that gives each client five requests at once, then one a second."""
    folder = tmp_path_factory.mktemp("strict")
    with Gateway(folder=folder, tritons=tritons, rate=1, burst=4, concurrency=2) as gateway:
        yield gateway


def test_a_used_up_rate_says_when_to_come_back_and_is_the_clients_own(strict):
    keys = [strict.new_key("greedy"), strict.new_key("modest")]
    strict.reload()
    with Client(through(strict, keys[0], max_attempts=1)) as client:
        with pytest.raises(Overloaded, match="limit is used up") as refused:
            any(client.swap(IMAGE, "to_male") is None for _ in range(12))
        swap(through(strict, keys[1]))
    assert refused.value.retry_after_s == 0.5


def test_the_sdk_waits_as_long_as_it_is_told(strict):
    key = strict.new_key("patient")
    strict.reload()
    with Client(through(strict, key)) as client:
        client.swap(IMAGE, "to_male")
        logged = len(strict.access_log())
        start = time.monotonic()
        for _ in range(8):
            client.swap(IMAGE, "to_male")
        seconds = time.monotonic() - start

    def logged_with(status):
        return [line["grpc_status"] for line in strict.access_log()[logged:]].count(status)

    wait_until(lambda: logged_with("0") == 8)
    assert logged_with("8") >= 1
    assert seconds >= 0.5 * logged_with("8") + 8 * 0.05  # what it was told, and what a face takes


def test_http_says_when_to_come_back_too(strict):
    key = strict.new_key("browser")
    strict.reload()
    request = urllib.request.Request(f"{strict.http_url}/v2/health/ready", headers={"x-api-key": key})
    context = ssl.create_default_context(cafile=strict.certificate)
    with pytest.raises(urllib.error.HTTPError) as refused:
        any(urllib.request.urlopen(request, context=context).close() for _ in range(12))
    with refused.value as answer:
        assert answer.code == 429
        assert answer.headers["Retry-After"] == "1"
        assert "limit" in json.loads(answer.read())["error"]


def test_requests_at_the_same_time_are_limited(strict):
    key = strict.new_key("parallel")
    strict.reload()
    request = build_request("anonymizer_to_male", IMAGE)
    with channel(strict) as secure:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(secure)
        futures = [stub.ModelInfer.future(request, metadata=[("x-api-key", key)]) for _ in range(4)]
        codes = [future.code() for future in futures]
    assert codes.count(grpc.StatusCode.OK) >= 2
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 1
    assert len(set(codes)) == 2


# -- under load --------------------------------------------------------------------------------------------------------


def test_a_killed_triton_loses_nothing_and_takes_load_again(gateway, key, tritons, repository):
    with TritonServer(repository) as victim:
        gateway.balance([tritons[0], victim])
        logged = len(gateway.access_log())
        with Load(through(gateway, key)) as load:
            wait_until(lambda: faces_served(victim) > 0)
            with held(repository):
                wait_until(load.stands)
                os.killpg(victim._process.pid, signal.SIGKILL)
            load.wait(20)
            wait_until(lambda: is_free(victim.grpc_url) and is_free(victim.http_url.removeprefix("http://")))
            grpc_port, http_port = (int(url.rpartition(":")[2]) for url in (victim.grpc_url, victim.http_url))
            with TritonServer(repository, grpc_port=grpc_port, http_port=http_port) as returned:
                wait_until(lambda: faces_served(returned) > 5)
                gateway.balance(tritons)  # before it ends
                load.wait(CALLERS)
    assert not load.errors
    lost = [line for line in gateway.access_log()[logged:] if line["grpc_status"] == "14"]
    assert 1 <= len(lost) <= CALLERS  # what was under way on it, and the SDK sent that again
    assert all(line["triton"].startswith(victim.grpc_url) for line in lost)


def test_a_refused_connection_is_tried_on_the_next_triton(gateway, key, tritons):
    with socket.socket() as closed:
        closed.bind((HOST, 0))  # and does not listen
        address = f"{HOST}:{closed.getsockname()[1]}"
        dead = TritonServer(tritons[0].repository)
        dead.grpc_url, dead.http_url = address, f"http://{address}"
        gateway.balance([dead, tritons[0]])
        for _ in range(4):
            swap(through(gateway, key, max_attempts=1))
        wait_until(lambda: any(address in line["triton"] for line in gateway.access_log()[-8:]))
    gateway.balance(tritons)


def test_keys_are_rotated_under_load(gateway):
    old, other = gateway.new_key("bob"), gateway.new_key("carol")
    gateway.reload()
    with Load(through(gateway, other)) as neighbour:
        with Load(through(gateway, old)) as before:
            new = gateway.new_key("bob")
            gateway.reload()
            with Load(through(gateway, new)) as after:
                before.wait(CALLERS)
        with Load(through(gateway, new)) as after:
            keys = (gateway.folder / "keys.map").read_text().splitlines(keepends=True)
            (gateway.folder / "keys.map").write_text("".join(keys[:-3] + keys[-2:]))  # without bob's old one
            gateway.reload()
            after.wait(CALLERS)
            neighbour.wait(CALLERS)
            with pytest.raises(PermissionDenied):
                swap(through(gateway, old))
    assert before.errors == after.errors == neighbour.errors == []
    assert neighbour.answered > 2 * CALLERS


def test_a_broken_keys_file_keeps_the_old_keys(gateway, key):
    keys = gateway.folder / "keys.map"
    kept = keys.read_text()
    keys.write_text("no semicolon")
    with pytest.raises(Exception, match="non-zero exit status"):
        gateway.reload()
    keys.write_text(kept)
    swap(through(gateway, key))


def test_a_model_version_is_rolled_out_under_load(gateway, key, repository, tmp_path):
    shutil.copytree(repository, tmp_path / "models")
    for model in (tmp_path / "models").iterdir():
        (model / "1").rename(model / "2")
    with ExitStack() as running:
        old = [running.enter_context(TritonServer(repository)) for _ in range(2)]
        serving = list(old)
        gateway.balance(serving)
        logged = len(gateway.access_log())
        with Load(through(gateway, key)) as load:
            for i in range(2):
                gateway.balance(serving, down=[old[i]])
                wait_until(gateway.has_drained)
                old[i].stop()
                serving[i] = running.enter_context(TritonServer(tmp_path / "models"))
                gateway.balance(serving)
                load.wait(2 * CALLERS)
        with channel(gateway) as secure:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(secure)
            request = build_request("anonymizer_to_male", IMAGE)
            answers = [stub.ModelInfer(request, metadata=[("x-api-key", key)]) for _ in range(4)]
    assert not load.errors
    assert {answer.model_version for answer in answers} == {"2"}
    # Not one was sent again: none met a deadline, a limit or a Triton that was away.
    assert not {line["grpc_status"] for line in gateway.access_log()[logged:]} & {"4", "8", "14"}


# -- tracing -----------------------------------------------------------------------------------------------------------


class Collector(http.server.BaseHTTPRequestHandler):
    """Where OpenTelemetry sends its spans."""

    received: ClassVar[list[bytes]] = []

    def do_POST(self):
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def test_a_callers_trace_goes_on_in_triton_with_timestamps_only(tmp_path, repository, monkeypatch):
    collector = http.server.ThreadingHTTPServer((HOST, 0), Collector)
    threading.Thread(target=collector.serve_forever).start()
    url = f"http://{HOST}:{collector.server_port}/v1/traces"
    options = ["mode=opentelemetry", f"opentelemetry,url={url}", "opentelemetry,bsp_schedule_delay=100"]
    options += ["rate=1", "level=TIMESTAMPS"]
    plain = subprocess.Popen

    def traced(command, **settings):
        return plain([*command, *(f"--trace-config={option}" for option in options)], **settings)

    monkeypatch.setattr("visard_server.triton.subprocess.Popen", traced)
    with ExitStack() as stack:
        stack.callback(collector.server_close)
        stack.callback(collector.shutdown)
        triton = stack.enter_context(TritonServer(repository))
        monkeypatch.undo()
        gateway = stack.enter_context(Gateway(folder=tmp_path, tritons=[triton]))
        key = gateway.new_key("alice")
        gateway.reload()
        span = trace.SpanContext(0xA11CE << 64, 0xB0B, is_remote=False, trace_flags=trace.TraceFlags(1))
        context = f'"parentSpanId":"{span.span_id:016x}","spanId":'.encode()

        def continued():
            """Send a face and look; Triton's exporter may lose spans on a busy machine, so more than once."""
            with trace.use_span(trace.NonRecordingSpan(span)):
                swap(through(gateway, key))
            time.sleep(0.3)
            return context in b"".join(Collector.received)

        wait_until(continued)
        spans = b"".join(Collector.received)
        assert b"%032x" % span.trace_id in spans
        assert b"COMPUTE_START" in spans
        assert max(map(len, Collector.received)) < IMAGE.nbytes / 20
        assert last_inference(gateway)["trace"].startswith(f"00-{span.trace_id:032x}-")


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_no_face_touches_a_disk_or_the_log(gateway, tritons, key):
    gateway.balance(tritons)
    folders = sorted((gateway.folder / "run").glob("*/"))
    assert len(folders) == 5
    before = [folder.stat().st_mtime_ns for folder in folders]  # changes also when a file comes and goes
    swap(through(gateway, key))
    test_http_infers_with_a_key_only(gateway, key)
    assert [folder.stat().st_mtime_ns for folder in folders] == before
    text = (gateway.folder / "access.log").read_text() + (gateway.folder / "error.log").read_text()
    assert key not in text
    assert len(max(text.splitlines(), key=len)) < 800  # far less than a face


def test_the_log_says_who_and_how_it_went(gateway, key):
    swap(through(gateway, key))
    line = last_inference(gateway)
    assert line["client"] == "alice"
    assert line["grpc_status"] == "0"
    assert line["bytes_in"] > IMAGE.nbytes


def test_metrics_are_prometheuss(gateway):
    with urllib.request.urlopen(gateway.metrics_url) as page:
        figures = dict(re.findall(r"^(visard_gateway_\S+) (\d+)$", page.read().decode(), re.MULTILINE))
    assert int(figures["visard_gateway_requests_total"]) > 10
    assert int(figures['visard_gateway_connections{state="writing"}']) >= 1


def test_an_unreachable_triton_is_unavailable(tmp_path, tritons):
    with Gateway(folder=tmp_path, tritons=tritons) as gateway:
        key = gateway.new_key("alice")
        gateway.balance(tritons, down=tritons)
        with pytest.raises(ServerUnavailable, match="no Triton answers"):
            swap(through(gateway, key, max_attempts=1))
