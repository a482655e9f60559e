"""How often a piece of work can be done per second on all cores, and the bare graphs as such a piece of work."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visard_benchmarks.peers.servers.graph import Graph

CORES = len(os.sched_getaffinity(0))


def rate_of(work: Callable[[], Any], seconds: float, workers: int = CORES) -> float:
    """Calls per second of a piece of work on some threads at once; each calls it once before the clock starts."""
    counts = [0] * workers
    failures: list[BaseException] = []
    ready = threading.Barrier(workers + 1)
    stop = threading.Event()

    def loop(worker: int) -> None:
        try:
            work()
            ready.wait()
            while not stop.is_set():
                work()
                counts[worker] += 1
        except BaseException as error:  # handed on to the caller of `rate_of`
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=loop, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    try:
        try:
            ready.wait()
        except threading.BrokenBarrierError:
            raise failures[0] from None
        start = time.perf_counter()
        time.sleep(seconds)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return max(1, sum(counts)) / (time.perf_counter() - start)


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
