"""How often a piece of work can be done per second on all cores, and the bare graphs as such a piece of work."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visard_benchmarks.peers.servers.graph import Graph

CORES = len(os.sched_getaffinity(0))


def rate_of(work: Callable[[], Any], seconds: float, workers: int = CORES) -> float:
    """Calls per second of a piece of work on some threads at once; each calls it once before the clock starts.

    What the work raises is raised here.
    """
    ready = threading.Barrier(workers)

    def loop(_: int) -> float:
        try:
            work()
        except BaseException:
            ready.abort()
            raise
        with suppress(threading.BrokenBarrierError):  # the one that failed says why
            ready.wait()
        count, start = 0, time.perf_counter()
        while not ready.broken and time.perf_counter() - start < seconds:
            work()
            count += 1
        return count / (time.perf_counter() - start)

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(loop, range(workers)))


def per_thread(make: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """Work that every thread does with something of its own, made at its first call."""
    own = threading.local()

    def work() -> Any:
        if not hasattr(own, "work"):
            own.work = make()
        return own.work()

    return work


def bare_graphs(models: Path, image: NDArray[np.uint8], threads: int = 1) -> Callable[[], Any]:
    """One image through the graphs without any server; every thread that calls it has sessions of its own.

    Args:
        models: model repository, or the ONNX file of the identity.
        image: (1, 512, 512, 3) uint8 RGB.
        threads: of each session.
    """

    def make() -> Callable[[], Any]:
        graph = Graph(models, threads)
        return lambda: graph(image)

    return per_thread(make)


def bare_rate(models: Path, image: NDArray[np.uint8], seconds: float) -> float:
    """Images per second without any server: the faster of one thread per graph on each core, and all cores on each."""
    layouts = sorted({1, CORES})
    return max(rate_of(bare_graphs(models, image, threads), seconds, CORES // threads) for threads in layouts)
