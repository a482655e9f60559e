"""`visard folder --engine ray`, on a real Ray cluster of this machine and against two real Tritons."""

from __future__ import annotations

import csv
import os
import random
import runpy
import signal
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from visard import Local, ServerRefused
from visard.connection import Connection
from visard_cli.app import app
from visard_errors import DataError, OutputError
from visard_folder import FolderJob, LocalEngine, Settings, Watcher, anonymise_folder
from visard_folder.ray_engine import RayEngine
from visard_folder.ray_engine.cluster import start_local
from visard_folder.walk import Found, walk
from visard_server.triton import TritonServer
from visard_testing.examples import example
from visard_testing.folder_trees import face_photo, outputs
from visard_testing.tiny_models import tiny_repository
from visard_testing.waiting import is_free, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),  # Ray's own, of its own settings
]


def manifest(target):
    """The manifest without its timings."""
    with (target / ".visard" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory, astronaut):
    """Photos in several folders and formats, with withheld, broken and other files among them."""
    source = tmp_path_factory.mktemp("photos")
    for index in range(20):
        folder = source / ("", "a", "a/ü", "b")[index % 4]
        folder.mkdir(exist_ok=True)
        photo = face_photo(astronaut, brightness=0.4 + 0.05 * index, size=220 + 5 * index)
        photo.save(folder / f"{index}{('.jpg', '.png', '.webp')[index % 3]}", quality=90)
    face_photo(astronaut, brightness=0.5, size=240).save(source / os.fsdecode(b"bytes\xff.png"), "PNG")
    Image.new("RGB", (50, 50)).save(source / "a" / "nobody.png")
    (source / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (source / "b" / "notes.txt").write_text("words", encoding="utf-8")
    (source / "loop").symlink_to(source)
    return source


@pytest.fixture(scope="module")
def local(photos, tiny_server, tmp_path_factory):
    """What the engine of one machine makes of the photos."""
    target = tmp_path_factory.mktemp("local") / "out"
    run(photos, target, tiny_server, engine=LocalEngine())
    return target


@pytest.fixture(scope="module")
def second_server(tmp_path_factory):
    repository = tiny_repository(tmp_path_factory.mktemp("second") / "models")
    with TritonServer(repository) as server:
        yield server


@pytest.fixture(scope="module")
def bucket():
    """An S3 server with an empty bucket, reached as any S3 is: through the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        files = s3fs.S3FileSystem(use_listings_cache=False)
        files.mkdir("visard-test")
        yield files
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket):  # after the bucket, so that its workers have the credentials
    """A Ray cluster of two cores; gives the folder with everything that it writes."""
    import ray

    with tempfile.TemporaryDirectory(prefix="visard-", ignore_cleanup_errors=True) as folder:
        start_local(folder, 2)
        yield Path(folder)
        ray.shutdown()


def run(source, target, *servers, engine=RayEngine(workers=2), watcher=None, **options):  # noqa: B008 - frozen
    connections = tuple(Connection(url=getattr(server, "grpc_url", server)) for server in servers)
    job = FolderJob(source=source, target=target, connections=connections, **{"key": b"k" * 16, **options})
    return anonymise_folder(job, engine, watcher)


def reports(target):
    """What a person is to look at, to the byte."""
    return [(target / ".visard" / name).read_bytes() for name in ("to_check.csv", "report.html")]


def assert_same(target, local):
    assert outputs(target) == outputs(local)
    assert reports(target) == reports(local)
    assert manifest(target) == manifest(local)
    assert list((target / ".visard" / "drafts").iterdir()) == []


def inferences(server):
    """How many faces a server has swapped."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith('nv_inference_count{model="anonymizer",')]
    return float(line.rpartition(" ")[2])


def test_a_key_gives_the_same_personas_as_locally_and_boxes_the_same_faces(
    cluster, writing_server, astronaut, tmp_path
):
    source, key = tmp_path / "in", "a key that nobody guesses"
    source.mkdir()
    face_photo(astronaut).save(source / "a.png")
    options = {"settings": Settings(detector_threshold=0.95), "boxes": {"a.png": ((60.0, 20.0, 210.0, 190.0),)}}
    run(source, tmp_path / "local", writing_server, engine=LocalEngine(), persona_key=key, **options)
    summary = run(source, tmp_path / "ray", writing_server, persona_key=key, **options)
    assert summary["faces"]["swapped"] == 1  # in the box: at this threshold nobody is detected
    assert outputs(tmp_path / "ray") == outputs(tmp_path / "local")
    assert not [path for path in cluster.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    run(source, tmp_path / "none", writing_server, **options)
    assert outputs(tmp_path / "none") != outputs(tmp_path / "local")


def test_it_makes_what_the_local_engine_makes(cluster, photos, local, tiny_server, second_server, tmp_path):
    before = [inferences(server) for server in (tiny_server, second_server)]
    done, total = [], []
    watcher = Watcher(photo=done.append, total=total.append)
    summary = run(photos, tmp_path / "out", tiny_server, second_server, watcher=watcher)
    assert_same(tmp_path / "out", local)
    assert (summary["outcomes"]["anonymised"], summary["outcomes"]["failed"]) == (21, 2)
    assert total == [len(done)] == [25]
    after = [inferences(server) for server in (tiny_server, second_server)]
    assert all(a - b >= 5 for a, b in zip(after, before, strict=True))  # both had their share of 21
    # Nothing of the photos is in what Ray writes: neither names nor, however encoded, pictures.
    for path in cluster.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert b"nobody.png" not in data
            assert b"\xff\xd8\xff" not in data
            assert b"IHDR" not in data
    summary = run(photos, tmp_path / "out", tiny_server)
    assert summary["done_before"] == 23
    assert_same(tmp_path / "out", local)


@pytest.fixture
def servers(tmp_path):
    """Two servers that may be killed; the first may come back at its port."""
    repository = tiny_repository(tmp_path / "models")
    # Not one that Linux gives to outgoing connections: Ray opens hundreds, and one could hold it in the meantime.
    port = random.randrange(20_000, 32_000)
    with TritonServer(repository, grpc_port=port) as first, TritonServer(repository) as second:
        yield first, second


def test_servers_that_go_away_are_waited_for_and_left_out(cluster, photos, local, servers, tmp_path):
    first, second = servers
    done = []
    restarted = []

    def photo(record):
        done.append(record.path)
        if len(done) == 2:
            os.killpg(first._process.pid, signal.SIGKILL)  # the other one does the work
        if len(done) == 10:
            os.killpg(second._process.pid, signal.SIGKILL)  # now there is none, until the first is back
            wait_until(lambda: is_free(first.grpc_url))
            again = TritonServer(first.repository, grpc_port=int(first.grpc_url.rpartition(":")[2]))
            restarted.append(stack.enter_context(again))

    with ExitStack() as stack:
        run(photos, tmp_path / "out", first, second, watcher=Watcher(photo=photo))
    assert restarted
    assert sorted(done) == sorted(set(done))
    assert_same(tmp_path / "out", local)


class Deadly(Found):
    """Ends the process that unpickles it, as a decoder's crash would."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_photo_that_kills_workers_is_found_and_the_others_are_done(
    cluster, photos, local, tiny_server, tmp_path, monkeypatch
):
    def files(root):
        for found in walk(root):
            deadly = found.path == "a/1.png"
            yield Deadly(path=found.path, file=found.file, stamp=found.stamp) if deadly else found

    monkeypatch.setattr("visard_folder.places.walk", files)
    summary = run(photos, tmp_path / "out", tiny_server)
    assert summary["errors"]["WorkerLost"] == 1
    expected = outputs(local)
    del expected["a/1.png"]
    assert outputs(tmp_path / "out") == expected


def test_s3_on_both_sides(cluster, photos, local, tiny_server, bucket, tmp_path):
    for path in photos.rglob("*"):
        if path.is_file() and "\udcff" not in path.name and "loop" not in path.parts:  # S3's names are UTF-8
            bucket.pipe_file(f"visard-test/in/{path.relative_to(photos).as_posix()}", path.read_bytes())
    bucket.pipe_file("visard-test/in/a/../../out/escape.png", (photos / "a/ü/2.webp").read_bytes())
    there, back = "s3://visard-test/in", "s3://visard-test/out"
    run(there, back, tiny_server, journal_folder=tmp_path / "state")
    expected = {name: data for name, data in outputs(local).items() if "\udcff" not in name}
    written = {
        key.removeprefix("visard-test/out/"): bucket.cat_file(key)
        for key in bucket.find("visard-test/out")
        if "/.visard/" not in key
    }
    assert written == expected
    rows = {row["path"]: row for row in manifest(tmp_path / "state")}
    escape = rows.pop("a/../../out/escape.png")
    assert (escape["outcome"], escape["error"]) == ("failed", "UnreadablePhoto")
    of_local = {row["path"]: row for row in manifest(local) if row["path"] not in ("loop", "bytes\\xff.png")}
    assert rows == of_local
    assert (
        bucket.cat_file("visard-test/out/.visard/manifest.csv")
        == (tmp_path / "state/.visard/manifest.csv").read_bytes()
    )

    # The page stands beside the manifest, here and there, with the pictures of what was written.
    page = (tmp_path / "state/.visard/report.html").read_bytes()
    assert bucket.cat_file("visard-test/out/.visard/report.html") == page
    assert page.count(b"data:image/webp") == len(expected)
    assert b'href="../' not in page  # no browser reaches a store so

    # What stands there is not done again, what is gone or has changed is.
    bucket.rm_file("visard-test/out/0.jpg")
    bucket.pipe_file("visard-test/in/4.png", b"broken now")
    done = []
    run(there, back, tiny_server, journal_folder=tmp_path / "state", watcher=Watcher(photo=done.append))
    assert {record.path for record in done if record} >= {"0.jpg", "4.png"}
    assert len([record for record in done if record]) == 4  # these, the broken one and the one that escapes
    assert bucket.cat_file("visard-test/out/0.jpg") == expected["0.jpg"]


def test_the_engine_of_one_machine_takes_stores_and_several_servers_too(
    photos, local, tiny_server, second_server, bucket, tmp_path
):
    names = ("0.jpg", "4.png", "a/1.png")
    for name in names:
        bucket.pipe_file(f"visard-test/few/{name}", (photos / name).read_bytes())
    before = [inferences(server) for server in (tiny_server, second_server)]
    places = ("s3://visard-test/few", "s3://visard-test/few-out")
    options = {"engine": LocalEngine(workers=1), "journal_folder": tmp_path / "state"}
    run(*places, tiny_server, second_server, **options)
    assert {name: bucket.cat_file(f"visard-test/few-out/{name}") for name in names} == {
        name: data for name, data in outputs(local).items() if name in names
    }
    after = [inferences(server) for server in (tiny_server, second_server)]
    assert all(a > b for a, b in zip(after, before, strict=True))
    assert run(*places, tiny_server, **options)["done_before"] == len(names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["s3://a/b", "out"], "URLs need --engine ray"),
        (["in", "out", "--server", "a:1,b:2"], "several servers need --engine ray"),
        (["in", "s3://a/b", "--engine", "ray"], "--journal"),
        (["in", "out", "--engine", "ray", "--ray-address", "auto"], "needs --server"),
    ],
)
def test_options_that_do_not_go_together(arguments, words):
    result = CliRunner().invoke(app, ["folder", *arguments], env={"COLUMNS": "200", "VISARD_SERVER": ""})
    assert result.exit_code == 2
    assert words in result.output


def test_models_that_run_in_one_process_are_not_for_a_cluster(photos, tiny_server, tmp_path):
    job = FolderJob(source=photos, target=tmp_path / "out", connections=(Local(models=tiny_server.repository),))
    with pytest.raises(ServerRefused, match="a cluster asks servers"):
        anonymise_folder(job, RayEngine(workers=2))


def test_places_that_cannot_be_used(tmp_path):
    for target in ("ftp://host/out", "s3://key:secret@bucket/out"):
        with pytest.raises((OutputError, DataError)) as caught:
            run(tmp_path, target, "127.0.0.1:1", journal_folder=tmp_path / "state")
        assert "secret@" not in str(caught.value)
    with pytest.raises(OutputError, match="lie in each other"):
        run("s3://a", "s3://a/b", "127.0.0.1:1", journal_folder=tmp_path / "state")
    assert not (tmp_path / "state").exists()


# --- the examples that need a cluster or an object store ---


def test_the_example_of_a_folder_on_object_storage(bucket, astronaut, tiny_server, tmp_path, monkeypatch, capsys):
    bucket.pipe_file("visard-test/example/photo.jpg", astronaut.read_bytes())
    places = ["s3://visard-test/example", "s3://visard-test/example-out"]
    monkeypatch.setattr(sys, "argv", ["object_storage.py", *places])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example("object_storage.py", tmp_path, tiny_server.grpc_url)))
    assert "'anonymised': 1" in capsys.readouterr().out
    assert bucket.cat_file("visard-test/example-out/photo.jpg") != astronaut.read_bytes()
    assert (tmp_path / "journal" / ".visard" / "report.html").is_file()


def test_the_example_of_a_cluster(cluster, astronaut, tiny_server, tmp_path, monkeypatch, capsys):
    source = tmp_path / "in"
    source.mkdir()
    (source / "photo.jpg").write_bytes(astronaut.read_bytes())
    monkeypatch.setattr(sys, "argv", ["ray_cluster.py", str(source), str(tmp_path / "out")])
    runpy.run_path(str(example("ray_cluster.py", tmp_path, tiny_server.grpc_url)))
    assert "'anonymised': 1" in capsys.readouterr().out
    assert list(outputs(tmp_path / "out")) == ["photo.jpg"]
