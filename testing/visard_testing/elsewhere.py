"""This interpreter without what Windows lacks: `python -m visard_testing.elsewhere COMMAND…` runs `visard` like that.

Modules that only Unix has cannot be imported, and names of `os` and `signal` that only Unix has are not there. It does
not show what Windows itself does otherwise: file names, locks on open files, its console. All commands of a line run in
one interpreter, each after a `--`; what one of them ends with other than 0 ends the line.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
from importlib.abc import MetaPathFinder
from typing import NoReturn

import psutil  # noqa: F401 -- its part for Linux needs what its part for Windows does not

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
NAMES = {
    os: (
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fork", "forkpty"),
        *("getpgid", "killpg", "mkfifo", "posix_fallocate", "pread", "pwrite", "register_at_fork"),
        *("sched_getaffinity", "setsid", "statvfs"),
    ),
    signal: (
        *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm"),
        *("pthread_kill", "pthread_sigmask", "setitimer", "sigpending", "sigwait"),
    ),
}


class Missing(MetaPathFinder):
    """Finds none of the modules."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}: only Unix has it", name=name)


def take_away() -> None:
    """Hide the modules and names from whatever is imported from now on."""
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Missing())
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # the standard library's choice on Unix
    for module, names in NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


def main() -> NoReturn:
    """Be `visard` without them."""
    take_away()
    line: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        if word == "--":
            line.append([])
        else:
            line[-1].append(word)
    for command in line:
        sys.argv[1:] = command
        try:
            runpy.run_module("visard_cli", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    sys.exit()


if __name__ == "__main__":
    main()
