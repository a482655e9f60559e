"""What this machine has for a process: cores and memory."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of Linux


def cores() -> int:
    """How many cores this process may use: all of the machine's where the system cannot say (macOS, Windows)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_bytes() -> int:
    """How much memory can be had: what is free, or what the container around this process allows where that is less."""
    import psutil  # here and not above: one command wants it, and all import this

    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # there is no container, or none with a limit ("max")
        free = min(free, int(_CONTAINER_LIMIT.read_text("ascii")))
    return free
