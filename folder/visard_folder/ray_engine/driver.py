"""The engine on a Ray cluster: the same work and the same results as on one machine.

    photos (driver) ─► Ray Data: [actors: read, align ─► servers ─► blend, encode ─► write] ─► journal (driver)

What travels through Ray are names and records. The driver lets only a window of photos in. A record reaches the journal
only after its image stands under its final name.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visard.connection import Connection
from visard_errors import OutputError, ServerRefused, UnreadablePhoto
from visard_folder.journal import Record
from visard_folder.ray_engine.actor import Actor
from visard_folder.ray_engine.cluster import cluster
from visard_folder.stores import is_url
from visard_folder.worker import record_of, watching
from visard_preprocess.files import folds_case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visard_folder.job import FolderJob
    from visard_folder.journal import Stamp
    from visard_folder.run import Run
    from visard_folder.walk import Found
    from visard_folder.worker import Answer

_CHUNK = 8  # photos per call of an actor: few, because a call that is lost is done again
_CHUNKS_PER_ACTOR = 3  # one at work, two on their way
_DEATHS = 3  # of workers that never gave an answer: it is not the photos


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Works on a Ray cluster; a `visard_folder.run.Engine`.

    Attributes:
        workers: actors, one core each; all cores of the cluster by default.
        address: of a running cluster; one is started on this machine, for each run, without it.
    """

    workers: int | None = None
    address: str | None = None

    def do(self, run: Run) -> None:
        """See `visard_folder.run.Engine`."""
        servers = [each for each in run.job.connections if isinstance(each, Connection)]
        if len(servers) < len(run.job.connections):
            raise ServerRefused("a cluster asks servers: models run in the processes of one machine only")
        if not is_url(run.job.target) and folds_case(run.journal.drafts):
            raise OutputError(
                f"'{os.fspath(run.job.target)}' takes names that differ by case only for one: leave --engine ray "
                "out, or choose another folder"
            )
        with cluster(self.address, self.workers, servers) as cores, watching(run):
            _Driver(run, self.workers or cores).do()
        for left in run.journal.drafts.iterdir():  # of actors that ended, or died
            shutil.rmtree(left, ignore_errors=True)


class _Driver:
    """The side that knows what is left to do and what became of it."""

    def __init__(self, run: Run, workers: int) -> None:
        self._run = run
        self._workers = workers
        self._answered = False
        self._last_words = ""
        self._in_flight: dict[str, Found] = {}

    def do(self) -> None:
        """Do what is left to do; ends with the first error that is not a photo's.

        Where actors die, what they were at is tried again, one photo at a time: the one that kills them is found and
        recorded, and the others are done.
        """
        ended = threading.Event()

        def count() -> None:
            with suppress(UnreadablePhoto):  # the walk that does the work says so
                self._run.count(ended)

        counting = threading.Thread(target=count, name="count", daemon=True)
        counting.start()
        try:
            photos = self._run.photos()
            while lost := self._pass(photos, self._workers * _CHUNKS_PER_ACTOR, _CHUNK):
                self._run.watcher.notice(f"a worker was lost; its photos ({len(lost)} at most) are tried one by one")
                suspects = iter(lost)
                deaths = 0
                while guilty := self._pass(suspects, 1, 1):
                    deaths += 1
                    if deaths == _DEATHS and not self._answered:
                        raise ServerRefused(
                            f"the cluster's workers do not work ({self._last_words}): Visard and its models must be "
                            "installed on every node, in the same version"
                        )
                    message = "the worker ended abruptly over this photo: look at it before you open it"
                    record = Record(path=guilty[0].path, outcome="failed", error="WorkerLost", message=message)
                    self._record(record, guilty[0].stamp)
        finally:
            ended.set()
            counting.join()

    def _pass(self, photos: Iterator[Found], window: int, size: int) -> list[Found]:
        """Let photos through the cluster, at most `window` chunks of `size` at once.

        Returns:
            Those that were under way when actors died once too often; empty when all are done.
        """
        from ray.exceptions import RayError
        from ray.util.queue import Queue

        first = list(islice(photos, 1))
        if not first:  # no actor has to be started to find that out
            return []
        photos = chain(first, photos)
        self._in_flight.clear()
        died = False
        queue = Queue(actor_options={"num_cpus": 0})
        slots = threading.Semaphore(window)
        ended = threading.Event()
        failure: list[BaseException] = []

        def feed() -> None:
            try:
                while slots.acquire() and not ended.is_set() and (chunk := list(islice(photos, size))):
                    self._in_flight |= {found.path: found for found in chunk}
                    queue.put(pickle.dumps(chunk))
            except BaseException as error:
                failure.append(error)
            if not ended.is_set():
                queue.put(None)

        feeder = threading.Thread(target=feed, name="feed", daemon=True)
        feeder.start()
        try:
            for answers in _answers(queue, self._run, self._workers if size > 1 else 1):
                slots.release()
                for answer in answers:
                    self._take(answer)
        except RayError as error:
            self._last_words = str(error).strip().partition("\n")[0]
            died = True
        finally:
            ended.set()
            slots.release()
            feeder.join()
            queue.shutdown(force=True)
        if failure:
            raise failure[0]
        return list(self._in_flight.values()) if died else []

    def _take(self, answer: Answer) -> None:
        self._answered = True
        self._record(*record_of(answer))

    def _record(self, record: Record, stamp: Stamp | None) -> None:
        self._in_flight.pop(record.path, None)
        self._run.done(record, stamp)


def _answers(queue: Any, run: Run, workers: int) -> Iterator[list[Answer]]:
    """The Ray Data job: chunks of photos from a queue, through a pool of actors, to their answers."""
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class Feed(Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            def read() -> Iterator[pa.Table]:
                while (chunk := queue.get()) is not None:
                    yield pa.table({"photos": [chunk]})

            return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]

    context = DataContext.get_current()
    wanted = {
        "target_max_block_size": 1,  # bytes: pass every chunk on at once, instead of collecting them
        "enable_progress_bars": False,
        "print_on_execution_start": False,
    }
    before = {name: getattr(context, name) for name in wanted}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        for name, value in wanted.items():
            setattr(context, name, value)
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        pool = ActorPoolStrategy(
            min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=_CHUNKS_PER_ACTOR
        )
        chunks = ray.data.read_datasource(
            Feed(),  # type: ignore[no-untyped-call]
            override_num_blocks=1,
            concurrency=1,
            num_cpus=0,
            label_selector=here,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # no newer way to have no endless retries: Ray < 2.64
            answers = chunks.map_batches(
                Actor,
                batch_size=None,
                batch_format="pyarrow",
                compute=pool,
                num_cpus=1,
                fn_constructor_args=(_for_every_node(run.job), run.models, _drafts(run)),
                max_restarts=0,
            )
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for answer in batch["answers"].to_pylist():
                yield pickle.loads(answer)  # noqa: S301 - from our own actors
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _for_every_node(job: FolderJob) -> FolderJob:
    """The same job, for processes that do not stand where this one does."""
    source, target = (place if is_url(place) else str(Path(place).resolve()) for place in (job.source, job.target))
    return replace(job, source=source, target=target)


def _drafts(run: Run) -> str:
    return str(run.journal.drafts.resolve())
