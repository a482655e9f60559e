"""Some cores of a run that others divide: whole photos in, their results written, their records out.

For a process that has neither the walk nor the journal: one of this machine (`processes`) or of a cluster
(`ray_engine`). Pixels are read, worked on and written within it.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import visard_errors
from visard_errors import OutputError, UnreadablePhoto, VisardError
from visard_folder.journal import Record
from visard_folder.photo import anonymise
from visard_folder.places import reader, writer
from visard_folder.pool import Pool, with_cores
from visard_folder.stores import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from visard_folder.job import FolderJob
    from visard_folder.journal import Stamp
    from visard_folder.photo import Product
    from visard_folder.pool import Models
    from visard_folder.run import Run
    from visard_folder.walk import Found

# What became of a photo: its record and stamp, or the class and words of an error that ends the run.
Answer = tuple[Record, "Stamp | None"] | tuple[str, str]


class Worker:
    """Does whole photos. For one event loop.

    Args:
        job: what to do; its folders are called as this process sees them.
        models: what all servers serve.
        drafts: folder for what is being written, on the disk of a target that is a folder.
        threads: for everything but the servers' work; as many do the models', where these run in this process.
    """

    def __init__(self, job: FolderJob, models: Models, drafts: str, threads: int) -> None:
        self._job = job
        self._drafts = drafts
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="photo")
        connections = with_cores(job.connections, threads)
        self._servers = Pool(connections, job.settings.direction, models, patience_s=job.patience_s)
        self._places: tuple[Callable[[Found], bytes], Callable[[Product, Found], Record]] | None = None

    async def photo(self, found: Found) -> Answer:
        """Do one photo."""
        try:
            self._places = self._places or self._open_places()
            read, write = self._places
            product = await anonymise(
                self._job.steps(partial(read, found), found.path), self._servers.swap, self._threads
            )
            record = await asyncio.get_running_loop().run_in_executor(self._threads, write, product, found)
        except VisardError as error:
            return type(error).__name__, str(error)
        return record, found.stamp

    def _open_places(self) -> tuple[Callable[[Found], bytes], Callable[[Product, Found], Record]]:
        """How to read and how to write; where a folder cannot be seen from this node, nothing is made in its place."""
        job = self._job
        if not (is_url(job.source) or Path(job.source).is_dir()):
            raise UnreadablePhoto(f"a node of the cluster does not see '{job.source}': mount it there, or use a URL")
        try:
            desk = _Desk(Path(job.target), Path(self._drafts) / secrets.token_hex(8))
            if not is_url(job.target):
                desk.drafts.mkdir()  # without parents: they are the journal's
        except OSError as error:
            raise OutputError(
                f"a node of the cluster cannot write to '{job.target}' ({error.strerror}): mount it there, or use a URL"
            ) from None
        return reader(job.source), writer(job.target, desk)


class _Desk:
    """A `visard_folder.write.Ledger` in a process that does not have the journal."""

    def __init__(self, target: Path, drafts: Path) -> None:
        self.target = target
        self.drafts = drafts

    def claim(self, path: str) -> str:
        """Return the name as it is: folders with names that differ by case only are for who has the journal."""
        return path


def record_of(answer: Answer) -> tuple[Record, Stamp | None]:
    """What to remember of a photo; raises the error that ends the run."""
    name, words = answer
    if isinstance(name, Record):
        return name, words  # type: ignore[return-value]
    kind = getattr(visard_errors, name)
    raise kind.__new__(kind, words)


@contextmanager
def watching(run: Run) -> Iterator[None]:
    """Tell the user which servers are away, while workers elsewhere wait for them."""
    ended = threading.Event()

    async def watch() -> None:
        direction, notice = run.job.settings.direction, run.watcher.notice
        async with Pool(run.job.connections, direction, run.models, notice=notice) as pool:
            look = asyncio.ensure_future(pool.watch())
            await asyncio.to_thread(ended.wait)
            look.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(watch()), name="servers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
