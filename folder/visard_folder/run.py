"""Anonymises a folder on this machine: alignment over all cores, many faces at a server, and a bounded window between.

    walk ─► [window of photos: read, align ─► server ─► blend, encode ─► write ─► journal] ─► manifest

The run can be killed at any moment and goes on with the same call. A server that goes away is waited for; a full disk
ends the run. What becomes of one photo is the business of `visard_folder.photo`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from visard.connection import Connection
from visard_folder.journal import Journal, Record, output_errors
from visard_folder.manifest import write_manifest
from visard_folder.photo import Settings, Steps, anonymise, steps
from visard_folder.pool import Models, Pool, agreed_models
from visard_folder.walk import Found, check_apart, walk
from visard_folder.write import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from visard_folder.annotations import Annotations
    from visard_folder.people import People

T = TypeVar("T")

_WRITERS = 4  # threads that mostly wait for the disk


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Who is told how a run gets on. Called from several threads.

    Attributes:
        photo: a photo is done; None for one that an earlier run did.
        total: how many files there are, once they have been counted.
        notice: something that a person should know.
    """

    photo: Callable[[Record | None], None] = lambda record: None
    total: Callable[[int], None] = lambda total: None
    notice: Callable[[str], None] = lambda text: None


def anonymise_folder(
    source: Path,
    target: Path,
    settings: Settings,
    *,
    connection: Connection,
    people: People | None = None,
    key: bytes | None = None,
    persona_key: str | bytes | None = None,
    annotations: Annotations | None = None,
    force: bool = False,
    workers: int | None = None,
    patience_s: float | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Anonymise every photo below a folder into another one; what an earlier run did is not done again.

    Args:
        source: the folder with the photos; stays as it is.
        target: takes the results under the same relative paths, and `.visard` with the journal and the manifest.
        settings: what to do with every photo.
        connection: the server.
        people: who stays visible, where not everybody is hidden.
        key: for the HMAC of each source file; no hashes without it.
        persona_key: see `visard.Options`. With the same key a run that goes on, or `force`, gives the same pictures.
            It is stored nowhere.
        annotations: to carry along when all photos are done.
        force: do everything again, with other settings if they are others.
        workers: threads for everything but the server's work; the number of cores by default.
        patience_s: how long to wait for a server that is away; for ever by default.
        watcher: is told how it gets on.

    Returns:
        `Journal.summary`, `done_before` (photos of earlier runs), `manifest` and `annotations` (paths) and `seconds`.

    Raises:
        OutputError: the folders cannot be used, or the disk is full. The run can go on later.
        ServerError: the server refused, serves other models than before, or was away for too long.
        UnreadablePhoto: the source folder cannot be listed.
    """
    watcher = watcher or Watcher()
    started = time.monotonic()
    check_apart(source, target)
    with closing(walk(source)) as files:
        next(files, None)  # whether it can be listed at all, before anything is made
    if annotations is not None:
        annotations.check()

    async def run() -> dict[str, Any]:
        models = await agreed_models([connection])
        with Journal(target, run_settings(settings, people, key, models), force=force) as journal:
            backlog = Backlog(partial(walk, source), journal, watcher)
            photo_steps = partial(steps, settings=settings, people=people, key=key, persona_key=persona_key)
            async with Pool(
                [connection], settings.direction, models, patience_s=patience_s, notice=watcher.notice
            ) as pool:
                await _Engine(backlog, journal, photo_steps, pool, workers or _cores(), watcher).run()
            return conclude(journal, backlog, annotations, watcher)

    return {**asyncio.run(run()), "seconds": round(time.monotonic() - started, 1)}


class Backlog:
    """What earlier runs have left to do of a tree.

    Args:
        files: walks the tree, anew at every call.
        journal: knows what is done.
        watcher: is told of what is done already, and how many files there are.

    Attributes:
        done_before: photos of earlier runs that `photos` has met so far.
    """

    def __init__(self, files: Callable[[], Iterator[Found]], journal: Journal, watcher: Watcher) -> None:
        self.done_before = 0
        self._files = files
        self._journal = journal
        self._watcher = watcher

    def photos(self) -> Generator[Found, None, None]:
        """Find what is left to do."""
        for found in self._files():
            if self._journal.is_done(found.path, found.stamp):
                self.done_before += 1
                self._watcher.photo(None)
            else:
                yield found

    def count(self, ended: threading.Event) -> None:
        """Count all files, beside the work, unless that has ended."""
        total = 0
        for _ in self._files():
            total += 1
            if ended.is_set():
                return
        self._watcher.total(total)


def conclude(journal: Journal, backlog: Backlog, annotations: Annotations | None, watcher: Watcher) -> dict[str, Any]:
    """End a whole run: drop what has gone, write manifest and annotations, and sum up; see `anonymise_folder`.

    Raises:
        OutputError: something cannot be written.
    """
    journal.finish()
    with output_errors(journal.target):
        manifest = write_manifest(journal, watcher.notice)
        carried = [] if annotations is None else annotations.carry(journal, watcher.notice)
    return {
        **journal.summary(),
        "done_before": backlog.done_before,
        "manifest": [str(path) for path in manifest],
        "annotations": [str(path) for path in carried],
    }


def run_settings(settings: Settings, people: People | None, key: bytes | None, models: Models) -> dict[str, Any]:
    """What the results depend on. Of people and key no more than shows that they are the same.

    Who becomes whom is left out: that is a draw, and its key is stored nowhere.
    """
    return {
        **asdict(settings),
        "people": None if people is None else f"{people.mode} {len(people.descriptors)}",
        "hash_key": None if key is None else hmac.new(key, b"key check", hashlib.sha256).hexdigest()[:8],
        "models": models,
    }


class _Engine:
    """One run over one folder."""

    def __init__(
        self,
        backlog: Backlog,
        journal: Journal,
        photo_steps: Callable[[Callable[[], bytes], str], Steps],
        servers: Pool,
        workers: int,
        watcher: Watcher,
    ) -> None:
        self._backlog = backlog
        self._steps = photo_steps
        self._servers = servers
        self._watcher = watcher
        # Enough that neither the cores nor the server wait for each other, as few as that, because each holds pixels.
        self._window = 2 * workers + 4
        self._cores = ThreadPoolExecutor(workers, thread_name_prefix="photo")
        self._disk = ThreadPoolExecutor(_WRITERS, thread_name_prefix="disk")
        self._writer = Writer(journal)
        self._ended = threading.Event()

    async def run(self) -> None:
        """Do what is left to do; ends with the first error that is not a photo's."""
        counting = asyncio.ensure_future(_on(self._disk, partial(self._backlog.count, self._ended)))
        photos, end = self._backlog.photos(), object()
        pending: set[asyncio.Future[None]] = set()
        try:
            while isinstance(found := await _on(self._disk, partial(next, photos, end)), Found):
                if len(pending) == self._window:
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
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
        product = await anonymise(self._steps(found.read, found.path), self._servers.swap, self._cores)
        self._watcher.photo(await _on(self._disk, partial(self._writer.store, product, found)))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


async def _on(pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
