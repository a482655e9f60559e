"""How many faces a client has under way at once: as many as it may, or as many as the server takes.

A server whose queues are full refuses. A caller who keeps sending as many makes it refuse again and again, and
the face that comes again finds its place taken by the next one of the same caller. So a refusal lowers the limit to
what is under way, answers raise it again by one for each round of them (additive increase, as in TCP's congestion
avoidance, RFC 5681, section 3.1), and what was refused goes first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from visard_errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Slots:
    """First come, first served, on one event loop.

    Args:
        most: how many may be taken at once.
        adapts: lower the limit where a slot's work raises `Overloaded`.
    """

    def __init__(self, most: int, *, adapts: bool = True) -> None:
        self._most = most
        self._adapts = adapts
        self._limit = float(most)  # its fraction counts answers
        self._taken = 0
        self._again: deque[asyncio.Future[None]] = deque()  # those who were refused before
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self, *, again: bool = False) -> AsyncIterator[None]:
        """Wait for a slot and hold it.

        Args:
            again: after a refusal; those come before all others.
        """
        await self._take(self._again if again else self._waiting)
        try:
            yield
            self._limit = min(self._most, self._limit + 1 / self._limit)
        except Overloaded:
            if self._adapts:
                self._limit = max(1.0, self._taken - 1.0)
            raise
        finally:
            self._give_back()

    async def _take(self, queue: deque[asyncio.Future[None]]) -> None:
        if self._taken < int(self._limit):  # then nobody waits
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the slot was handed over in the same moment
                self._give_back()
            raise

    def _give_back(self) -> None:
        self._taken -= 1
        while self._taken < int(self._limit) and (queue := self._again or self._waiting):
            turn = queue.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._taken += 1
