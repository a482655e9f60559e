"""The REST API for a load: `visard web` as a process of its own, in front of a server that runs already."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_START_S = 30


class NoWebServer(Exception):
    """The web server did not start; the message is what it said."""


@contextmanager
def web_api(server_url: str) -> Iterator[str]:
    """Start it, without a limit per caller, because one caller stands for many here; gives its URL.

    Raises:
        NoWebServer: it did not start, for want of `visard[web]` for one.
    """
    program = Path(sys.executable).with_name("visard")
    command = [str(program), "web", "--port", "0", "--server", server_url, "--rate", "none"]
    with tempfile.TemporaryFile("w+") as log:  # not a pipe: nobody would empty it
        process = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            yield _wait_for_url(process, log)
        finally:
            process.terminate()
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: IO[str]) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        log.seek(0)
        said = log.read()
        if found := re.search(r"http://[\w.:\[\]]+", said):
            with suppress(OSError):
                urllib.request.urlopen(f"{found[0]}/healthz", timeout=1).close()
                return found[0]
        if process.poll() is not None:
            raise NoWebServer(f"`visard web` did not start: {' '.join(said.split()) or 'it said nothing'}")
        time.sleep(0.05)
    raise NoWebServer(f"`visard web` did not start within {_START_S} s")
