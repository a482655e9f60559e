"""The page and the REST API behind the shipped gateway: nginx, a real `visard web`, nginx again, Triton."""

from __future__ import annotations

import io
import os
import socket
import ssl

import httpx
import pytest
from PIL import Image

from visard import Client
from visard_testing.nginx_gateway import HOST, Gateway, free_ports
from visard_testing.waiting import wait_until
from visard_testing.web_server import web_process

pytestmark = pytest.mark.nginx

MEBIBYTE = 2**20
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, tiny_server):
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("gateway")
    with Gateway(folder=folder, tritons=[tiny_server], web=f"{HOST}:{port}", web_body="4m") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def key(gateway):
    """Web runs, with a key of its own for the models; a visitor's key."""
    own, visitors = gateway.new_key("web"), gateway.new_key("alice")
    gateway.reload()
    assert gateway.web
    arguments = ["--server", gateway.grpc_url, "--tls", "--ca", str(gateway.certificate), "--max-mb", "3"]
    arguments += ["--api-keys", str(gateway.folder / "keys.map"), "--port", gateway.web.rpartition(":")[2]]
    with web_process(*arguments, env={"VISARD_TOKEN": own}):
        yield visitors


def visitor(gateway, **settings):
    context = ssl.create_default_context(cafile=os.fspath(gateway.certificate))
    return httpx.Client(base_url=gateway.web_url, verify=context, timeout=60, **settings)


@pytest.fixture
def program(gateway, key):
    with visitor(gateway, headers={"X-API-Key": key}) as http:
        yield http


@pytest.fixture
def person(gateway, key):
    """A browser, whose login has the key as password."""
    with visitor(gateway, auth=("anybody", key)) as http:
        yield http


@pytest.fixture(scope="module")
def large_photo(astronaut):
    """Larger than what nginx takes in at once."""
    buffer = io.BytesIO()
    with Image.open(astronaut) as photo:
        photo.resize((1500, 1500)).save(buffer, "png")
    assert 1.5 * MEBIBYTE < buffer.tell() < 3 * MEBIBYTE
    return buffer.getvalue()


def assert_problem(answer, status, error):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "error", "request_id"} == problem.keys()
    assert (problem["status"], problem["error"]) == (status, error)
    return problem


# -- what passes -------------------------------------------------------------------------------------------------------


def logged(gateway, request):
    """The lines of one request, which nginx writes after it has answered."""
    return wait_until(lambda: [line for line in gateway.access_log() if line["request"] == request])


def test_a_photo_goes_through_both_gateways(gateway, program, tiny_server, astronaut):
    answer = program.post(
        "/v1/anonymize", content=astronaut.read_bytes(), headers={**JPEG, "Accept": "image/png", "X-Request-Id": "mine"}
    )
    with Client(tiny_server.grpc_url) as client:
        assert answer.content == client.anonymize(astronaut).encode("png")
    assert answer.headers["visard-faces-found"] == "1"
    assert answer.headers["x-request-id"] == "mine"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    (line,) = logged(gateway, "mine")
    assert (line["client"], line["path"], line["status"]) == ("alice", "/v1/anonymize", 200)
    callers = {(line["client"], line["path"]) for line in gateway.access_log()}
    assert ("web", "/inference.GRPCInferenceService/ModelInfer") in callers


def test_a_person_logs_in_with_the_key_as_password(gateway, person):
    page = person.get("/")
    assert page.status_code == 200
    assert "<html" in page.text
    assert person.get("/static/page.js").status_code == 200
    assert person.get("/page/about").json()["max_bytes"] == 3 * MEBIBYTE


def test_the_page_is_its_own_origin_and_no_other(gateway, person):
    for origin, status in ((gateway.web_url, 400), ("https://elsewhere.example", 403)):
        answer = person.post("/page/photos", files={"nothing": b""}, headers={"Origin": origin})
        assert answer.status_code == status, answer.text


