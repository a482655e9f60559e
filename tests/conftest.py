"""What several test files share: photographs, an exported repository, and running servers with tiny models."""

from __future__ import annotations

import csv
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_PHOTOS = ROOT.parent / "shared" / "photos"  # real people: beside the project, never in it

# A shell has its background jobs ignore Ctrl-C, and so would the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def astronaut():
    """A real photograph with one face, 512×512, in the public domain."""
    return ROOT / "server" / "visard_server" / "data" / "astronaut.jpg"


@pytest.fixture(scope="session")
def shared_photos():
    """File name → row of the manifest, for the photographs beside the project."""
    if not SHARED_PHOTOS.is_dir():
        pytest.skip("the photographs beside the project are not here")
    with (SHARED_PHOTOS / "manifest.csv").open(encoding="utf-8") as file:
        return {row["file"]: {**row, "path": str(SHARED_PHOTOS / row["file"])} for row in csv.DictReader(file)}


@pytest.fixture(scope="session")
def small_paths(tmp_path_factory):
    """Small checkpoints with random weights."""
    from visard_testing.small_models import small_checkpoints

    return small_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory, small_paths):
    """A repository as `visard export` makes it of them; to be read only."""
    from visard_testing.command_line import visard

    target = tmp_path_factory.mktemp("exported") / "models"
    directions = ("--to-male", small_paths.to_male, "--to-female", small_paths.to_female)
    run = visard("export", target, "--classifier", small_paths.classifier, *directions)
    assert run.returncode == 0, run.stderr
    return target


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory):
    """A real Triton serving the whole contract with tiny models whose answers numpy can predict."""
    from visard_server.triton import TritonServer
    from visard_testing.tiny_models import tiny_repository

    repository = tiny_repository(tmp_path_factory.mktemp("tiny") / "models")
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="session")
def writing_server(tmp_path_factory):
    """The same with generators that write the personas that reach them into what they draw, over every transport."""
    from visard_server.triton import TritonServer
    from visard_testing.tiny_models import tiny_repository

    folder = tmp_path_factory.mktemp("writing") / "models"
    repository = tiny_repository(folder, encoded=True, writes_persona=True)
    with TritonServer(repository, shared_memory=True) as server:
        yield server


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory):
    """The same with generators that take about a second and queues of one.

    Not one for all tests: Triton 2.51 can crash after a burst of requests that their callers gave up, see
    docs/decisions.md, 19, and what uses it here gives many up.
    """
    from visard_server.triton import TritonServer
    from visard_testing.tiny_models import tiny_repository

    repository = tiny_repository(tmp_path_factory.mktemp("slow") / "models", slow_s=1.0, max_queue_size=1)
    with TritonServer(repository) as server:
        yield server
