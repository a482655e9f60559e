"""Closed and open loops over one transport, in as many processes as the load needs.

In a closed loop a fixed number of callers send their next request when the last one is back. It finds what a server can
do, and is blind to a stall, because nobody sends during it. In an open loop requests are due at moments drawn before
and are sent whether or not earlier ones are back, as independent callers do.

The clock is the event loop's, which on Linux is the machine's monotonic clock: the processes of one load share it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from visard_benchmarks.load.figures import FLIPPED, UNFLIPPED, Sample, Timing, Turn
from visard_benchmarks.load.transports import RequestFailed, Send, Transport
from visard_errors import VisardError

_START_IN_S = 0.5  # time for every process to be there when the load starts


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is put on a transport: either so many callers in a closed loop, or a rate in an open one."""

    callers: int = 0
    rate_per_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is neither or both."""
        if (self.callers > 0) == (self.rate_per_s > 0):
            raise ValueError("a load has either callers or a rate")


def poisson_schedule(rate_per_s: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Draw the moments at which requests are due.

    Args:
        rate_per_s: how many come per second on average.
        seconds: length of the schedule.
        seed: the same seed gives the same schedule.

    Returns:
        (N,) ascending seconds from the start, all below `seconds`. N varies as a Poisson number does: its standard
        deviation is the root of its mean.

    Raises:
        ValueError: the rate or the length is not positive.
    """
    if rate_per_s <= 0 or seconds <= 0:
        raise ValueError(f"rate and length must be positive, not {rate_per_s:g}/s over {seconds:g} s")
    rng = np.random.default_rng(seed)
    mean = rate_per_s * seconds
    enough = int(mean + 10 * mean**0.5 + 10)  # ten standard deviations more than are needed
    moments: NDArray[np.float64] = np.cumsum(rng.exponential(1 / rate_per_s, enough))
    return np.asarray(moments[moments < seconds])


async def closed_loop(send: Send, callers: int, end_s: float, start_at_s: float) -> list[Sample]:
    """Let `callers` send one request after another until `end_s` seconds after the moment `start_at_s` of the clock."""
    clock, numbers = asyncio.get_running_loop().time, itertools.count()
    samples: list[Sample] = []
    await _until(start_at_s)

    async def caller() -> None:
        while (due_s := clock() - start_at_s) < end_s:
            outcome = await _outcome(send, next(numbers))
            samples.append(Sample(due_s, due_s, clock() - start_at_s, outcome))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return samples


async def open_loop(send: Send, due_s: Sequence[float], start_at_s: float) -> list[Sample]:
    """Send a request at each of the moments, in seconds after `start_at_s`, and wait for every answer."""
    clock = asyncio.get_running_loop().time
    tasks = []

    async def request(number: int, due: float) -> Sample:
        sent = clock() - start_at_s
        outcome = await _outcome(send, number)
        return Sample(due, sent, clock() - start_at_s, outcome)

    for number, due in enumerate(due_s):
        await _until(start_at_s + due)
        tasks.append(asyncio.create_task(request(number, due)))
    return list(await asyncio.gather(*tasks))


class Senders:
    """The processes that send; this one alone where one is enough.

    One Python process sends some hundred faces per second. More of them divide the callers, or the moments of an open
    loop, among themselves.
    """

    def __init__(self, count: int, pool: ProcessPoolExecutor | None) -> None:
        self.count = count
        self._pool = pool

    def run(self, transport: Transport, load: Load, timing: Timing, seed: int) -> Turn:
        """Put a load on a transport, once."""
        if self._pool is None:
            samples = _part(transport, load, timing, seed, 0, 1, None)
        else:
            at = time.monotonic() + _START_IN_S
            parts = [
                self._pool.submit(_part, transport, load, timing, seed, part, self.count, at)
                for part in range(self.count)
            ]
            samples = sorted(sample for part in parts for sample in part.result())
        return Turn(timing=timing, samples=samples, open_loop=load.rate_per_s > 0)


@contextmanager
def senders(count: int) -> Iterator[Senders]:
    """Hold `count` processes that send; for one there is none beside this one."""
    if count == 1:
        yield Senders(1, None)
        return
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        list(pool.map(_ready, range(4 * count)))  # started and with everything imported
        yield Senders(count, pool)


def _part(
    transport: Transport, load: Load, timing: Timing, seed: int, part: int, parts: int, start_at_s: float | None
) -> list[Sample]:
    async def run() -> list[Sample]:
        async with transport.opened(patient=load.callers > 0) as send:
            await send(0)  # connects, and lets the server check what it checks once
            at = time.monotonic() if start_at_s is None else start_at_s
            if load.callers:
                return await closed_loop(send, len(range(part, load.callers, parts)), timing.end_s, at)
            due = poisson_schedule(load.rate_per_s, timing.end_s, seed)[part::parts]
            return await open_loop(send, due.tolist(), at)

    return asyncio.run(run())


async def _outcome(send: Send, number: int) -> str:
    try:
        return FLIPPED if await send(number) else UNFLIPPED
    except VisardError as error:
        return type(error).__name__
    except RequestFailed as error:
        return str(error)


async def _until(moment_s: float) -> None:
    """Sleep; let others run even where the moment has passed."""
    await asyncio.sleep(max(0.0, moment_s - asyncio.get_running_loop().time()))


def _ready(_: int) -> int:
    return os.getpid()
