"""Faces handed to a server on the same machine, and taken from it, in memory that both map.

The connection then carries names and numbers only, no pixels. A region belongs to one face at a time. As soon as the
server has opened it, its name is removed from the file system: nobody else can open it, and the kernel frees it when
client and server have ended, however they end.

A request that was given up, after its deadline or by cancellation, may still be at work on the server and write into
its region later. Such a region rests until that cannot happen any more, so that no face is ever found in another
one's place; while all regions rest, faces travel over the connection. Linux only.
"""

from __future__ import annotations

import mmap
import os
import secrets
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visard.wire import REGION_SIZE
from visard_errors import ServerRefused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_FOLDER = Path("/dev/shm")  # noqa: S108 -- where Linux keeps POSIX shared memory


@dataclass(frozen=True, eq=False)
class Region:
    """Memory for one face and its answer.

    Attributes:
        name: under which the server knows it.
        memory: (REGION_SIZE,) uint8; `wire` says what lies where.
    """

    name: str
    memory: NDArray[np.uint8]


class RegionPool:
    """The regions of one connection, made when they are first needed.

    Args:
        size: how many there are at most.
        rest_s: after how many seconds the server has surely done with a request that was given up.
        register: makes a name, which is also the key of the shared memory, known to the server.
    """

    def __init__(self, size: int, rest_s: float, register: Callable[[str], Awaitable[None]]) -> None:
        self._size = size
        self._rest_s = rest_s
        self._register = register
        self._lent: set[Region] = set()
        self._idle: list[Region] = []
        self._resting: deque[tuple[float, Region]] = deque()  # by the time when they may be used again
        self._in_making = 0

    async def take(self) -> Region | None:
        """Lend a region; None while every one is in use or rests.

        Raises:
            VisardError: the server refuses to share memory, or there is none to share.
        """
        while self._resting and self._resting[0][0] <= time.monotonic():
            self._idle.append(self._resting.popleft()[1])
        if self._idle:
            region = self._idle.pop()
        elif len(self._lent) + len(self._resting) + self._in_making < self._size:
            self._in_making += 1
            try:
                region = await self._make()
            finally:
                self._in_making -= 1
        else:
            return None
        self._lent.add(region)
        return region

    def give_back(self, region: Region, *, answered: bool) -> None:
        """End a loan; `answered` says that the server has sent its answer and will not touch the region again."""
        if region not in self._lent:
            return  # forgotten meanwhile
        self._lent.remove(region)
        if answered:
            self._idle.append(region)
        else:
            self._resting.append((time.monotonic() + self._rest_s, region))

    def forget(self) -> list[str]:
        """Drop every region, because the server has restarted or the connection ends.

        Returns:
            Names of the regions that the server does not use any more, to be unregistered where it still runs.
        """
        idle = [region.name for region in self._idle]
        self._lent.clear()
        self._idle.clear()
        self._resting.clear()
        return idle

    async def _make(self) -> Region:
        name = f"visard-{secrets.token_hex(16)}"
        path = _FOLDER / name
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            try:
                os.posix_fallocate(
                    descriptor, 0, REGION_SIZE
                )  # too little memory must fail here, not by a signal later
                memory = mmap.mmap(descriptor, REGION_SIZE)
            finally:
                os.close(descriptor)
            await self._register(name)
        except OSError as error:
            raise ServerRefused(
                f"no shared memory can be had here ({_FOLDER}: {error.strerror}): free some (a container has its own "
                "limit, --shm-size) or leave shared_memory off"
            ) from None
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        return Region(name, np.frombuffer(memory, np.uint8))
