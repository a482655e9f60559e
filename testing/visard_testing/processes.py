"""A server with all its processes: started in a session of their own, their CPU time added up, and all ended.

Servers fork workers that outlive a signal to their parent, in sessions of their own. So every process that comes from
here carries a random mark in its environment, which its children inherit, and the end looks for the mark.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

_MARK = "VISARD_MARK"
_GRACE_S = 8.0


class Processes:
    """One command and whatever it starts; all of it is gone when the block is left.

    Args:
        command: program and arguments.
        folder: working directory.
        environment: variables on top of this process's own.

    Attributes:
        popen: the command itself.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> None:
        self._mark = f"{_MARK}={secrets.token_hex(16)}"
        name, _, value = self._mark.partition("=")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block
        self.popen = subprocess.Popen(
            [*_end_with_parent(), *command],
            cwd=folder,
            env={**os.environ, **(environment or {}), name: value},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
        )

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(_GRACE_S)
        finally:
            end_marked(self._mark)
            self.popen.wait()
            self._log.close()

    def ended(self) -> bool:
        """Whether the command itself is over."""
        return self.popen.poll() is not None

    def wait(self, seconds: float = 120) -> int:
        """Wait for the command's end; gives its exit code. Raises subprocess.TimeoutExpired."""
        return self.popen.wait(seconds)

    def said(self) -> str:
        """What the processes have written until now."""
        log = self._log.fileno()  # read without a seek: they write where its position is
        return os.pread(log, os.fstat(log).st_size, 0).decode("utf-8", "replace")

    def last_words(self, letters: int = 2000) -> str:
        """The end of it."""
        return self.said()[-letters:]

    def cpu_seconds(self) -> float:
        """Processor time of all processes that live."""
        return sum(map(cpu_seconds, marked(self._mark)))


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of one process; 0 where it is gone."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def marked(mark: str) -> list[psutil.Process]:
    """Processes whose environment has `NAME=value`."""
    found = []
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


def end_marked(mark: str) -> None:
    """Kill every process with the mark, and those that they start meanwhile."""
    deadline = time.monotonic() + _GRACE_S
    while (processes := marked(mark)) and time.monotonic() < deadline:
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=1)


def _end_with_parent() -> list[str]:
    """Words before a command that end it when this process is killed, where the system has them.

    A program does it, not this process between fork and exec: gRPC's threads do not live through a fork.
    """
    setpriv = shutil.which("setpriv")  # of util-linux
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
