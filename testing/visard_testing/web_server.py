"""The web server as it ships, on a free port of this machine: in a thread, or as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from visard import Connection
from visard_web.serve import listen, make_server
from visard_web.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

START_S = 60


@contextmanager
def web_server(triton_url: str, *, deadline_s: float = 30.0, **settings: object) -> Iterator[str]:
    """Serve in a thread of this process.

    Args:
        triton_url: host:port of the models, such as `tiny_server.grpc_url`.
        deadline_s: for one face.
        settings: of `visard_web.settings.Settings`; no rate limit unless there is one among them.

    Yields:
        The server's address, such as http://127.0.0.1:40123
    """
    listening = listen("127.0.0.1", 0)
    server = make_server(
        Connection(url=triton_url, deadline_s=deadline_s),
        Settings(**{"rate": None, **settings}),  # type: ignore
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), name="web", daemon=True)
    thread.start()
    try:
        waiting = threading.Event()
        for _ in range(START_S * 100):
            if server.started or not thread.is_alive():
                break
            waiting.wait(0.01)
        assert server.started, "the web server did not start"
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_S)
        listening.close()


@contextmanager
def web_process(
    *arguments: str, env: dict[str, str] | None = None, cwd: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `visard web` on a free port as a process of its own.

    Yields:
        The process, whose standard error is a pipe and whose `said` is what came until now, and the server's address.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "visard_cli", "web", "--port", "0", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **(env or {})},
        cwd=cwd,
    )
    said = []
    try:
        for line in process.stderr:  # type: ignore[union-attr]
            said.append(line)
            if "startup complete" in line:
                break
        address = next((line.split()[2].rstrip("/") for line in said if line.startswith("Visard's page:")), None)
        process.said = "".join(said)  # type: ignore[attr-defined]
        assert address is not None, process.said  # type: ignore[attr-defined]
        yield process, address
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        elif process.stderr is not None:
            process.stderr.close()
