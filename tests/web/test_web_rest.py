"""The REST API over a real socket, in front of a real Triton with tiny models."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import re
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from visard import Client, Options
from visard.personas import draw
from visard_preprocess.photo import read_photo
from visard_testing.tiny_models import held, written_personas
from visard_testing.waiting import wait_until
from visard_testing.web_server import web_server

MAX_BYTES = 2 * 2**20


@pytest.fixture(scope="module")
def url(tiny_server):
    with web_server(tiny_server.grpc_url, max_bytes=MAX_BYTES) as url:
        yield url


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/anonymize?min_confidense=0.9", "min_confidense: did you mean min_confidence?"),
        ("/v1/anonymize?Faces=largest", "Faces: did you mean faces?"),
        ("/v1/anonymize?direction=to_male&persona_key=k", "persona_key: there are faces, direction"),
        ("/v1/anonymize?zoom=2", "zoom: there are faces, direction"),
        ("/v1/faces?genders=false", "genders: did you mean gender?"),
        ("/v1/faces?boxes=1,2,30,40", "boxes: did you mean box?"),
        ("/v1/anonymize?choices=0:cover", "choices: did you mean choice?"),
        ("/v1/faces?" + "x" * 500, "there are gender"),
    ],
)
def test_a_parameter_that_is_not_there_is_refused_with_the_nearest(http, photo, path, words):
    answer = http.post(path, content=photo, headers={"content-type": "image/jpeg"})
    assert answer.status_code == 422
    assert answer.json()["error"] == "InvalidRequest"
    assert words in answer.json()["detail"]
    assert "x" * 100 not in answer.json()["detail"]


def test_options_among_the_parts_of_a_form_are_refused(http, photo):
    for path in ("/v1/anonymize", "/v1/faces"):
        answer = http.post(path, files={"photo": photo}, data={"min_confidence": "0.9"})
        assert (answer.status_code, answer.json()["error"]) == (400, "MalformedForm")
        assert "min_confidence" in answer.json()["detail"]


def test_a_header_that_is_not_there_is_refused_with_the_nearest(http, photo):
    headers = {"content-type": "image/jpeg", "Visard-Persona-Kei": "k"}
    answer = http.post("/v1/anonymize", content=photo, headers=headers)
    assert answer.status_code == 422
    assert "visard-persona-kei: did you mean visard-persona-key?" in answer.json()["detail"].lower()


@pytest.fixture(scope="module")
def photo(astronaut):
    return astronaut.read_bytes()


def png(width, height, data=b""):
    """A PNG file of any announced size, with hardly anything in it."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def encoded(image, format="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


def post(http, path, photo, kind="image/jpeg", **headers):
    return http.post(path, content=photo, headers={"Content-Type": kind, **headers})


def assert_problem(response, status, error):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["error"] == error
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["detail"]
    return problem


