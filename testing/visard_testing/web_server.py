"""The web server as it ships, on a free port of this machine: in a thread, or as a process of its own."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from visard import Connection
from visard_testing.processes import Processes
from visard_testing.waiting import wait_until
from visard_web.serve import listen, make_server
from visard_web.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

START_S = 120


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
) -> Iterator[tuple[Processes, str]]:
    """Run `visard web` on a free port as a process of its own, in a session of its own.

    Yields:
        The process, which writes nothing to standard output, and its address, such as http://127.0.0.1:40123

    Raises:
        RuntimeError: it did not start, for want of `visard[web]` for one.
    """
    command = [sys.executable, "-m", "visard_cli", "web", "--port", "0", *arguments]
    environment = {"COLUMNS": "200", "NO_COLOR": "1", **(env or {})}
    with Processes(command, Path(cwd or "."), environment) as web:
        wait_until(lambda: "startup complete" in web.said() or web.ended(), START_S)
        address = re.search(r"Visard's page: (\S+)/", web.said())
        if address is None or web.ended():
            raise RuntimeError(f"`visard web` did not start: {' '.join(web.said().split()) or 'it said nothing'}")
        yield web, address[1]
