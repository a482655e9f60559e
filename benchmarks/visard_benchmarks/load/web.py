"""The REST API for a load: `visard web` as a process of its own, in front of a server that runs already."""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from visard_benchmarks.processes import Processes

_START_S = 30


class NoWebServer(Exception):
    """The web server did not start; the message is what it said."""


@contextmanager
def web_api(server_url: str) -> Iterator[str]:
    """Start it, without a limit per caller, because one caller stands for many here; gives its URL.

    Raises:
        NoWebServer: it did not start, for want of `visard[web]` for one.
    """
    command = [sys.executable, "-m", "visard_cli", "web", "--port", "0", "--server", server_url, "--rate", "none"]
    with Processes(command, Path.cwd()) as process:
        yield _wait_for_url(process)


def _wait_for_url(process: Processes) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and not process.ended():
        if found := re.search(r"http://[\w.:\[\]]+", process.last_words()):
            with suppress(OSError):
                urllib.request.urlopen(f"{found[0]}/healthz", timeout=1).close()
                return found[0]
        time.sleep(0.05)
    raise NoWebServer(f"`visard web` did not start: {' '.join(process.last_words().split()) or 'it said nothing'}")