# --- what it does ---


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_the_picture_is_the_sdks(http, tiny_server, photo, format):
    answer = post(http, "/v1/anonymize", photo, Accept=f"image/{format}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"image/{format}"
    counts = {name: answer.headers[f"visard-faces-{name}"] for name in ("found", "swapped", "covered", "visible")}
    assert counts == {"found": "1", "swapped": "1", "covered": "0", "visible": "0"}
    with Client(tiny_server.grpc_url) as client:
        assert answer.content == client.anonymize(photo).encode(format)


def test_a_form_is_as_good_as_a_bare_photo(http, photo):
    form = http.post("/v1/anonymize", files={"photo": ("Jane Doe.gif", photo, "text/plain")})
    assert form.content == post(http, "/v1/anonymize", photo).content
    assert form.headers["content-type"] == "image/jpeg"


def test_json_has_the_scores_and_the_picture(http, photo):
    answer = post(http, "/v1/anonymize?format=png&direction=to_male", photo, Accept="application/json")
    body = answer.json()
    assert (body["faces_found"], body["others"], body["media_type"]) == (1, [], "image/png")
    (face,) = body["faces"]
    assert (face["outcome"], face["target"], face["gender"], face["flipped"]) == ("swapped", "male", None, True)
    assert 0.6 < face["identity_distance"] < 2
    picture = post(http, "/v1/anonymize?direction=to_male&format=png", photo)
    assert base64.b64decode(body["image"]) == picture.content


def test_the_persona_key_of_the_header_is_the_sdks(writing_server, photo):
    def numbers(**headers):
        face = post(http, "/v1/anonymize?output=crops&format=png", photo, **headers).json()["faces"][0]
        return written_personas(read_photo(base64.b64decode(face["image"]))[None])

    with web_server(writing_server.grpc_url) as url, httpx.Client(base_url=url, timeout=60) as http:
        for key in ("a secret", "Zürich".encode()):
            assert numbers(**{"Visard-Persona-Key": key}) == list(draw(1, key))
        assert numbers() != numbers()
        problem = assert_problem(
            post(http, "/v1/anonymize", photo, **{"Visard-Persona-Key": ""}), 422, "InvalidRequest"
        )
        assert "Visard-Persona-Key" in problem["detail"]


def test_the_persona_key_is_described_as_a_header(http):
    described = http.get("/openapi.json").json()["paths"]["/v1/anonymize"]["post"]["parameters"]
    (header,) = [parameter for parameter in described if parameter["name"] == "Visard-Persona-Key"]
    assert (header["in"], header["required"]) == ("header", False)
    assert "linked" in header["description"]


def test_crops_come_as_json(http, photo):
    (face,) = post(http, "/v1/anonymize?output=crops&format=png", photo).json()["faces"]
    assert read_photo(base64.b64decode(face["image"])).shape == (512, 512, 3)
    assert_problem(post(http, "/v1/anonymize?output=crops", photo, Accept="image/png"), 406, "NotAcceptable")


def test_options_are_the_sdks(http, tiny_server, photo):
    two = encoded(np.hstack([read_photo(photo)[:300]] * 2))
    answer = post(http, "/v1/anonymize?faces=largest", two, Accept="image/png")
    assert answer.headers["visard-faces-visible"] == "1"
    with Client(tiny_server.grpc_url) as client:
        assert answer.content == client.anonymize(two, Options(faces="largest")).encode("png")
    assert_problem(post(http, "/v1/anonymize?min_confidence=1&unswapped=withhold", photo), 422, "UncertainGender")
    answer = post(http, "/v1/anonymize?min_confidence=1", photo, Accept="application/json").json()
    assert [(face["outcome"], face["reason"]) for face in answer["others"]] == [("covered", "uncertain")]
    fast = post(http, "/v1/anonymize?identity=false", photo, Accept="application/json").json()
    assert [face["identity_distance"] for face in fast["faces"]] == [None]


BLIND = "detector_threshold=0.95"  # at which the detector does not see the astronaut
HEAD, WALL = "150,20,300,190", "20,350,120,460"


def test_metadata_stays_only_where_it_is_named(http, astronaut):
    exif = Image.Exif()
    exif[0x010F] = "SECRET"
    exif.get_ifd(0x8769).update({34855: 400, 36867: "2026:11:28 12:00:00"})
    buffer = io.BytesIO()
    Image.open(astronaut).save(buffer, "JPEG", quality=95, exif=exif)
    for query, expected in (("", {}), ("?keep=exposure&choice=0:cover", {36864: b"0232", 34855: 400})):
        answer = post(http, f"/v1/anonymize{query}", buffer.getvalue())
        assert b"SECRET" not in answer.content
        assert dict(Image.open(io.BytesIO(answer.content)).getexif().get_ifd(0x8769)) == expected


def test_boxes_by_hand_are_faces_like_others(http, tiny_server, photo):
    assert_problem(post(http, f"/v1/anonymize?{BLIND}", photo), 422, "NoFace")
    asked = f"{BLIND}&box={WALL}&box={HEAD}"
    found = post(http, f"/v1/faces?{asked}", photo).json()["faces"]
    assert [(face["index"], face["box"], face["reason"], face["by_hand"]) for face in found] == [
        (0, [20, 350, 120, 460], "unclear", True),
        (1, [150, 20, 300, 190], None, True),
    ]
    assert found[1]["gender"]["label"] in ("female", "male")
    answer = post(http, f"/v1/anonymize?{asked}", photo, Accept="application/json")
    counts = {name: answer.headers[f"visard-faces-{name}"] for name in ("found", "swapped", "covered", "visible")}
    assert counts == {"found": "2", "swapped": "1", "covered": "1", "visible": "0"}
    assert [face["box"] for face in answer.json()["faces"]] == [[150, 20, 300, 190]]
    assert [(face["box"], face["reason"]) for face in answer.json()["others"]] == [([20, 350, 120, 460], "unclear")]
    (detected,) = post(http, f"/v1/faces?box={HEAD}", photo).json()["faces"]  # the same face is not there twice
    assert not detected["by_hand"]


def test_each_face_as_it_was_chosen(http, photo):
    asked = f"/v1/anonymize?box={WALL}&choice=0:to_female&choice=1:leave"
    body = post(http, asked, photo, Accept="application/json").json()
    assert [(face["index"], face["target"], face["gender"]) for face in body["faces"]] == [(0, "female", None)]
    assert [(face["index"], face["outcome"], face["reason"]) for face in body["others"]] == [(1, "visible", "chosen")]
    body = post(http, "/v1/anonymize?choice=0:cover", photo, Accept="application/json").json()
    assert [(face["outcome"], face["reason"]) for face in body["others"]] == [("covered", "chosen")]


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        ("box=1,2,3", "InvalidRequest", "box: boxes must have left, top, right and bottom"),
        ("box=30,2,3,40", "InvalidRequest", "at least one pixel"),
        ("box=0.1,0.1,0.4,0.5", "InvalidRequest", "in pixels of the upright photo"),
        ("box=" + "1" * 81, "InvalidRequest", "at most 80 characters"),
        ("&".join(["box=1,2,30,40"] * 101), "InvalidRequest", "at most 100"),
        ("box=1,2,30,513", "BoxOutsidePhoto", "512×512"),
        ("choice=1:cover", "InvalidRequest", "there is no face 1: there are 1"),
        ("choice=0:coverr", "InvalidRequest", "choice"),
        ("choice=0:cover&choice=0:leave", "InvalidRequest", "two for one face"),
    ],
)
def test_boxes_and_choices_that_cannot_be_used(http, photo, query, error, words):
    assert words in assert_problem(post(http, f"/v1/anonymize?{query}", photo), 422, error)["detail"]


