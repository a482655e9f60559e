"""The guide's requests are made as they stand there, and its `visard` lines are parsed by the real command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import httpx
import pytest
from typer.main import get_command

from visard_cli.app import app
from visard_preprocess.photo import photo_format
from visard_testing.web_server import web_server

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "web.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL) for line in block.splitlines()]
CURLS = [line for line in LINES if line.startswith("curl ")]
COMMANDS = [line.split(" #")[0] for line in LINES if line.startswith("visard ")]


@pytest.fixture(scope="module")
def url(tiny_server):
    with web_server(tiny_server.grpc_url) as url:
        yield url


def curl(line, url, folder):
    """Do what curl would do, as far as the guide goes; the answer, and the file that it was written to."""
    words = iter(shlex.split(line)[1:])
    request, headers, target = {}, {}, None
    for word in words:
        if word == "-F":
            name, _, file = next(words).partition("=@")
            request["files"] = {name: (folder / file).read_bytes()}
        elif word == "--data-binary":
            request["content"] = (folder / next(words).removeprefix("@")).read_bytes()
        elif word == "-H":
            header = next(words)
            if header.startswith("@"):
                header = (folder / header[1:]).read_text()
            name, _, value = header.partition(": ")
            headers[name] = value
        elif word == "-o":
            target = folder / next(words)
        else:
            assert word.startswith("http://127.0.0.1:8080/"), word
            address = word.replace("http://127.0.0.1:8080", url)
    method = "POST" if request else "GET"
    answer = httpx.request(method, address, headers={"Accept": "*/*", **headers}, timeout=60, **request)
    return answer, target


@pytest.mark.parametrize("line", CURLS)
def test_requests_are_answered_as_the_guide_says(line, url, astronaut, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(astronaut.read_bytes())
    (tmp_path / "persona.key").write_text("Visard-Persona-Key: a secret")
    answer, target = curl(line, url, tmp_path)
    assert answer.status_code == 200, answer.text
    if target is None:
        assert answer.json()
    else:
        assert photo_format(answer.content) == {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[target.suffix]


@pytest.mark.parametrize("command", COMMANDS)
def test_shell_lines_parse(command):
    arguments = shlex.split(command)[2:]
    get_command(app).commands["web"].make_context("web", arguments)  # raises on an unknown option or value


def test_the_guide_has_what_is_tested():
    assert len(CURLS) == 9
    assert len(COMMANDS) == 3


def test_the_guide_names_every_status_and_error_of_the_description(url):
    described = httpx.get(f"{url}/openapi.json").json()
    statuses = {
        status for operations in described["paths"].values() for o in operations.values() for status in o["responses"]
    }
    table = GUIDE.split("## REST")[1].split("## Who")[0]
    assert {status for status in statuses if status != "200"} <= set(re.findall(r"\b\d{3}\b", table))
