"""Writes files atomically: under a temporary name first, then renamed. And how names are told apart and shown."""

from __future__ import annotations

import os
import re
import secrets
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

T = TypeVar("T")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all: an older one stays until the new one is safe on the disk.

    Raises:
        OSError: it cannot be written, the disk is full for instance; the older file is untouched.
    """
    replace_atomically(path, lambda draft: draft.write_bytes(data))


def replace_atomically(path: Path, write: Callable[[Path], T], *, drafts: Path | None = None) -> T:
    """Let `write` fill a draft, and put that in the place of `path` when it is done and safe on the disk.

    Args:
        path: of the file.
        write: is given the draft's path, whose suffix says nothing.
        drafts: folder for the draft, on the disk of `path`; the file's own by default.

    Returns:
        What `write` returned.

    Raises:
        OSError: it cannot be written; the older file is untouched. So it is when `write` raises anything else.
    """
    draft = (drafts or path.parent) / f".visard-{secrets.token_hex(8)}.draft"  # torch wants a name before the suffix
    try:
        done = write(draft)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    return done


# https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file: characters, ends of names, names of devices.
_NOT_ON_WINDOWS = re.compile(
    r"[<>:\"\\|?*\x00-\x1f]|[. ](?=/|$)|(?<![^/])(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?=[ .]*(\.|/|$))",
    re.IGNORECASE,
)


def name_problem(path: str, system: str = os.name) -> str | None:
    """Why this system would take a relative path with slashes for something else, if so.

    A store may hold names that mean a device, a drive or another folder on Windows. Elsewhere nothing but a slash means
    anything.
    """
    found = _NOT_ON_WINDOWS.search(path) if system == "nt" else None
    return f"{found[0]!r} cannot be in one on Windows" if found else None


def folds_case(folder: Path) -> bool:
    """Whether a folder takes two names that differ by case only for one.

    Raises:
        OSError: nothing can be written into it, which is how this is found out.
    """
    with TemporaryDirectory(prefix=".visard-", dir=folder) as probe:
        (Path(probe) / "Case").touch()
        return (Path(probe) / "cASE").exists()


def folded(name: str) -> str:
    """What all names have in common that such a folder takes for one; these compose letters and accents too."""
    return unicodedata.normalize("NFC", name.casefold())


def one_line(text: str) -> str:
    """Escape what a terminal or a browser would act on: ends of lines, control codes, changes of direction."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )
