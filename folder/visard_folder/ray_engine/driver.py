"""Anonymises a folder on a Ray cluster: the same work and the same results as `visard_folder.run`, on many machines.

    walk, journal (driver) ─► Ray Data: [actors: read, align ─► servers ─► blend, encode ─► write] ─► journal (driver)

What travels through Ray are names and records. Pixels are read, worked on and written within one call of an actor, so
that none is ever in Ray's object store, and so none is spilled to a disk. The driver lets only a window of photos in.
A record reaches the journal only after its image stands under its final name.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import secrets
import shutil
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import visard_errors
from visard.connection import Connection
from visard.wire import Direction
from visard_errors import MissingExtra, OutputError, ServerRefused, UnreadablePhoto, VisardError
from visard_folder.journal import Journal, Record
from visard_folder.photo import Product, Settings, anonymise, steps
from visard_folder.pool import Models, Pool, agreed_models
from visard_folder.run import Backlog, Watcher, conclude, run_settings
from visard_folder.stores import ATOMIC_STORES, Store, StoreJournal, is_url, upload
from visard_folder.walk import Found, check_apart, walk
from visard_folder.write import Writer, folds_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from visard_folder.annotations import Annotations
    from visard_folder.journal import Stamp
    from visard_folder.people import People

_CHUNK = 8  # photos per call of an actor: few, because a call that is lost is done again
_CHUNKS_PER_ACTOR = 3  # one at work, two on their way
_AT_ONCE = 2  # photos per actor, and so per core: one waits for a server while the other computes
_DEATHS = 3  # of workers that never gave an answer: it is not the photos
_OBJECT_STORE_BYTES = 200 * 2**20  # of a cluster of our own; only names and records are in it

# What an actor answers for a photo: its record and stamp, or the class and words of an error that ends the run.
Answer = tuple[Record, "Stamp | None"] | tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every actor has to know.

    Attributes:
        source: folder or URL.
        target: folder or URL.
        drafts: folder for what is being written, on the disk of a target that is a folder.
        settings: what to do with every photo.
        connections: the servers; every face goes to the next that is there.
        models: what they all serve.
        people: who stays visible, where not everybody is hidden.
        key: for the hashes.
        persona_key: for the personas.
        patience_s: how long to wait while all servers are away; for ever where it is None.
    """

    source: str
    target: str
    drafts: str
    settings: Settings
    connections: tuple[Connection, ...]
    models: Models
    people: People | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    persona_key: str | bytes | None = field(default=None, repr=False)
    patience_s: float | None = None


def anonymise_on_ray(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    settings: Settings,
    *,
    connections: Sequence[Connection],
    people: People | None = None,
    key: bytes | None = None,
    persona_key: str | bytes | None = None,
    annotations: Annotations | None = None,
    force: bool = False,
    workers: int | None = None,
    patience_s: float | None = None,
    watcher: Watcher | None = None,
    journal_folder: Path | None = None,
    address: str | None = None,
) -> dict[str, Any]:
    """Anonymise every photo of a folder or store into another one; see `visard_folder.run.anonymise_folder`.

    Args:
        source: a folder that every node of the cluster sees under this path, or an fsspec URL.
        target: likewise; of URLs, those of object stores alone, whose uploads are atomic.
        settings: what to do with every photo.
        connections: servers with the same models.
        people: who stays visible, where not everybody is hidden.
        key: for the HMAC of each source file; no hashes without it.
        persona_key: see `visard.Options`; stored nowhere.
        annotations: to carry along when all photos are done.
        force: do everything again.
        workers: actors, one core each; all cores of the cluster by default.
        patience_s: how long to wait while all servers are away; for ever by default.
        watcher: is told how it gets on.
        journal_folder: on this machine; takes journal and manifest where the target is a URL.
        address: of a running cluster; one is started on this machine, for this run, without it.

    Raises:
        MissingExtra: Ray, or what reads this kind of URL, is not installed.
        OutputError: the target cannot take results, or as `anonymise_folder` says.
        VisardError: as `anonymise_folder` does.
    """
    watcher = watcher or Watcher()
    started = time.monotonic()
    source, target = os.fspath(source), os.fspath(target)
    read_from, write_to = _stores(source, target, journal_folder)
    next(_files(source, read_from), None)  # whether it can be listed at all, before anything is made
    if annotations is not None:
        annotations.check()
    with ExitStack() as stack:
        models = asyncio.run(agreed_models(connections))
        wanted = run_settings(settings, people, key, models)
        if write_to is None:
            journal = stack.enter_context(Journal(Path(target), wanted, force=force))
            journal_drafts = str(journal.drafts.resolve())
            if folds_case(journal.drafts):
                raise OutputError(
                    f"'{target}' takes names that differ by case only for one: use --engine local, or another folder"
                )
        else:
            assert journal_folder is not None  # noqa: S101 - see _stores
            journal = stack.enter_context(StoreJournal(write_to, journal_folder, wanted, force=force))
            journal_drafts = ""
        cores = stack.enter_context(_cluster(address, workers, connections))
        stack.enter_context(_watching(connections, settings.direction, models, watcher.notice))
        job = Job(
            source=source if read_from else str(Path(source).resolve()),
            target=target if write_to else str(Path(target).resolve()),
            drafts=journal_drafts,
            settings=settings,
            connections=tuple(connections),
            models=models,
            people=people,
            key=key,
            persona_key=persona_key,
            patience_s=patience_s,
        )
        backlog = Backlog(partial(_files, job.source, read_from), journal, watcher)
        _Driver(job, journal, workers or cores, watcher).run(backlog)
        for left in journal.drafts.iterdir():  # of actors that ended, or died
            shutil.rmtree(left, ignore_errors=True)
        summary = conclude(journal, backlog, annotations, watcher)
        if write_to is not None:
            for path in map(Path, (*summary["manifest"], *summary["annotations"])):
                write_to.write(path.relative_to(journal.target).as_posix(), path.read_bytes())
    return {**summary, "seconds": round(time.monotonic() - started, 1)}


def _stores(source: str, target: str, journal_folder: Path | None) -> tuple[Store | None, Store | None]:
    """Open what is a URL, and refuse places that do not go together."""
    if is_url(target) and not target.startswith(ATOMIC_STORES):
        raise OutputError(f"'{target}' cannot take results: its uploads could be seen half-written")
    read_from = Store(source) if is_url(source) else None
    write_to = Store(target) if is_url(target) else None
    if write_to is None and read_from is None:
        check_apart(Path(source), Path(target))
    if write_to is not None:
        if journal_folder is None:
            raise OutputError(f"'{target}' is a URL: say with --journal which folder of this machine takes the journal")
        urls = sorted(f"{store.url}/" for store in (read_from, write_to) if store is not None)
        if urls[-1].startswith(urls[0]) and len(urls) > 1:
            raise OutputError(f"'{target}' and '{source}' lie in each other: choose a place apart from the photos")
    return read_from, write_to


def _files(source: str, store: Store | None) -> Iterator[Found]:
    return walk(Path(source)) if store is None else store.walk()


@contextmanager
def _cluster(address: str | None, workers: int | None, connections: Sequence[Connection]) -> Iterator[int]:
    """Join a cluster, or start one on this machine that ends with the run; gives the number of its cores."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nobody is told that Visard runs here
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra("ray", "the engine 'ray'") from error

    with ExitStack() as stack:
        if not ray.is_initialized():
            handler = signal.getsignal(signal.SIGTERM)
            if address is None:
                session = TemporaryDirectory(prefix="visard-", ignore_cleanup_errors=True)
                start_local(stack.enter_context(session), workers)
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            stack.callback(ray.shutdown)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray took it, and would end with another exit code
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        if len(nodes) > 1 and any(connection.local for connection in connections):
            raise ServerRefused(
                "a server on 127.0.0.1 is another one on every node: give an address that all nodes reach"
            )
        yield int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]


def start_local(folder: str, workers: int | None = None) -> None:
    """Start a Ray cluster on this machine, for this process.

    It listens on 127.0.0.1 only, has no dashboard, and does not spill objects to the disk.

    Args:
        folder: for Ray's logs and sockets; its path must be short.
        workers: cores to use; all by default.
    """
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=workers or len(os.sched_getaffinity(0)),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_OBJECT_STORE_BYTES,
        _node_ip_address="127.0.0.1",
        _temp_dir=folder,
        _system_config={"automatic_object_spilling_enabled": False},
    )


@contextmanager
def _watching(
    connections: Sequence[Connection], direction: Direction, models: Models, notice: Callable[[str], None]
) -> Iterator[None]:
    """Tell the user which servers are away, while the actors wait for them."""
    ended = threading.Event()

    async def watch() -> None:
        async with Pool(connections, direction, models, notice=notice) as pool:
            watching = asyncio.ensure_future(pool.watch())
            await asyncio.to_thread(ended.wait)
            watching.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(watch()), name="servers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Driver:
    """The side that knows what is left to do and what became of it."""

    def __init__(self, job: Job, journal: Journal, workers: int, watcher: Watcher) -> None:
        self._job = job
        self._journal = journal
        self._workers = workers
        self._watcher = watcher
        self._answered = False
        self._last_words = ""
        self._in_flight: dict[str, Found] = {}

    def run(self, backlog: Backlog) -> None:
        """Do what is left to do; ends with the first error that is not a photo's.

        Where actors die, what they were at is tried again, one photo at a time: the one that kills them is found and
        recorded, and the others are done.
        """
        ended = threading.Event()

        def count() -> None:
            with suppress(UnreadablePhoto):  # the walk that does the work says so
                backlog.count(ended)

        counting = threading.Thread(target=count, name="count", daemon=True)
        counting.start()
        try:
            photos = backlog.photos()
            while lost := self._pass(photos, self._workers * _CHUNKS_PER_ACTOR, _CHUNK):
                self._watcher.notice(f"a worker was lost; its photos ({len(lost)} at most) are tried one by one")
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
            for answers in _answers(queue, self._job, self._workers if size > 1 else 1):
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
        if isinstance(answer[0], str):
            kind = getattr(visard_errors, answer[0])
            raise kind.__new__(kind, answer[1])
        self._record(*answer)

    def _record(self, record: Record, stamp: Stamp | None) -> None:
        self._in_flight.pop(record.path, None)
        self._journal.add(record, stamp)
        self._watcher.photo(record)


def _answers(queue: Any, job: Job, workers: int) -> Iterator[list[Answer]]:
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
                _Actor,
                batch_size=None,
                batch_format="pyarrow",
                compute=pool,
                num_cpus=1,
                fn_constructor_args=(job,),
                max_restarts=0,
            )
        for batch in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for answer in batch["answers"].to_pylist():
                yield pickle.loads(answer)  # noqa: S301 - from our own actors
    finally:
        for name, value in before.items():
            setattr(context, name, value)


class _Actor:
    """One core of the cluster: photos in, their results written, their records out."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="photo")
        self._servers = Pool(job.connections, job.settings.direction, job.models, patience_s=job.patience_s)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="servers", daemon=True).start()
        self._places: tuple[Callable[[Found], bytes], Callable[[Product, Found], Record]] | None = None

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        chunks = [pickle.loads(chunk) for chunk in batch["photos"].to_pylist()]  # noqa: S301 - from our own driver
        try:
            self._places = self._places or _places(self._job)
        except VisardError as error:
            return pa.table({"answers": [pickle.dumps([(type(error).__name__, str(error))])]})
        answers = [asyncio.run_coroutine_threadsafe(self._photos(chunk), self._loop).result() for chunk in chunks]
        return pa.table({"answers": [pickle.dumps(answer) for answer in answers]})

    async def _photos(self, chunk: list[Found]) -> list[Answer]:
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(found: Found) -> Answer:
            async with places:
                return await self._photo(found)

        return await asyncio.gather(*map(one, chunk))

    async def _photo(self, found: Found) -> Answer:
        job = self._job
        assert self._places is not None  # noqa: S101 - see above
        read, write = self._places
        work = steps(
            partial(read, found),
            found.path,
            job.settings,
            people=job.people,
            key=job.key,
            persona_key=job.persona_key,
        )
        try:
            product = await anonymise(work, self._servers.swap, self._threads)
            record = await asyncio.get_running_loop().run_in_executor(self._threads, write, product, found)
        except VisardError as error:
            return type(error).__name__, str(error)
        return record, found.stamp


def _places(job: Job) -> tuple[Callable[[Found], bytes], Callable[[Product, Found], Record]]:
    """How to read and how to write; where a folder cannot be seen from this node, nothing is made in its place."""
    if is_url(job.source):
        read = Store(job.source).read
    elif Path(job.source).is_dir():
        read = _read
    else:
        raise UnreadablePhoto(f"a node of the cluster does not see '{job.source}': mount it there, or use a URL")
    if is_url(job.target):
        store = Store(job.target)
        return read, lambda product, _: upload(store, product)
    try:
        desk = _Desk(Path(job.target), Path(job.drafts) / secrets.token_hex(8))
    except OSError as error:
        raise OutputError(
            f"a node of the cluster cannot write to '{job.target}' ({error.strerror}): mount it there, or use a URL"
        ) from None
    return read, Writer(desk).store


def _read(found: Found) -> bytes:
    return found.read()


class _Desk:
    """A `visard_folder.write.Ledger` on a node that does not have the journal."""

    def __init__(self, target: Path, drafts: Path) -> None:
        self.target = target
        self.drafts = drafts
        drafts.mkdir()  # without parents: they are the driver's

    def add(self, record: Record, stamp: Stamp | None) -> None:
        """Leave it to the driver."""

    def claim(self, path: str) -> str:
        """Names that differ by case only are the driver's business, which refuses such a folder."""
        return path
