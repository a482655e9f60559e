"""`visard web` as a process of its own: how it starts, how it ends, what it says."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from visard_testing.command_line import visard
from visard_testing.tiny_models import held
from visard_testing.waiting import wait_until
from visard_testing.web_server import web_process


def test_ctrl_c_ends_it_at_once(tiny_server):
    with web_process("--server", tiny_server.grpc_url) as (web, url):
        assert httpx.get(f"{url}/readyz").status_code == 200
        web.popen.send_signal(signal.SIGINT)
        assert web.wait() == 130
        assert "Traceback" not in web.said()


def test_ctrl_c_while_it_loads_its_libraries_is_quiet():
    command = [sys.executable, "-m", "visard_cli", "web", "--port", "0", "--server", "127.0.0.1:9"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_until(lambda: "numpy" in Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8"))
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in log.decode()


def test_sigterm_lets_requests_end(slow_server, astronaut):
    answers = []
    with web_process("--server", slow_server.grpc_url) as (web, url):

        def call():
            headers = {"Content-Type": "image/jpeg"}
            answers.append(
                httpx.post(f"{url}/v1/anonymize", content=astronaut.read_bytes(), headers=headers, timeout=60)
            )

        caller = threading.Thread(target=call)
        with held(slow_server.repository) as begun:
            caller.start()
            wait_until(begun)
            web.popen.send_signal(signal.SIGTERM)
        caller.join(60)
        assert web.wait() == 143
        assert "Traceback" not in web.said()
    assert [answer.status_code for answer in answers] == [200], answers[0].text


def test_models_may_come_later():
    with web_process("--server", "127.0.0.1:9") as (web, url):
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 503
        web.popen.terminate()
        assert web.wait() == 143


def test_it_listens_on_ipv6(tiny_server):
    with web_process("--server", tiny_server.grpc_url, "--host", "::1") as (web, url):
        assert url.startswith("http://[::1]:")
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert "nobody needs a key" not in web.said()


def test_a_public_address_without_keys_is_warned_of(tiny_server):
    with web_process("--server", tiny_server.grpc_url, "--host", "0.0.0.0") as (web, url):
        assert httpx.get(url.replace("0.0.0.0", "127.0.0.1") + "/healthz").status_code == 200
        assert "nobody needs a key" in web.said()
        assert "--api-keys" in web.said()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--rate", "often"), 2, "60/minute"),
        (("--server", "nowhere"), 2, "host:port"),
        (("--server", "127.0.0.1:9", "--host", "no.such.host.invalid"), 4, "cannot listen"),
        (("--server", "127.0.0.1:9", "--api-keys", "/missing"), 5, "API keys"),
        (("--max-mb", "0"), 2, "--max-mb"),
    ],
)
def test_wrong_usage_is_explained(arguments, code, words):
    done = visard("web", "--port", "0", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = visard("web", "--server", "127.0.0.1:9", "--port", taken.getsockname()[1])
    assert done.returncode == 4
    assert "Address already in use" in done.stderr


def test_a_missing_extra_is_named(tmp_path):
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')")
    # In front of what is there: packages may be found through it.
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = visard("web", env={"PYTHONPATH": path})
    assert done.returncode == 7
    assert "pip install 'visard[web]'" in done.stderr


def test_help_teaches():
    said = visard("web", "--help").stdout
    for words in ("Nothing is written to disk", "--api-keys", "X-API-Key", "127.0.0.1", "Example: visard web"):
        assert words in said
