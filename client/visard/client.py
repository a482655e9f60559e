"""Photographs in, anonymised photographs out, through a Triton server.

`AsyncClient` is the implementation; `blocking.Client` drives one for callers without an event loop. Here photos are
kept moving between threads and server: what happens to one photo is in `pipeline`, what the server is asked in `calls`.

One request carries one face: batching is the server's work, and a face that fails does not take others with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from visard.calls import Calls
from visard.connection import DEFAULT_URL, Connection
from visard.judgement import after_second_try, for_second_try, identity_distance, judge, score
from visard.local import Local, LocalCalls
from visard.options import Choice, Options
from visard.personas import draw
from visard.pipeline import Found, Prepared, Stopwatch, choose, find, finish, prepare, unswappable, warm_up
from visard.progress import Progress, Reporter
from visard.result import Anonymized, ApparentGender, FaceResult, Failed, Outcome, Result
from visard.wire import CLASSIFIER, Direction, Swap, check_images, check_personas
from visard_preprocess.machine import cores

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
    from types import TracebackType

    from typing_extensions import Self

T = TypeVar("T")


class AsyncClient:
    """Anonymises photographs through a server, for callers with an event loop.

    Decoding, detection and blending run on `workers` threads, one detector each (about 100 MB), never on the event
    loop. It takes every photo that it is given: whoever serves many callers with it bounds how many are under way, as
    `anonymize_many` does with its window. Close it, or use it as an asynchronous context manager.

    Args:
        server: address or `Connection`; or a `Local` repository, whose models then run in this process.
        workers: threads for the work outside the server; the number of cores by default.

    Example:
        >>> async def main():
        ...     async with visard.AsyncClient("127.0.0.1:8001") as client:
        ...         result = await client.anonymize("photo.jpg")
        ...         result.save("anonymised.jpg")
        >>> asyncio.run(main())
    """

    def __init__(
        self,
        server: str | Connection | Local = DEFAULT_URL,
        *,
        workers: int | None = None,
    ) -> None:
        self.workers = workers or cores()
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="visard")
        self._calls: Calls | LocalCalls
        if isinstance(server, Local):
            self._calls = LocalCalls(server)
        else:
            connection = server if isinstance(server, Connection) else Connection(url=server)
            self._calls = Calls(connection, self._threads)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Drop the connection, cancel what is under way on the server and let the workers end."""
        await self._calls.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def anonymize(self, photo: Any, options: Options | None = None) -> Result:
        """Anonymise the faces in one photo.

        Args:
            photo: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 RGB array.
            options: what to do; every face to the opposite of its apparent gender by default.

        Returns:
            The photo, and what became of each face: see `visard.policy`.

        Raises:
            PhotoError: the photo cannot be anonymised; nothing of it is returned.
            ServerError: the server did not answer as it should.
        """
        options = options or Options()
        return await self._finish(await self._on_thread(partial(prepare, photo, options)), options)

    async def find(self, photo: Any, options: Options | None = None, *, gender: bool = True) -> Found:
        """Find the faces in one photo, for a choice face by face: the first half of `anonymize_found`.

        Args:
            photo: as for `anonymize`; or what this returned before, to look at other `boxes` without detecting anew.
            options: how to find them.
            gender: also ask the server for the apparent gender of those that are large enough.

        Returns:
            Every face, none where there is none.

        Raises:
            PhotoError: the photo cannot be read.
            ServerError: the server did not say the apparent gender.
        """
        found: Found = await self._on_thread(partial(find, photo, options or Options()))
        known = zip(found.faces, found.genders, strict=True)
        choices: list[Choice] = ["leave" if unswappable(face) or before else "opposite" for face, before in known]
        if not gender or "opposite" not in choices:
            return found
        prepared: Prepared = await self._on_thread(partial(choose, found, choices))
        genders = list(found.genders)
        for index, seen in zip(prepared.indices, await self.genders(prepared.aligned), strict=True):
            genders[index] = seen
        aligned = {**found.aligned, **dict(zip(prepared.indices, prepared.aligned, strict=True))}
        return replace(found, genders=tuple(genders), aligned=aligned)

    async def anonymize_found(self, found: Found, choices: Sequence[Choice], options: Options | None = None) -> Result:
        """Anonymise a photo whose faces were found before, each as the caller chose.

        Args:
            found: what `find` returned.
            choices: one for each of its faces: which way to swap it, to `cover` it, or to `leave` it visible.
            options: as for `anonymize`; `faces` and `direction` have no meaning here.

        Raises:
            PhotoError: there is no face at all, or the photo is withheld.
            ServerError: the server did not answer as it should.
        """
        options = options or Options()
        prepared = await self._on_thread(
            partial(choose, found, choices, persona_key=options.persona_key, unswapped=options.unswapped)
        )
        return await self._finish(prepared, options)

    async def anonymize_many(
        self,
        photos: Iterable[Any],
        options: Options | None = None,
        *,
        window: int | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Anonymise many photos, several at once, and yield what became of each in their order.

        A photo that fails yields its error, as a `Failed`, and stops no other. Nothing is read ahead of the window, so
        `photos` may be endless.

        Args:
            photos: sources as for `anonymize`; iterated on a worker thread.
            options: the same for all.
            window: photos under way or waiting for their turn to be yielded; each holds its pixels in memory. Twice
                the number of workers plus four by default.
            progress: called on the event loop before each outcome is yielded. What it raises is logged, it is not
                called again, and the photos go on.

        Example:
            >>> async def main():
            ...     async with visard.AsyncClient("127.0.0.1:8001") as client:
            ...         async for outcome in client.anonymize_many(["photo.jpg", "missing.jpg"]):
            ...             match outcome:
            ...                 case visard.Anonymized(result=result):
            ...                     print(outcome.index, "anonymised:", result.count("swapped"), "swapped")
            ...                 case visard.Failed(error=error):
            ...                     print(outcome.index, type(error).__name__)
            >>> asyncio.run(main())
            0 anonymised: 1 swapped
            1 UnreadablePhoto
        """
        window = window or 2 * self.workers + 4
        report = Reporter(progress, photos)
        source, end = iter(photos), object()
        pending: deque[asyncio.Task[Outcome]] = deque()
        try:
            index = 0
            while (photo := await self._on_thread(partial(next, source, end))) is not end:
                pending.append(asyncio.ensure_future(self._outcome(index, photo, options)))
                index += 1
                if len(pending) >= window:
                    yield report(await pending.popleft())
            while pending:
                yield report(await pending.popleft())
        finally:
            for task in pending:
                task.cancel()

    async def swap(
        self,
        aligned: NDArray[np.uint8],
        direction: Direction | Sequence[Direction] = "opposite",
        personas: Sequence[int] | None = None,
    ) -> tuple[Swap, ...]:
        """Swap faces that the caller aligned.

        Args:
            aligned: (N, 512, 512, 3) uint8 RGB, FFHQ-aligned; (512, 512, 3) for one.
            direction: to the opposite of each face's apparent gender, or the same for all; or one for each face.
            personas: whose look each face gets, as numbers in 0..2³¹ − 1, see `visard.personas.draw`; drawn anew by
                default, all different.

        Returns:
            One answer per face, in their order.

        Raises:
            ServerError: one of the faces could not be swapped; the others are cancelled.
        """
        batch = aligned[None] if aligned.ndim == 3 else aligned
        directions = [direction] * len(batch) if isinstance(direction, str) else direction
        numbers = draw(len(batch)) if personas is None else personas
        check_personas(numbers, len(batch))
        ensembles = self._calls.ensembles

        async def swap_one(index: int) -> Swap:
            return await self._calls.swap(ensembles[directions[index]], batch[index : index + 1], numbers[index])

        return await self._each([ensembles[each] for each in directions], batch, swap_one)

    async def genders(self, aligned: NDArray[np.uint8]) -> tuple[ApparentGender, ...]:
        """Ask for the apparent gender of faces that the caller aligned.

        Args:
            aligned: (N, 512, 512, 3) uint8 RGB, FFHQ-aligned; (512, 512, 3) for one.

        Raises:
            ServerError: the server did not say it of one of them.
        """
        batch = aligned[None] if aligned.ndim == 3 else aligned
        return await self._each(
            [CLASSIFIER] * len(batch), batch, lambda index: self._calls.gender(batch[index : index + 1])
        )

    async def models(self) -> dict[str, bool]:
        """Ask which models of the contract the server has ready."""
        return await self._calls.models()

    async def provenance(self) -> dict[str, dict[str, Any]]:
        """Ask where the served models come from: model name → what its export wrote about it."""
        return await self._calls.provenance()

    async def warm_up(self, options: Options | None = None) -> None:
        """Load what the first photos would load, on every worker: Python stands still while dlib reads its models."""
        together = threading.Barrier(self.workers)  # none takes the work of another
        work = partial(warm_up, options or Options(), together.wait)
        await asyncio.gather(*(self._on_thread(work) for _ in range(self.workers)))

    async def _outcome(self, index: int, photo: Any, options: Options | None) -> Outcome:
        try:
            return Anonymized(index=index, source=photo, result=await self.anonymize(photo, options))
        except Exception as error:  # a defect that one photo brings out must not stop the others either
            return Failed(index=index, source=photo, error=error)

    async def _finish(self, prepared: Prepared, options: Options) -> Result:
        watch = Stopwatch()
        faces = await self._swap_and_judge(prepared, options, watch)
        if again := for_second_try(faces):
            seconds = await self._swap_and_judge(prepared.again(again), options, watch)
            faces = after_second_try(faces, dict(zip(again, seconds, strict=True)))
        return await self._on_thread(partial(finish, prepared, faces, options, watch.seconds))

    async def _swap_and_judge(self, prepared: Prepared, options: Options, watch: Stopwatch) -> list[FaceResult]:
        swaps = await self.swap(prepared.aligned, prepared.directions, prepared.personas) if prepared.faces else ()
        watch.lap("swap")
        faces = await self._on_thread(partial(score, prepared, swaps, options))
        distances = None
        if options.identity:
            measures = (partial(identity_distance, face.aligned, face.swapped, options) for face in faces)
            distances = await asyncio.gather(*map(self._on_thread, measures))
        watch.lap("score")
        return judge(prepared, faces, distances, options)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _each(
        self,
        models: Sequence[str],
        images: NDArray[np.uint8],
        ask: Callable[[int], Coroutine[Any, Any, T]],
    ) -> tuple[T, ...]:
        """Ask for each image by its index; where one fails, the others are cancelled."""
        check_images(images)
        if len(models) != len(images):
            raise ValueError(f"there are {len(images)} faces, not {len(models)}")
        for model in dict.fromkeys(models):
            await self._calls.check_contract(model)
        tasks = [asyncio.ensure_future(ask(index)) for index in range(len(images))]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
