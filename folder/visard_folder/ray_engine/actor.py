"""One core of the cluster: photos in, their results written, their records out.

Pixels are read, worked on and written within one call of an actor, so that none is ever in Ray's object store, and so
none is spilled to a disk.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import TYPE_CHECKING, Any

from visard_folder.worker import Worker

if TYPE_CHECKING:
    from visard_folder.job import FolderJob
    from visard_folder.pool import Models
    from visard_folder.walk import Found
    from visard_folder.worker import Answer

_AT_ONCE = 2  # photos per actor, and so per core: one waits for a server while the other computes


class Actor:
    """One core of the cluster.

    Args:
        job: what to do; its folders are called as every node sees them.
        models: what all servers serve.
        drafts: folder for what is being written, on the disk of a target that is a folder.
    """

    def __init__(self, job: FolderJob, models: Models, drafts: str) -> None:
        self._worker = Worker(job, models, drafts, _AT_ONCE)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="servers", daemon=True).start()

    def __call__(self, batch: Any) -> Any:
        """Do what Ray Data hands over, chunks of photos, and answer for each.

        Args:
            batch: a table with pickled lists of `Found` in the column ``photos``.

        Returns:
            A table with pickled lists of `Answer` in the column ``answers``.
        """
        import pyarrow as pa

        chunks = [pickle.loads(chunk) for chunk in batch["photos"].to_pylist()]  # noqa: S301 - from our own driver
        answers = [asyncio.run_coroutine_threadsafe(self._photos(chunk), self._loop).result() for chunk in chunks]
        return pa.table({"answers": [pickle.dumps(answer) for answer in answers]})

    async def _photos(self, chunk: list[Found]) -> list[Answer]:
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(found: Found) -> Answer:
            async with slots:
                return await self._worker.photo(found)

        return await asyncio.gather(*map(one, chunk))
