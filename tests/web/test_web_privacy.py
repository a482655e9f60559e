"""What becomes of an upload's bytes: they go nowhere but into memory, and nothing of the file but its pixels comes out.

Two ways of looking. In this process, Python tells of every file that is opened to be written while uploads are handled.
Of a process of its own, everything it could have written to is searched for marks that the upload carries.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from visard_testing.web_server import web_process, web_server

GPS, COMMENT, NAME, TRAILER = b"N48.858370", b"taken at Jane's kitchen", b"jane-doe-holiday", b"after the picture"
KEY = b"jane's persona key"
MARKS = (GPS, COMMENT, NAME, TRAILER, KEY)


@pytest.fixture(scope="module")
def marked(astronaut):
    """A JPEG that says where it was taken, with a comment and a trailer, larger than a form parser keeps in memory."""
    image = Image.open(astronaut)
    exif = Image.Exif()
    exif[0x010E] = GPS.decode()
    exif.get_ifd(0x8825)[1] = "N"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif, comment=COMMENT * 100, quality=100)
    data = buffer.getvalue() + TRAILER * 100_000
    assert len(data) > 1_500_000
    return data


def use(url, marked):
    """Send the photo by every route and return every answer."""
    files = {"photo": (f"{NAME.decode()}.jpg", marked, "image/jpeg")}
    with httpx.Client(base_url=url, timeout=60) as http:
        answers = [
            http.post("/v1/anonymize", files=files),
            http.post("/v1/anonymize", files=files, headers={"Accept": "application/json", "Visard-Persona-Key": KEY}),
            http.post("/v1/anonymize?output=crops", content=marked, headers={"Content-Type": "image/jpeg"}),
            http.post("/v1/faces", files=files),
            http.post("/page/photos", files=files, data={"consent": "yes"}),
        ]
        photo = f"/page/photos/{answers[-1].json()['id']}"
        answers += [
            http.post(f"{photo}/anonymize", json={}),
            *(http.get(f"{photo}/{path}") for path in ("before", "after?format=jpeg", "faces/0", "faces/0/swapped")),
        ]
        assert {answer.status_code for answer in answers} == {200, 201}
        refused = [
            http.post("/v1/anonymize", files={"photo": (NAME.decode(), GPS + COMMENT)}),
            http.post(
                "/v1/anonymize", content=marked[:-5], headers={"Content-Type": "multipart/form-data; boundary=x"}
            ),
            http.post(f"/v1/anonymize?faces={NAME.decode()}", files=files, headers={"Visard-Persona-Key": KEY}),
            http.get(f"/{NAME.decode()}"),
        ]
        assert {answer.status_code for answer in refused} == {415, 400, 422, 404}
    return [*answers, *refused]


def test_nothing_is_opened_to_be_written(tiny_server, marked):
    written, watching = [], True

    def watch(event, arguments):
        if watching and event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(arguments[0])
        elif watching and event.startswith(("tempfile.", "os.mkdir", "os.rename")):
            written.append(event)

    with web_server(tiny_server.grpc_url) as url:
        sys.addaudithook(watch)  # for good: it cannot be taken away, only told to look elsewhere
        try:
            use(url, marked)
        finally:
            watching = False
    assert written == []


def test_no_trace_of_an_upload_is_left_or_sent_back(tiny_server, marked, tmp_path):
    places = {name: tmp_path / name for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "cwd")}
    for place in places.values():
        place.mkdir()
    env = {name: str(place) for name, place in places.items() if name != "cwd"}
    with web_process("--server", tiny_server.grpc_url, "--rate", "none", env=env, cwd=str(places["cwd"])) as (web, url):
        answers = use(url, marked)
        for descriptor in Path(f"/proc/{web.popen.pid}/fd").iterdir():
            if descriptor.name in ("1", "2"):  # this test's own file
                continue
            try:
                target = str(descriptor.readlink())
            except FileNotFoundError:  # closed meanwhile
                continue
            assert target.startswith(("socket:", "pipe:", "anon_inode:", "/dev/")), target  # no file, deleted or not
        maps = Path(f"/proc/{web.popen.pid}/maps").read_text(encoding="utf-8")
        web.popen.terminate()
        web.wait()
        log = web.said()
    for answer in answers:
        sent = answer.content + repr(answer.headers).encode()
        assert not [mark for mark in MARKS if mark in sent]
    assert log.count('"event": "request"') == len(answers)
    kept = answers[4].json()["id"]
    for hidden in (*MARKS, kept.encode(), b"127.0.0.1:", marked[1000:1020]):
        assert hidden not in log.split("startup complete", 1)[-1].encode()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files == []
    assert "/dev/shm/" not in maps
