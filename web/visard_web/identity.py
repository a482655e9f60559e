"""Measures the distance between two faces' descriptors, in a separate process.

Landmarks, chips and descriptors are not computed between the callers then. Crops travel through a pipe; the process
writes nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import numpy as np

from visard.judgement import identity_distance

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from visard import Options

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_BLANK = np.zeros((512, 512, 3), np.uint8)


class Identity:
    """Measures identity distances, for an `AsyncClient`.

    Args:
        options: whose models to load at the start.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pool: ProcessPoolExecutor | None = None

    def start(self) -> None:
        """Start the process and let it load what it needs, beside everything else."""
        self._pool = _make_pool()
        self._pool.submit(identity_distance, _BLANK, _BLANK, self._options)

    def close(self) -> None:
        """Let the process end."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def measure(self, aligned: NDArray[np.uint8], swapped: NDArray[np.uint8], options: Options) -> float:
        """Measure the identity distance of one face; see `visard.judgement.identity_distance`."""
        ask = partial(identity_distance, aligned, swapped, options)
        pool = self._pool
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, ask)
        except BrokenProcessPool:  # somebody killed it, the kernel short of memory perhaps: once more in a new one
            if self._pool is pool:
                self._pool = _make_pool()
            return await asyncio.get_running_loop().run_in_executor(self._pool, ask)


def _make_pool() -> ProcessPoolExecutor:
    """Start the process. From its first moment on it leaves Ctrl-C, which a terminal sends to it too, to the parent."""
    resource_tracker.ensure_running()  # else the pool starts it below, which lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as a new process inherits it
    try:
        pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
        )
        pool.submit(os.getpid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


def _begin(parent: int) -> None:
    """End with the parent, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit()
