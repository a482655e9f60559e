"""The engine of one machine: alignment over all cores, many faces at the servers, and a bounded window between.

photos ─► [window: read, align ─► servers ─► blend, encode ─► write ─► journal]

Where there are many cores, several processes do this, see `processes`.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from visard_folder.photo import anonymise
from visard_folder.places import reader, writer
from visard_folder.pool import Pool, with_cores
from visard_folder.processes import THREADS, do_in_processes
from visard_folder.stores import is_url
from visard_folder.walk import Found
from visard_preprocess.files import folds_case
from visard_preprocess.machine import cores, free_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from visard_folder.photo import Product
    from visard_folder.run import Run

T = TypeVar("T")

_BYTES = 500_000_000  # of memory for each worker: see benchmarks/results/folders.md
_WRITERS = 4  # threads that mostly wait for the disk


@dataclass(frozen=True, kw_only=True)
class LocalEngine:
    """Works on this machine; a `visard_folder.run.Engine`.

    Attributes:
        workers: threads for everything but the models, in processes of two from four on; by default one for each core,
            fewer where memory is short. Models that run here have as many threads of their own.
    """

    workers: int | None = None

    def do(self, run: Run) -> None:
        """See `visard_folder.run.Engine`."""
        workers = self.workers or max(1, min(cores(), free_bytes() // _BYTES))
        # Of names that differ by case only, one process decides which came first.
        if workers < 2 * THREADS or (not is_url(run.job.target) and folds_case(run.journal.drafts)):
            asyncio.run(_Work(run, workers).do())
        else:
            do_in_processes(run, workers // THREADS)


class _Work:
    """One run."""

    def __init__(self, run: Run, workers: int) -> None:
        self._run = run
        # Enough that neither the cores nor the server wait for each other, as few as that, because each holds pixels.
        self._window = 2 * workers + 4
        self._cores = ThreadPoolExecutor(workers, thread_name_prefix="photo")
        self._disk = ThreadPoolExecutor(_WRITERS, thread_name_prefix="disk")
        self._read = reader(run.job.source)
        self._write = writer(run.job.target, run.journal)
        job = run.job
        self._servers = Pool(
            with_cores(job.connections, workers),
            job.settings.direction,
            run.models,
            patience_s=job.patience_s,
            notice=run.watcher.notice,
        )
        self._ended = threading.Event()

    async def do(self) -> None:
        async with self._servers:
            await self._all()

    async def _all(self) -> None:
        counting = asyncio.ensure_future(_on(self._disk, partial(self._run.count, self._ended)))
        photos, end = self._run.photos(), object()
        pending: set[asyncio.Future[None]] = set()
        try:
            while isinstance(found := await _on(self._disk, partial(next, photos, end)), Found):
                if len(pending) == self._window:
                    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()  # where several failed, the others' errors are taken below
                    pending -= done
                pending.add(asyncio.ensure_future(self._photo(found)))
            for task in asyncio.as_completed(pending):
                await task
            await counting
        finally:
            self._ended.set()
            for unfinished in (counting, *pending):
                unfinished.cancel()
            await asyncio.gather(counting, *pending, return_exceptions=True)
            for pool in (self._cores, self._disk):  # nothing may be written after the journal is closed
                pool.shutdown(wait=True, cancel_futures=True)
            photos.close()

    async def _photo(self, found: Found) -> None:
        work = self._run.job.steps(partial(self._read, found), found.path)
        product = await anonymise(work, self._servers.swap, self._cores)
        await _on(self._disk, partial(self._store, product, found))

    def _store(self, product: Product, found: Found) -> None:
        self._run.done(self._write(product, found), found.stamp)


async def _on(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
