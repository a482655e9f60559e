"""Several processes of this machine that divide the photos of a run.

    photos (here) ─► [processes: read, align ─► servers ─► blend, encode ─► write] ─► journal (here)

One process cannot use many cores: for a fifth of the work on a photo it holds Python's interpreter, which one thread
has at a time. The processes are programs of their own that read photos' names from their input and write records to
their output, so that the caller's script is not run again, as `multiprocessing` would. They end with their input:
nothing of them outlives this process, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import subprocess
import sys
import threading
import traceback
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING

from visard_errors import OutputError, UnreadablePhoto
from visard_folder.worker import Worker, record_of, watching

if TYPE_CHECKING:
    from visard_folder.run import Run
    from visard_folder.walk import Found

THREADS = 2  # of each process: then the interpreter is taken for less than half of the time
_AT_ONCE = 2 * THREADS + 1  # photos under way in each: as many wait for a server as are worked on, and one comes

# Isolated, so that neither the folder that the user stands in nor the environment adds modules.
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from visard_folder.processes import serve; serve()"


def do_in_processes(run: Run, count: int) -> None:
    """Do what is left to do of a run; see `visard_folder.run.Engine`."""
    _Processes(run, count).do()


class _Processes:
    """The side that knows what is left to do and what became of it."""

    def __init__(self, run: Run, count: int) -> None:
        self._run = run
        self._count = count
        self._begin = pickle.dumps((run.job, run.models, str(run.journal.drafts.resolve())))
        self._photos = run.photos()
        self._children: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()  # on the two above, and on the end
        self._ended = threading.Event()

    def do(self) -> None:
        with watching(self._run), ThreadPoolExecutor(self._count + 1, thread_name_prefix="drive") as threads:
            work = [threads.submit(self._count_files), *(threads.submit(self._drive) for _ in range(self._count))]
            try:
                for future in wait(work, return_when=FIRST_EXCEPTION).done:
                    future.result()
            finally:  # nothing may be written after the journal is closed
                with self._lock:
                    self._ended.set()
                for child in self._children:
                    child.kill()
                    child.wait()
        self._photos.close()
        for left in self._run.journal.drafts.iterdir():  # the processes' folders
            shutil.rmtree(left, ignore_errors=True)

    def _drive(self) -> None:
        """Start a process if there is something to do, and keep it busy until there is nothing left."""
        found = self._next()
        if found is None or (child := self._start()) is None:
            return
        assert child.stdin is not None  # noqa: S101 -- it was asked for
        assert child.stdout is not None  # noqa: S101
        under_way = 0
        try:
            with child.stdin as photos, child.stdout as answers:
                photos.write(self._begin)
                while found is not None or under_way:
                    while found is not None:
                        pickle.dump(found, photos)
                        under_way += 1
                        found = self._next() if under_way < _AT_ONCE else None
                    photos.flush()
                    answer = pickle.load(answers)  # noqa: S301 -- of our own program
                    under_way -= 1
                    self._run.done(*record_of(answer))
                    found = self._next()
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            if not self._ended.is_set():
                raise OutputError(
                    f"a process of this run ended abruptly ({child.wait()}), as it does where memory is short: run the "
                    "same command again, with fewer --workers if it happens again"
                ) from None

    def _start(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._ended.is_set():
                return None
            child = subprocess.Popen(  # noqa: S603 -- our own program with our own arguments
                [sys.executable, "-I", "-c", _CODE, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for this process, which ends them; so it is on Windows by the flag
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
            self._children.append(child)
            return child

    def _next(self) -> Found | None:
        with self._lock:
            return None if self._ended.is_set() else next(self._photos, None)

    def _count_files(self) -> None:
        with suppress(UnreadablePhoto):  # the walk that does the work says so
            self._run.count(self._ended)


def serve() -> None:
    """Be one of the processes: read a job, then photos, and write what became of each, as it is done."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    job, models, drafts = pickle.load(source)  # noqa: S301 -- from our own parent
    worker = Worker(job, models, drafts, THREADS)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="servers", daemon=True).start()

    async def photo(found: Found) -> None:
        try:
            sink.write(pickle.dumps(await worker.photo(found)))
            sink.flush()
        except BaseException:  # a defect, or nobody reads any more: the other side must not wait for an answer
            traceback.print_exc()
            os._exit(1)

    with suppress(EOFError):
        while True:
            asyncio.run_coroutine_threadsafe(photo(pickle.load(source)), loop)  # noqa: S301
    os._exit(0)  # all was answered, or nobody is left to answer
