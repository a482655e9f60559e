"""Returns free memory to the operating system, which the C library would keep for later photos."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Return what is free to the machine, where the C library is glibc. Takes milliseconds, off the interpreter."""
    with suppress(AttributeError, OSError, TypeError):  # another C library; Windows has none under no name
        ctypes.CDLL(None).malloc_trim(0)