def test_a_browser_asks_for_a_few_faces_at_a_time(gateway, key):
    context = ssl.create_default_context(cafile=os.fspath(gateway.certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = gateway.web_url.removeprefix("https://").rpartition(":")
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
        assert tls.selected_alpn_protocol() == "http/1.1"


# -- what does not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "challenge"), [("/", "Basic"), ("/page/about", "Basic"), ("/v1/faces", "Bearer")])
@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "guess"}, {"Authorization": "Basic ZzpndWVzcw=="}])
def test_strangers_do_not_reach_web(gateway, key, path, challenge, headers):
    with visitor(gateway) as http:
        answer = http.request("POST" if path.startswith("/v1") else "GET", path, headers=headers)
    problem = assert_problem(answer, 401, "PermissionDenied")
    assert answer.headers["www-authenticate"].startswith(challenge)
    (line,) = logged(gateway, problem["request_id"])
    assert line["triton"] == ""


def test_what_is_too_large_is_refused_by_web_or_before(program):
    problem = assert_problem(
        program.post("/v1/faces", content=bytes(7 * MEBIBYTE // 2), headers=JPEG), 413, "PhotoTooLarge"
    )
    assert "larger than 3 MB" in problem["detail"]
    problem = assert_problem(program.post("/v1/faces", content=bytes(5 * MEBIBYTE), headers=JPEG), 413, "PhotoTooLarge")
    assert "larger than" not in problem["detail"]  # nginx, which does not know what web takes
    unannounced = (bytes(MEBIBYTE) for _ in range(5))
    assert program.post("/v1/faces", content=unannounced, headers=JPEG).status_code == 413


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
def test_what_is_the_operators_is_not_offered_by_web_either(program, path):
    assert_problem(program.get(path), 404, "NotFound")


def test_a_load_balancer_needs_no_key(gateway, key):
    with visitor(gateway) as http:
        assert http.get("/healthz").json() == {"status": "live"}


def test_nonsense_and_no_tls_are_problems_too(gateway):
    assert_problem(httpx.get(gateway.web_url.replace("https", "http")), 400, "InvalidRequest")
    with visitor(gateway) as http:
        assert_problem(http.get("/", headers={"Long": "x" * 50_000}), 400, "InvalidRequest")


def test_a_web_server_that_is_away_is_said_to_be(tmp_path, tiny_server):
    name = "a-name-that-opens-a-photo"
    for folder, web in ((tmp_path / "down", None), (tmp_path / "refused", f"{HOST}:{free_ports(1)[0]}")):
        folder.mkdir()
        with Gateway(folder=folder, tritons=[tiny_server], web=web) as gateway:
            key = gateway.new_key("alice")
            gateway.reload()
            with visitor(gateway, headers={"X-API-Key": key}) as http:
                answer = http.get(f"/page/photos/{name}/before")
                assert_problem(answer, 503, "ServerUnavailable")
                assert answer.headers["retry-after"] == "5"
                assert_problem(http.post("/v1/faces", content=bytes(MEBIBYTE), headers=JPEG), 503, "ServerUnavailable")
        assert name not in (folder / "access.log").read_text() + (folder / "error.log").read_text()


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_no_photo_touches_a_disk_and_no_name_of_one_the_log(gateway, person, large_photo):
    folders = sorted((gateway.folder / "run").glob("*/"))
    assert len(folders) == 5
    before = [folder.stat().st_mtime_ns for folder in folders]  # changes also when a file comes and goes
    added = person.post("/page/photos", files={"photo": large_photo}, data={"consent": "yes"})
    assert added.status_code == 201, added.text
    name = added.json()["id"]
    assert person.post(f"/page/photos/{name}/anonymize", json={}).status_code == 200
    after = person.get(f"/page/photos/{name}/after")
    assert len(after.content) > MEBIBYTE
    assert person.delete(f"/page/photos/{name}").status_code == 204
    assert_problem(person.get(f"/page/photos/{name}/after"), 404, "Forgotten")
    assert [folder.stat().st_mtime_ns for folder in folders] == before
    log = (gateway.folder / "access.log").read_text()
    assert '"path":"/page/photos/*/after"' in log
    assert name not in log + (gateway.folder / "error.log").read_text()
