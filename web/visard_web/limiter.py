"""How many photos are worked on at once, how many requests wait for that, and how often each caller may ask.

A request that finds the queue full, or waits too long in it, is refused with the time after which to try again.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter

from visard_web.problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_RETRY_S = 5


class ConcurrencyLimiter:
    """A queue of `waiting` places before `in_work` slots.

    Attributes:
        present: requests that have a place or a slot.
        working: those that have a slot.
        entered: how many ever had a place.
    """

    def __init__(self, *, in_work: int, waiting: int, wait_s: float) -> None:
        self.present = 0
        self.working = 0
        self.entered = 0
        self._places = in_work + waiting
        self._wait_s = wait_s
        self._slots = asyncio.Semaphore(in_work)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place, from before a body is read until its answer is made.

        Raises:
            Problem: 503, there is none.
        """
        if self.present >= self._places:
            raise _full()
        self.present += 1
        self.entered += 1
        try:
            yield
        finally:
            self.present -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it while there are decoded photos in memory.

        Raises:
            Problem: 503, none became free in time.
        """
        try:
            await asyncio.wait_for(self._slots.acquire(), self._wait_s)
        except asyncio.TimeoutError:
            raise _full() from None
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1
            self._slots.release()


class Rate:
    """How often each caller may come, over a moving window.

    Args:
        rate: such as ``60/minute``; None for as often as one likes.
    """

    def __init__(self, rate: str | None) -> None:
        self._rate = None if rate is None else parse(rate)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def count(self, caller: str) -> None:
        """Count one request of a caller; who asks for two kinds of things has a count for each.

        Raises:
            Problem: 429, the rate is used up.
        """
        if self._rate is None or await self._limiter.hit(self._rate, caller):
            return
        window = await self._limiter.get_window_stats(self._rate, caller)
        pause_s = max(1, math.ceil(window.reset_time - time.time()))
        raise Problem(
            429,
            "TooManyRequests",
            f"more than {self._rate.amount} photos per {self._rate.get_expiry()} s: wait {pause_s} s",
            {"Retry-After": str(pause_s)},
        )


def _full() -> Problem:
    return Problem(
        503, "Overloaded", "too many photos are under way: try again in a few seconds", {"Retry-After": str(_RETRY_S)}
    )
