"""Waiting for what another process or thread does."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float = 120) -> T:
    """Ask again and again until the answer is true, and give that answer.

    The time is for what never comes true: a busy machine may take long over what comes.

    Raises:
        TimeoutError: it did not become true in time.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)
    return answer


def is_free(url: str) -> bool:
    """Whether a server can listen at host:port; a killed one on a busy machine holds its port a moment longer."""
    host, _, port = url.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True
