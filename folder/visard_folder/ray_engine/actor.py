"""One core of the cluster: photos in, their results written, their records out.

Pixels are read, worked on and written within one call of an actor, so that none is ever in Ray's object store, and so
none is spilled to a disk.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visard_errors import OutputError, UnreadablePhoto, VisardError
from visard_folder.journal import Record
from visard_folder.photo import anonymise
from visard_folder.places import reader, writer
from visard_folder.pool import Pool
from visard_folder.stores import is_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from visard_folder.job import FolderJob
    from visard_folder.journal import Stamp
    from visard_folder.photo import Product
    from visard_folder.pool import Models
    from visard_folder.walk import Found

_AT_ONCE = 2  # photos per actor, and so per core: one waits for a server while the other computes

# What an actor answers for a photo: its record and stamp, or the class and words of an error that ends the run.
Answer = tuple[Record, "Stamp | None"] | tuple[str, str]


class Actor:
    """One core of the cluster.

    Args:
        job: what to do; its folders are called as every node sees them.
        models: what all servers serve.
        drafts: folder for what is being written, on the disk of a target that is a folder.
    """

    def __init__(self, job: FolderJob, models: Models, drafts: str) -> None:
        self._job = job
        self._drafts = drafts
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="photo")
        self._servers = Pool(job.connections, job.settings.direction, models, patience_s=job.patience_s)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="servers", daemon=True).start()
        self._places: tuple[Callable[[Found], bytes], Callable[[Product, Found], Record]] | None = None

    def __call__(self, batch: Any) -> Any:
        """Do what Ray Data hands over, chunks of photos, and answer for each.

        Args:
            batch: a table with pickled lists of `Found` in the column ``photos``.

        Returns:
            A table with pickled lists of `Answer` in the column ``answers``.
        """
        import pyarrow as pa

        chunks = [pickle.loads(chunk) for chunk in batch["photos"].to_pylist()]  # noqa: S301 - from our own driver
        try:
            self._places = self._places or self._open_places()
        except VisardError as error:
            return pa.table({"answers": [pickle.dumps([(type(error).__name__, str(error))])]})
        answers = [asyncio.run_coroutine_threadsafe(self._photos(chunk), self._loop).result() for chunk in chunks]
        return pa.table({"answers": [pickle.dumps(answer) for answer in answers]})

    async def _photos(self, chunk: list[Found]) -> list[Answer]:
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(found: Found) -> Answer:
            async with slots:
                return await self._photo(found)

        return await asyncio.gather(*map(one, chunk))

    async def _photo(self, found: Found) -> Answer:
        assert self._places is not None  # noqa: S101 - see above
        read, write = self._places
        try:
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
                desk.drafts.mkdir()  # without parents: they are the driver's
        except OSError as error:
            raise OutputError(
                f"a node of the cluster cannot write to '{job.target}' ({error.strerror}): mount it there, or use a URL"
            ) from None
        return reader(job.source), writer(job.target, desk)


class _Desk:
    """A `visard_folder.write.Ledger` on a node that does not have the journal."""

    def __init__(self, target: Path, drafts: Path) -> None:
        self.target = target
        self.drafts = drafts

    def claim(self, path: str) -> str:
        """Return the name as it is: the driver refuses folders with names that differ by case only."""
        return path
