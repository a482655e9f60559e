"""The comparison with other servers: real processes on loopback, the same loop for all, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest

from visard_benchmarks.drive import IMAGE_BYTES, HttpCaller, drive_threads
from visard_benchmarks.identity import identity_models
from visard_benchmarks.peers import __main__ as peers
from visard_benchmarks.peers import environments
from visard_benchmarks.peers.__main__ import best_within, ratios
from visard_benchmarks.peers.environments import PEERS, find_python, how_to_install, is_installed, requirements
from visard_testing.processes import Processes, marked
from visard_testing.waiting import wait_until


def figures(images_per_s, p99_ms):
    return {"images_per_s": images_per_s, "p99_ms": p99_ms}


def test_two_peers_and_the_identity_model(capsys):
    arguments = ["--only", "socket", "visard-shared", "--workload", "identity", "--quick", "--seconds", "0.3"]
    previous = signal.getsignal(signal.SIGTERM)
    try:
        peers.main([*arguments, "--p99-ms", "60000"])
    finally:
        signal.signal(signal.SIGTERM, previous)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    identity = summary["workloads"]["identity"]
    assert identity["failed"] == {}
    assert set(identity["best_images_per_s"]) == {"socket", "visard-shared"}
    for levels in identity["peers"].values():
        assert set(levels) == {"1", "8"}
        assert all(each["images_per_s"] > 0 and each["p50_ms"] <= each["p99_ms"] for each in levels.values())
        assert all(each["server_cpu_ms"] > 0 and each["client_cpu_ms"] > 0 for each in levels.values())
    assert summary["environment"]["cores"] >= 1
    assert not [process for process in psutil.Process().children(recursive=True) if "serve_" in str(process.cmdline())]


def test_an_answer_that_is_another_picture_does_not_count(tmp_path):
    model, repository = identity_models(tmp_path)
    image = np.full((1, 512, 512, 3), 7, np.uint8)
    bench = peers.Bench("identity", model, repository, image, 0.1)
    bench.check(image.tobytes())
    with pytest.raises(ValueError, match="away from the bare graph"):
        bench.check((image + 1).tobytes())


@pytest.mark.parametrize("key", ["visard", "visard-shared"])
def test_triton_is_asked_for_the_persona_of_the_bare_graph(writing_server, key):
    repository = writing_server.repository
    bench = peers.Bench("photos", repository, repository, np.full((1, 512, 512, 3), 60, np.uint8), 0.1)
    bench.check(bench.ask_once(PEERS[key], int(writing_server.grpc_url.rpartition(":")[2])))


def test_a_peer_that_is_missing_is_named_and_left_out(capsys, monkeypatch):
    monkeypatch.setattr(environments, "requirements", lambda peer: ("no-such-distribution-anywhere>=1",))
    previous = signal.getsignal(signal.SIGTERM)
    try:
        summary = peers.main(["--only", "litserve", "--workload", "identity", "--quick", "--seconds", "0.1"])
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert "no-such-distribution-anywhere" in summary["left_out"]["litserve"]
    assert "LitServe is not installed" in capsys.readouterr().out
    assert summary["workloads"]["identity"]["peers"] == {}


@pytest.mark.parametrize("key", PEERS)
def test_every_peer_says_what_it_needs(key):
    peer = PEERS[key]
    assert requirements(peer)
    assert all(requirement in how_to_install(peer, Path("there")) for requirement in requirements(peer))


def test_an_environment_of_its_own_comes_first(tmp_path):
    peer = PEERS["litserve"]
    python = tmp_path / "litserve" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert find_python(peer, tmp_path) == python
    assert find_python(PEERS["visard"], tmp_path) == Path(sys.executable)


def test_what_pip_would_have_to_add_is_not_installed():
    assert is_installed(["visard[serve]", "numpy"])
    assert not is_installed(["numpy>=1000"])
    assert not is_installed(["numpy", "no-such-distribution-anywhere"])


def test_the_best_rate_is_one_that_keeps_the_bound():
    levels = {1: figures(100, 10), 8: figures(180, 45), 16: figures(200, 80)}
    assert best_within(levels, 50) == (8, levels[8])
    assert best_within(levels, 100) == (16, levels[16])
    assert best_within(levels, 5) is None


def test_ratios_are_over_the_best_rival_alone():
    rates = {"fastapi": 200.0, "litserve": 100.0, "socket": 2000.0, "visard": 300.0}
    assert ratios({**rates, "visard-shared": 900.0}) == {
        "grpc_over_best_peer": 1.5,
        "shared_memory_over_best_peer": 4.5,
        "shared_memory_over_grpc": 3.0,
    }
    assert ratios(rates)["shared_memory_over_grpc"] is None
    assert ratios({"visard": 1.0}) == dict.fromkeys(ratios({}))


class Echo(BaseHTTPRequestHandler):
    """Sends an image back, the way the path asks for."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if self.path == "/broken" else 200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (body[:5], body[5:400_000], body[400_000:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def echo():
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["/whole", "/chunked"])
def test_a_caller_reads_the_whole_answer_and_keeps_its_connection(echo, path):
    caller = HttpCaller(echo, path)
    images = [os.urandom(IMAGE_BYTES) for _ in range(3)]
    assert [bytes(caller(image)) for image in images] == images
    caller.close()


def test_an_error_is_no_answer(echo):
    with pytest.raises(ConnectionError, match="500"):
        drive_threads(lambda: HttpCaller(echo, "/broken"), bytes(IMAGE_BYTES), in_flight=2, seconds=0.1)


def test_only_answers_within_the_time_count(echo):
    load = drive_threads(lambda: HttpCaller(echo, "/whole"), bytes(IMAGE_BYTES), in_flight=2, seconds=0.5)
    assert load.images_per_s == len(load.latencies_s) / 0.5
    # two callers cannot have spent more time waiting than there was, the warm-up's last requests included
    assert 0 < sum(load.latencies_s) <= 2 * (0.5 + max(load.latencies_s))


FORKING = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("forked", flush=True)
time.sleep(600)
"""


def test_a_daemon_that_left_its_session_is_ended_too():
    with Processes([sys.executable, "-c", FORKING], Path.cwd()) as processes:
        wait_until(lambda: "forked" in processes.last_words())
        started = marked(processes._mark)
        assert len(started) == 2
        assert processes.cpu_seconds() > 0
    assert not any(map(alive, started))


def alive(process):
    """Whether it runs: one that ended stays in the list until whoever started it has asked how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def servers_of(run):
    """The peers that a run has started; it starts other programs too, which end at any moment."""
    found = []
    for process in psutil.Process(run.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # of which a zombie is one
            if "serve_socket.py" in str(process.cmdline()):
                found.append(process)
    return found


def test_an_interrupted_run_leaves_no_process_behind():
    command = [sys.executable, "-m", "visard_benchmarks.peers", "--only", "socket", "--workload", "identity"]
    run = subprocess.Popen([*command, "--seconds", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        servers = wait_until(lambda: servers_of(run))
        os.kill(run.pid, signal.SIGINT)
        run.wait(60)
        wait_until(lambda: not any(map(alive, servers)))
    finally:
        run.kill()
        run.wait()
