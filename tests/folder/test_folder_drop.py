"""`visard folder --watch`: photos are taken as they come, whole, once, and until Ctrl-C."""

import csv
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from visard.connection import Connection
from visard_cli.app import app
from visard_folder import FolderJob, LocalEngine, anonymise_folder
from visard_folder.drop import SETTLE_S, DropFolder
from visard_folder.walk import Found
from visard_testing.folder_trees import face_photo, outputs
from visard_testing.waiting import wait_until


def rows(target):
    path = target / ".visard" / "manifest.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["outcome"] for row in csv.DictReader(file)}


def test_photos_are_taken_as_they_come_until_interrupted(tiny_server, astronaut, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    face_photo(astronaut).save(source / "first.png")
    os.utime(source / "first.png", (1, 1))  # has been there for long
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    command = ["folder", source, target, "--server", tiny_server.grpc_url, "--workers", 1, "--watch"]
    process = subprocess.Popen(
        [sys.executable, "-m", "visard_cli", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )
    said = []
    reading = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    reading.start()

    def settled(*beginnings):
        """Whether the run waits after it has said all of this."""
        places = [next((at for at, line in enumerate(said) if line.startswith(each)), None) for each in beginnings]
        waits = [place for place, line in enumerate(said) if "waiting for photos" in line]
        return None not in places and waits and waits[-1] > max(places)

    try:
        wait_until(lambda: settled("first.png: anonymised", "broken.jpg: failed"))
        assert rows(target) == {"first.png": "anonymised", "broken.jpg": "failed"}
        (source / "new").mkdir()
        photo = face_photo(astronaut, brightness=0.6)
        photo.save(tmp_path / "whole.png")
        whole = (tmp_path / "whole.png").read_bytes()
        with (source / "new" / "slow.png").open("wb") as file:
            file.write(whole[:5000])
            file.flush()
            (source / "gone.png").write_bytes(whole)
            (source / "gone.png").unlink()
            (tmp_path / "whole.png").rename(source / "moved.png")
            file.write(whole[5000:])
        wait_until(lambda: settled("new/slow.png: anonymised", "moved.png: anonymised"))
        process.send_signal(signal.SIGINT)
        out = process.stdout.read()
        assert process.wait(60) == 3, said  # for the broken one
    finally:
        process.kill()
        process.wait()
        reading.join(60)
        process.stdout.close()
        process.stderr.close()
    assert "Traceback" not in "".join(said)
    assert "anonymised" in out
    done = ("first.png", "moved.png", "new/slow.png")
    assert rows(target) == {**dict.fromkeys(done, "anonymised"), "broken.jpg": "failed"}
    assert set(outputs(target)) == set(done)
    assert sum(line.startswith("broken.jpg") for line in said) == 1  # not tried again and again

    job = FolderJob(source=source, target=target, connections=(Connection(url=tiny_server.grpc_url),))
    summary = anonymise_folder(job, LocalEngine(workers=1))
    assert (summary["changed"], summary["done_before"]) == (False, 3)


def test_a_file_is_taken_when_it_has_not_changed_for_a_while(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1e9)
    clock.time = clock.monotonic = lambda: clock.now
    folder = DropFolder(tmp_path)
    monkeypatch.setattr("visard_folder.drop.time", clock)

    def ready(size, changed_at):
        return folder.ready(Found(path="a.jpg", file="a.jpg", stamp=(size, int(changed_at * 1e9))))

    def next_look():
        folder._before, folder._growing = folder._growing, {}

    assert ready(10, clock.now - 2 * SETTLE_S)  # moved here, or complete for long
    assert not ready(10, clock.now)
    ahead = clock.now + 1000  # by the clock of the machine that writes
    assert not ready(10, ahead)
    for size in (20, 30):
        clock.now += SETTLE_S
        next_look()
        assert not ready(size, ahead)  # still growing
    clock.now += SETTLE_S / 2
    next_look()
    assert not ready(30, ahead)
    clock.now += SETTLE_S / 2
    next_look()
    assert ready(30, ahead)
    folder.failed("a.jpg", (30, int(ahead * 1e9)))
    assert not ready(30, ahead)
    assert ready(31, clock.now - SETTLE_S)


@pytest.mark.parametrize("options", [["in", "out", "--engine", "ray"], ["s3://in", "out"], ["in", "gs://out"]])
def test_only_folders_of_this_machine_are_watched(options):
    run = CliRunner().invoke(app, ["folder", *options, "--watch"])
    assert run.exit_code == 2
    assert "--watch works on this machine" in " ".join(run.output.split())
