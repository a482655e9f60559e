"""The wheel alone: built, installed into an environment that knows no checkout, and run from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image

import visard_preprocess
from visard_testing.processes import Processes
from visard_testing.waiting import wait_until

ROOT = Path(visard_preprocess.__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def build(source, target, *kinds):
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *kinds]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(target.glob("*.whl")), next(target.glob("*.tar.gz"), None)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of this checkout."""
    return build(ROOT, tmp_path_factory.mktemp("dist"), "-t", "sdist", "-t", "wheel")


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Runs `visard` as the wheel installs it, in an empty folder; what the wheel needs is lent by this environment."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", built[0]]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (site,) = (folder / "venv").glob("lib/*/site-packages")
    # After its own packages, and without the .pth files there, of which one leads to the checkout.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VISARD"))}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200", "NO_COLOR": "1"}
    work = folder / "work"
    work.mkdir()

    def run(*arguments, program="visard"):
        return subprocess.run(
            [python.with_name(program), *map(str, arguments)],
            cwd=work,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )

    run.folder, run.visard, run.environment = work, python.with_name("visard"), environment
    return run


def ok(done):
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_ready(client):
    try:
        return client.get("/readyz").status_code == 200
    except httpx.ConnectError:  # it says its address, then listens
        return False


def test_it_is_the_wheel_that_runs_with_the_version_of_its_metadata(installed):
    code = "import visard, visard_cli; from importlib.metadata import version; "
    code += "print(version('visard'), visard.__file__, visard_cli.__file__, sep='\\n')"
    version, *files = ok(installed("-c", code, program="python")).splitlines()
    assert all(Path(file).is_relative_to(installed.folder.parent / "venv") for file in files)
    assert ok(installed("--version")).split() == ["visard", version]
    assert "ready (local, triton)" in ok(installed("check"))


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
        names = {Path(name).parts[1] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "pyproject.toml", "tests"} <= names
    (unpacked,) = tmp_path.iterdir()
    again, _ = build(unpacked, tmp_path / "dist", "-t", "wheel")
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(again) as theirs:
        assert {name: theirs.getinfo(name).CRC for name in theirs.namelist()} == {
            name: ours.getinfo(name).CRC for name in ours.namelist()
        }
        assert not [name for name in ours.namelist() if "testing" in name or "benchmarks" in name]


def test_photos_folders_and_receipts(installed, astronaut):
    folder = installed.folder
    (folder / "in").mkdir()
    shutil.copy(astronaut, folder / "in" / "photo.jpg")
    ok(installed("swap", "in/photo.jpg", "-o", "out/", "--engine", "triton"))
    with Image.open(folder / "out" / "photo.jpg") as image:
        assert image.size == (512, 512)
    ok(installed("receipt", "keygen", "keys/visard"))
    signed = ("--receipt", "keys/visard.key", "--json")
    summary = json.loads(ok(installed("folder", "in", "all", "--engine", "local", *signed)))
    assert summary["outcomes"]["anonymised"] == 1
    assert {Path(path).suffix for path in summary["manifest"]} == {".csv", ".parquet"}
    assert (folder / "all" / ".visard" / "report.html").is_file()
    said = ok(installed("receipt", "verify", summary["receipt"], "--key", "keys/visard.pub", "--folder", "all"))
    assert "VALID" in said


def test_the_web_server(installed, astronaut):
    command = [str(installed.visard), "web", "--engine", "local", "--port", "0"]
    with Processes(command, installed.folder, installed.environment) as web:
        address = wait_until(lambda: [word for word in web.said().split() if word.startswith("http://127.")])[0]
        with httpx.Client(base_url=address, timeout=120) as client:
            wait_until(lambda: is_ready(client))
            assert client.get("/").status_code == 200
            done = client.post("/v1/anonymize", content=astronaut.read_bytes(), headers={"Content-Type": "image/jpeg"})
        assert done.status_code == 200, done.text
        assert done.content[:2] == b"\xff\xd8"