def test_faces_are_found_and_nothing_else(http, photo):
    found = post(http, "/v1/faces", photo).json()
    assert (found["width"], found["height"]) == (512, 512)
    (face,) = found["faces"]
    assert face["gender"]["label"] in ("female", "male")
    assert face["box"] == pytest.approx([176.5, 77.0, 266.5, 167.0], abs=10)
    (unasked,) = post(http, "/v1/faces?gender=false", photo).json()["faces"]
    assert unasked == {**face, "gender": None}
    assert post(http, "/v1/faces", encoded(np.zeros((90, 90, 3), np.uint8))).json()["faces"] == []


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/jpeg"),
        ("image/*;q=0.5, application/json;q=0.4", "image/jpeg"),
        ("image/webp, */*;q=0.1", "image/webp"),
        ("application/json, image/png;q=0.9", "application/json"),
        ("image/png;q=0, image/jpeg;q=0, image/*", "image/webp"),
    ],
)
def test_accept_decides(http, photo, accept, kind):
    assert post(http, "/v1/anonymize", photo, Accept=accept).headers["content-type"] == kind


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", "image/gif"])
def test_what_cannot_be_made_is_refused(http, photo, accept):
    assert_problem(post(http, "/v1/anonymize", photo, Accept=accept), 406, "NotAcceptable")


# --- what it refuses ---

