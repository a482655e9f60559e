"""The examples are run as they stand there, but for the addresses of their servers.

Those that need a cluster or an object store are run in tests/folder/test_folder_ray.py, which has both.
"""

import runpy
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from visard_testing.examples import EXAMPLES, example
from visard_testing.web_server import web_server


@pytest.fixture
def photo(astronaut, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(astronaut.read_bytes())
    return path


def assert_anonymised(original, data):
    before, after = (np.asarray(Image.open(file).convert("RGB")) for file in (original, BytesIO(data)))
    assert before.shape == after.shape
    assert np.abs(before.astype(int) - after)[80:170, 180:270].mean() > 10  # the face is another one


def test_the_script(photo, tiny_server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", str(tmp_path / "out"), str(photo), "missing.jpg"])
    runpy.run_path(str(example("script.py", tmp_path, tiny_server.grpc_url)))
    assert_anonymised(photo, (tmp_path / "out" / "photo.jpg").read_bytes())
    assert "missing.jpg was not anonymised: cannot read" in capsys.readouterr().err


def test_the_service(photo, tiny_server, tmp_path):
    service = runpy.run_path(str(example("async_service.py", tmp_path, tiny_server.grpc_url)))
    with TestClient(service["app"]) as http:
        answer = http.post("/", content=photo.read_bytes())
        refused = http.post("/", content=b"no photo")
    assert_anonymised(photo, answer.content)
    assert (refused.status_code, "Visard reads" in refused.json()["detail"]) == (422, True)


def test_rest_with_curl(photo, tiny_server, tmp_path):
    with web_server(tiny_server.grpc_url) as url:
        script = example("rest.sh", tmp_path, url.removeprefix("http://"))
        out = tmp_path / "anonymised.jpg"
        run = subprocess.run(["sh", script, photo, out], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert '"faces":[{"index":0' in run.stdout.replace(" ", "")
    assert_anonymised(photo, out.read_bytes())


def test_every_example_is_short_and_named_in_the_list():
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or f"({path.name})" in listed
        assert len(path.read_text(encoding="utf-8").splitlines()) < 40