BAD = {
    "GIF": (b"GIF89a" + bytes(30), 415, "UnsupportedFormat"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "UnsupportedFormat"),
    "PDF": (b"%PDF-1.7", 415, "UnsupportedFormat"),
    "text": (b"just words", 415, "UnsupportedFormat"),
    "nothing": (b"", 415, "UnsupportedFormat"),
    "bomb": (png(100_000, 100_000), 413, "PhotoTooLarge"),
    "a little bomb": (png(8_000, 8_000), 413, "PhotoTooLarge"),
    "damaged": (png(90, 90, b"\0"), 422, "CorruptPhoto"),
    "one pixel": (encoded(np.zeros((1, 1, 3), np.uint8)), 422, "NoFace"),
    "no face": (encoded(np.full((200, 200, 3), 128, np.uint8)), 422, "NoFace"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("form", [False, True])
def test_bad_photos_are_refused(http, name, form):
    content, status, error = BAD[name]
    if form:
        answer = http.post("/v1/anonymize", files={"photo": content})
    else:
        answer = post(http, "/v1/anonymize", content, "image/png")
    assert_problem(answer, status, error)


def test_a_truncated_photo_is_refused(http, photo):
    assert_problem(post(http, "/v1/anonymize", photo[: len(photo) // 2]), 422, "CorruptPhoto")


def test_a_small_face_is_covered_or_withholds_the_photo(http, photo):
    small = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB").resize((205, 205), Image.Resampling.LANCZOS))
    assert_problem(post(http, "/v1/anonymize?unswapped=withhold", encoded(small)), 422, "FaceTooSmall")
    assert post(http, "/v1/anonymize", encoded(small)).headers["visard-faces-covered"] == "1"


def test_an_announced_size_is_refused_before_it_is_sent(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/anonymize HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_an_endless_upload_is_cut_off(http):
    sent = itertools.count()

    def endless():
        for _ in sent:
            yield bytes(2**16)
            if next(sent) > 4000:  # a quarter of a gigabyte
                return

    answer = http.post("/v1/anonymize", content=endless(), headers={"Content-Type": "image/png"})
    assert_problem(answer, 413, "PhotoTooLarge")


def test_too_large_a_form_is_refused_with_an_answer_that_can_be_read(http):
    answer = http.post("/v1/anonymize", files={"photo": bytes(4 * MAX_BYTES)})
    assert_problem(answer, 413, "PhotoTooLarge")
    assert f"larger than {MAX_BYTES / 2**20:.3g} MB:" in answer.json()["detail"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json", "image/gif", ""]
)
def test_other_content_types_are_refused(http, photo, kind):
    assert_problem(post(http, "/v1/anonymize", photo, kind), 415, "UnsupportedFormat")


FORM = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n%s\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", FORM % b"data"),
        ("multipart/form-data; boundary=", FORM % b"data"),
        (f"multipart/form-data; boundary={'x' * 300}", FORM % b"data"),
        ("multipart/form-data; boundary=y", FORM % b"data"),
        ("multipart/form-data; boundary=x", (FORM % b"data")[:-8]),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no form at all"),
        ("multipart/form-data; boundary=x", FORM.replace(b'name="photo"; ', b"") % b"data"),
        ("multipart/form-data; boundary=x", FORM.replace(b"photo", b"picture") % b"data"),
        ("multipart/form-data; boundary=x", (FORM % b"1").removesuffix(b"--\r\n") + b"\r\n" + FORM % b"2"),
        ("multipart/form-data; boundary=x", FORM.replace(b"Content-Disposition", b"X: 1\r\n" * 99) % b"data"),
    ],
)
def test_bad_forms_are_refused(http, kind, body):
    assert_problem(post(http, "/v1/anonymize", body, kind), 400, "MalformedForm")


@pytest.mark.parametrize(
    "query",
    ["faces=two", "direction=up", "min_confidence=2", "min_confidence=nan", "output=", "format=gif", "identity=7"],
)
def test_bad_options_are_refused_and_not_repeated(http, photo, query):
    problem = assert_problem(post(http, f"/v1/anonymize?{query}", photo), 422, "InvalidRequest")
    assert f"query.{query.split('=')[0]}" in problem["detail"]


def test_unknown_routes_and_methods(http):
    assert_problem(http.get("/v2/anonymize"), 404, "NotFound")
    assert_problem(http.get("/static/../app.py"), 404, "NotFound")
    assert_problem(http.get("/static/%2e%2e/app.py"), 404, "NotFound")
    answer = http.get("/v1/anonymize")
    assert_problem(answer, 405, "MethodNotAllowed")
    assert answer.headers["allow"] == "POST"


def test_a_slow_caller_is_given_up(tiny_server):
    with (
        web_server(tiny_server.grpc_url, read_s=0.5) as url,
        socket.create_connection(tuple(url.removeprefix("http://").split(":")), timeout=60) as connection,
    ):
        connection.sendall(
            b"POST /v1/anonymize HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n12"
        )
        answer = b"".join(iter(lambda: connection.recv(4096), b""))  # to the end: the server closes the connection
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"error": "TooSlow"' in answer


# --- where the models are away or busy ---


def test_without_models_it_lives_and_says_so(photo):
    with web_server("127.0.0.1:9", deadline_s=5.0) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.get("/healthz").json() == {"status": "live"}
        for answer in (http.get("/readyz"), post(http, "/v1/anonymize", photo)):
            assert_problem(answer, 503, "ServerUnavailable")
            assert int(answer.headers["retry-after"]) > 0
            assert "127.0.0.1:9" not in answer.text
        assert "does not answer" in http.get("/readyz").json()["detail"]
        assert len(post(http, "/v1/faces?gender=false", photo).json()["faces"]) == 1


def test_with_models_it_is_ready(http):
    assert http.get("/readyz").json() == {"status": "ready"}


def test_a_queue_that_is_full_sends_callers_away(slow_server, photo):
    with (
        web_server(slow_server.grpc_url, in_work=1, waiting=1) as url,
        httpx.Client(base_url=url, timeout=60) as http,
        ThreadPoolExecutor(8) as callers,
    ):
        answers = list(callers.map(lambda _: post(http, "/v1/anonymize", photo), range(8)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(refused) < 8
        assert refused
        for answer in refused:
            assert_problem(answer, 503, "Overloaded")
            assert int(answer.headers["retry-after"]) > 0


def test_a_caller_who_leaves_frees_the_slot(slow_server, photo):
    with (
        held(slow_server.repository),
        web_server(slow_server.grpc_url, in_work=1) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        with pytest.raises(httpx.ReadTimeout):
            http.post(
                "/v1/anonymize",
                content=photo,
                headers={"Content-Type": "image/jpeg"},
                timeout=httpx.Timeout(60, read=0.7),
            )
        wait_until(lambda: 'status="499"' in http.get("/metrics").text)
        metrics = http.get("/metrics").text
        assert (
            'visard_requests_total{error="ClientDisconnected",method="POST",route="/v1/anonymize",status="499"} 1.0'
            in metrics
        )
        assert "visard_in_work 0.0" in metrics
        assert 'outcome="swapped"' not in metrics  # the work did not go on without its caller


# --- keys, origins and rates ---


@pytest.fixture
def keyed(tiny_server, tmp_path):
    keys = tmp_path / "keys.map"
    keys.write_text(f"# who\n{hashlib.sha256(b'sesame').hexdigest()} alice;\n")
    with web_server(tiny_server.grpc_url, keys=keys, rate="3/hour") as url, httpx.Client(base_url=url) as http:
        yield http


def test_a_key_is_needed_where_there_are_keys(keyed, photo):
    for headers in (
        {},
        {"X-API-Key": "Sesame"},
        {"Authorization": "Bearer sesam"},
        {"Authorization": "Basic c2VzYW1l"},
    ):
        answer = post(keyed, "/v1/faces?gender=false", photo, **headers)
        assert_problem(answer, 401, "PermissionDenied")
        assert answer.headers["www-authenticate"] == "Bearer"
    for headers in ({"X-API-Key": "sesame"}, {"Authorization": "Bearer sesame"}):
        assert post(keyed, "/v1/faces?gender=false", photo, **headers).status_code == 200
    assert keyed.get("/metrics").status_code == 401
    assert keyed.get("/metrics", headers={"X-API-Key": "sesame"}).status_code == 200
    assert keyed.get("/healthz").status_code == keyed.get("/readyz").status_code == 200


def test_people_type_the_key_as_password(keyed):
    for path in ("/", "/docs", "/page/about", "/static/page.css"):
        answer = keyed.get(path)
        assert_problem(answer, 401, "PermissionDenied")
        assert answer.headers["www-authenticate"].startswith("Basic ")
        assert keyed.get(path, auth=("anybody", "sesame")).status_code == 200
        assert keyed.get(path, auth=("sesame", "wrong")).status_code == 401


def test_the_rate_is_counted_by_key(keyed, photo):
    answers = [post(keyed, "/v1/faces?gender=false", photo, **{"X-API-Key": "sesame"}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert_problem(answers[3], 429, "TooManyRequests")
    assert 3000 < int(answers[3].headers["retry-after"]) <= 3600


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine, another subdomain
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 200),
        ({}, 200),
    ],
)
def test_pages_of_other_sites_are_refused(http, url, photo, headers, status):
    for method, path in (("GET", "/page/about"), ("POST", "/v1/faces?gender=false")):
        content = {"content": photo} if method == "POST" else {}
        answer = http.request(method, path, headers={"Content-Type": "image/jpeg", **headers}, **content)
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["error"] == "ForeignOrigin"
            assert "access-control-allow-origin" not in answer.headers
    assert http.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link may lead here
    assert http.get("/page/about", headers={"Origin": url}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("192.168.1.7", 200),
        ("evil.example", 421),
        ("", 421),
    ],
)
def test_foreign_names_for_this_machine_are_refused(http, host, status):
    assert http.get("/page/about", headers={"Host": host}).status_code == status


def test_the_operators_names_are_known(tiny_server):
    with web_server(tiny_server.grpc_url, hosts=("Faces.example",)) as url, httpx.Client(base_url=url) as http:
        assert http.get("/healthz", headers={"Host": "faces.EXAMPLE:443"}).status_code == 200


def test_the_description_can_be_read(http):
    """All of it, made of the same document, without a script and without anything from elsewhere."""
    answer = http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    described = http.get("/openapi.json").json()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            assert f"<code>{method.upper()} {path}</code>" in answer.text
            for parameter in operation.get("parameters", []):
                assert f"<code>{parameter['name']}</code>" in answer.text
    for name in described["components"]["schemas"]:
        assert f'<h3 id="{name}">' in answer.text
    targets = set(re.findall(r'(?:href|src)="([^"]+)"', answer.text))
    assert {each for each in targets if not each.startswith("#")} == {
        "static/icon.svg",
        "static/base.css",
        "static/reference.css",
        "./",
        "openapi.json",
    }
    assert {each[1:] for each in targets if each.startswith("#")} <= set(re.findall(r'id="([^"]+)"', answer.text))
    assert "<script" not in answer.text


# --- what every answer has ---


@pytest.mark.parametrize(
    "path", ["/", "/static/page.css", "/healthz", "/v1/faces", "/nowhere", "/openapi.json", "/docs"]
)
def test_every_answer_keeps_browsers_in_check(http, path):
    headers = http.get(path).headers
    assert headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=(self)" in headers["permissions-policy"]
    assert "server" not in headers
    assert headers["cache-control"] == ("no-cache" if path == "/" else "no-store")


def test_a_sane_request_id_is_kept(http):
    assert http.get("/healthz", headers={"X-Request-Id": "job-7.b_C"}).headers["x-request-id"] == "job-7.b_C"
    for bad in ("a b", "x" * 65, '{"a":1}', "é"):
        given = http.get("/healthz", headers={"X-Request-Id": bad.encode()}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", given)


def test_metrics_say_how_well_faces_were_hidden(tiny_server, photo):
    with web_server(tiny_server.grpc_url) as url, httpx.Client(base_url=url, timeout=60) as http:
        post(http, "/v1/anonymize", photo)
        post(http, "/v1/anonymize", b"GIF89a")
        http.get("/nowhere")
        text = http.get("/metrics").text
    for line in (
        'visard_requests_total{error="",method="POST",route="/v1/anonymize",status="200"} 1.0',
        'visard_requests_total{error="UnsupportedFormat",method="POST",route="/v1/anonymize",status="415"} 1.0',
        'visard_requests_total{error="NotFound",method="GET",route="other",status="404"} 1.0',
        'visard_faces_total{outcome="swapped",reason=""} 1.0',
        "visard_face_identity_distance_count 1.0",
        "visard_face_similarity_percent_count 1.0",
        'visard_stage_seconds_count{stage="swap"} 1.0',
        'visard_request_seconds_count{route="/v1/anonymize"} 2.0',
        "visard_queue_depth 0.0",
    ):
        assert line in text.splitlines()
