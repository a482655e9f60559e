"""The clients: photographs in, anonymised photographs out, through a Triton server.

`AsyncClient` is the implementation; `Client` drives one on an event loop of its own, so that there is one protocol
and not two. Requests are built and read in `wire`, everything else that concerns one photo lies in `pipeline`. This
file knows deadlines and retries; how much may be under way at once is `slots`.

One request carries one face: batching is the server's work, and a face that fails does not take others with it.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from visard.connection import DEFAULT_URL, Connection
from visard.personas import draw
from visard.pipeline import Choice, Found, Options, Prepared, choose, find, finish, prepare, warm_up
from visard.result import ApparentGender, Outcome, Result
from visard.shared_memory import RegionPool
from visard.slots import Slots
from visard.wire import (
    ENCODED_ENSEMBLES,
    ENSEMBLES,
    MODELS,
    REGION_SIZE,
    Direction,
    Swap,
    build_encoded_request,
    build_provenance_request,
    build_request,
    check_images,
    check_metadata,
    check_personas,
    error_from_status,
    parse_encoded_swap,
    parse_provenance,
    parse_response,
    parse_retry_after_s,
    parse_swap,
    write_region,
)
from visard_errors import (
    DeadlineExceeded,
    Overloaded,
    PermissionDenied,
    ServerError,
    ServerRefused,
    ServerUnavailable,
    VisardError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from typing_extensions import Self

T = TypeVar("T")

_CLASSIFIER = "gender_classifier"

_RETRY_PAUSE_S = 0.1  # doubled per attempt, jittered over its whole length so that callers do not return in step
_RETRY_PAUSE_MAX_S = 2.0
_METADATA_DEADLINE_S = 5.0
_UNWIND_S = 5.0
_GIVEN_UP_REST = 10  # deadlines: a request may wait in three queues, one after another, and then be computed


class AsyncClient:
    """Anonymises photographs through a server, for callers with an event loop.

    Decoding, detection and blending run on `workers` threads, one detector each (about 100 MB), never on the event
    loop. It takes every photo that it is given: whoever serves many callers with it bounds how many are under way, as
    `anonymize_many` does with its window. Close it, or use it as an asynchronous context manager.

    Args:
        server: address or `Connection`.
        workers: threads for the work outside the server; the number of cores by default.
    """

    def __init__(self, server: str | Connection = DEFAULT_URL, *, workers: int | None = None) -> None:
        self.connection = server if isinstance(server, Connection) else Connection(url=server)
        self.workers = workers or os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="visard")
        self._slots = Slots(self.connection.max_in_flight, adapts=self.connection.max_attempts > 1)
        self._checked: set[str] = set()
        self._channel: Any = None
        self._stub: Any = None
        self._regions = RegionPool(
            self.connection.max_in_flight, _GIVEN_UP_REST * self.connection.deadline_s, self._register
        )

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
        if self._channel is not None:
            await self._unregister(self._regions.forget())
            await self._channel.close()
            self._channel = self._stub = None
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def anonymize(self, photo: Any, options: Options | None = None) -> Result:
        """Anonymise the faces in one photo.

        Args:
            photo: a path, the bytes of a file, a PIL image or an (H, W, 3) uint8 RGB array.
            options: what to do; every face to the opposite of its apparent gender by default.

        Raises:
            PhotoError: the photo cannot be anonymised; nothing of it is returned.
            ServerError: the server did not answer as it should.
        """
        options = options or Options()
        return await self._finish(await self._on_thread(partial(prepare, photo, options)), options)

    async def find(self, photo: Any, options: Options | None = None, *, gender: bool = True) -> Found:
        """Find the faces in one photo, for a choice face by face: the first half of `anonymize_found`.

        Args:
            photo: as for `anonymize`.
            options: how to find them.
            gender: also ask the server for the apparent gender of those that are large enough.

        Returns:
            Every face, none where there is none.

        Raises:
            PhotoError: the photo cannot be read.
            ServerError: the server did not say the apparent gender.
        """
        found: Found = await self._on_thread(partial(find, photo, options or Options()))
        large = [index for index, face in enumerate(found.faces) if not face.too_small]
        if not (gender and large):
            return found
        choices: list[Choice] = ["leave" if face.too_small else "opposite" for face in found.faces]
        prepared: Prepared = await self._on_thread(partial(choose, found, choices))
        genders = dict(zip(large, await self.genders(prepared.aligned), strict=True))
        return replace(
            found,
            genders=tuple(map(genders.get, range(len(found.faces)))),
            aligned=dict(zip(large, prepared.aligned, strict=True)),
        )

    async def anonymize_found(self, found: Found, choices: Sequence[Choice], options: Options | None = None) -> Result:
        """Anonymise a photo whose faces were found before, each as the caller chose.

        Args:
            found: what `find` returned.
            choices: one for each of its faces: which way to swap it, or to `leave` it visible.
            options: as for `anonymize`; `faces` and `direction` have no meaning here.

        Returns:
            A result whose `faces` are those that were swapped. Its `photo` still shows the others.

        Raises:
            PhotoError: one of the faces to swap cannot be anonymised, or there is no face at all.
            ServerError: the server did not answer as it should.
        """
        options = options or Options()
        prepared = await self._on_thread(partial(choose, found, choices, persona_key=options.persona_key))
        return await self._finish(prepared, options)

    async def anonymize_many(
        self, photos: Iterable[Any], options: Options | None = None, *, window: int | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Anonymise many photos, several at once, and yield what became of each in their order.

        A photo that fails yields its error and stops no other. Nothing is read ahead of the window, so `photos` may
        be endless.

        Args:
            photos: sources as for `anonymize`; iterated on a worker thread.
            options: the same for all.
            window: photos under way or waiting for their turn to be yielded; each holds its pixels in memory. Twice
                the number of workers plus four by default.
        """
        window = window or 2 * self.workers + 4
        source, end = iter(photos), object()
        pending: deque[asyncio.Task[Outcome]] = deque()
        try:
            index = 0
            while (photo := await self._on_thread(partial(next, source, end))) is not end:
                pending.append(asyncio.ensure_future(self._outcome(index, photo, options)))
                index += 1
                if len(pending) >= window:
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
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
        ensembles = ENCODED_ENSEMBLES if self.connection.encoded else ENSEMBLES

        async def swap_one(index: int) -> Swap:
            return await self._swap_one(ensembles[directions[index]], batch[index : index + 1], numbers[index])

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
            [_CLASSIFIER] * len(batch), batch, lambda index: self._classify_one(batch[index : index + 1])
        )

    async def models(self) -> dict[str, bool]:
        """Ask which models of the contract the server has ready."""
        from tritonclient.grpc import service_pb2

        async def ready(model: str) -> bool:
            answer = await self._call("ModelReady", service_pb2.ModelReadyRequest(name=model), _METADATA_DEADLINE_S)
            return bool(answer.ready)

        return dict(zip(MODELS, await asyncio.gather(*map(ready, MODELS)), strict=True))

    async def provenance(self) -> dict[str, dict[str, Any]]:
        """Ask where the served models come from: model name → what its export wrote about it."""
        return parse_provenance(await self._call("ModelInfer", build_provenance_request(), _METADATA_DEADLINE_S))

    async def warm_up(self, options: Options | None = None) -> None:
        """Load what the first photos would load, on every worker: Python stands still while dlib reads its models."""
        together = threading.Barrier(self.workers)  # none takes the work of another
        work = partial(warm_up, options or Options(), together.wait)
        await asyncio.gather(*(self._on_thread(work) for _ in range(self.workers)))

    async def _outcome(self, index: int, photo: Any, options: Options | None) -> Outcome:
        try:
            return Outcome(index=index, source=photo, result=await self.anonymize(photo, options))
        except Exception as error:  # a defect that one photo brings out must not stop the others either
            return Outcome(index=index, source=photo, error=error)

    async def _finish(self, prepared: Prepared, options: Options) -> Result:
        started = time.perf_counter()
        swaps = await self.swap(prepared.aligned, prepared.directions, prepared.personas) if prepared.faces else ()
        swap_seconds = time.perf_counter() - started
        return await self._on_thread(partial(finish, prepared, swaps, options, swap_seconds=swap_seconds))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _check_contract(self, model: str) -> None:
        """Compare the model's tensors with ours, once: a wrong model gives a clear error, not garbage."""
        if model in self._checked:
            return
        from tritonclient.grpc import service_pb2

        request = service_pb2.ModelMetadataRequest(name=model)
        check_metadata(model, await self._retry(partial(self._call, "ModelMetadata", request)))
        self._checked.add(model)

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
            await self._check_contract(model)
        tasks = [asyncio.ensure_future(ask(index)) for index in range(len(images))]
        try:
            return tuple(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _classify_one(self, image: NDArray[np.uint8]) -> ApparentGender:
        request = build_request(_CLASSIFIER, image, timeout_s=self.connection.deadline_s)
        response = await self._retry(partial(self._call, "ModelInfer", request), self._slots.slot)
        return ApparentGender.from_probabilities(parse_response(_CLASSIFIER, response)["gender"][0])

    async def _swap_one(self, model: str, image: NDArray[np.uint8], persona: int) -> Swap:
        """Swap one face; every attempt sends the same number, so that a lost answer does not become another look."""
        attempt = self._infer
        if self.connection.shared_memory:
            attempt = self._infer_shared
        elif self.connection.encoded:
            attempt = self._infer_encoded
        return await self._retry(partial(attempt, model, image, persona), self._slots.slot)

    async def _infer(self, model: str, image: NDArray[np.uint8], persona: int, timeout_s: float) -> Swap:
        request = build_request(model, image, [persona], timeout_s=self.connection.deadline_s)
        return parse_swap(model, await self._call("ModelInfer", request, timeout_s))

    async def _infer_encoded(self, model: str, image: NDArray[np.uint8], persona: int, timeout_s: float) -> Swap:
        build = partial(build_encoded_request, model, image, persona, timeout_s=self.connection.deadline_s)
        response = await self._call("ModelInfer", await self._on_thread(build), timeout_s)
        return await self._on_thread(partial(parse_encoded_swap, model, response))

    async def _infer_shared(self, model: str, image: NDArray[np.uint8], persona: int, timeout_s: float) -> Swap:
        region = await self._regions.take()
        if region is None:
            return await self._infer(model, image, persona, timeout_s)
        answered = False
        try:
            write_region(region.memory, image)
            request = build_request(model, image, [persona], timeout_s=self.connection.deadline_s, region=region.name)
            response = await self._call("ModelInfer", request, timeout_s)
            answered = True
            return parse_swap(model, response, region.memory)
        except (Overloaded, ServerRefused):
            answered = True
            raise
        except ServerUnavailable:
            self._regions.forget()  # a server that comes back does not know them
            raise
        finally:
            self._regions.give_back(region, answered=answered)

    async def _register(self, name: str) -> None:
        from tritonclient.grpc import service_pb2

        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=name, key=f"/{name}", offset=0, byte_size=REGION_SIZE
        )
        try:
            await self._call("SystemSharedMemoryRegister", request, _METADATA_DEADLINE_S)
        except PermissionDenied:
            raise PermissionDenied(
                f"the server at {self.connection.url} does not share memory with its callers: start it with "
                "`visard serve --shared-memory`, or leave shared_memory off"
            ) from None

    async def _unregister(self, names: Iterable[str]) -> None:
        from tritonclient.grpc import service_pb2

        for name in names:
            with suppress(VisardError):  # a server that is gone has let go of them already
                request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
                await self._call("SystemSharedMemoryUnregister", request, _METADATA_DEADLINE_S)

    async def _retry(
        self,
        call: Callable[[float], Awaitable[T]],
        slot: Callable[..., AbstractAsyncContextManager[None]] = lambda **_: nullcontext(),
    ) -> T:
        """Call in a slot, with the seconds that are left, until it works, there is no time, or it was tried enough.

        Who waits for a lost server keeps the slot, so that no others wear out their attempts meanwhile; who was refused
        by a full one leaves it to those whom it takes.
        """
        # By hand: two counts and one deadline are no shorter with tenacity, whose loops would cost 0.04 ms of processor
        # time for each face, also where nothing goes wrong.
        deadline = 0.0  # set when the first attempt begins
        refused, lost = 0, 0
        while True:
            try:
                async with slot(again=refused > 0):
                    deadline = deadline or time.monotonic() + self.connection.deadline_s
                    while True:
                        try:
                            return await call(deadline - time.monotonic())
                        except ServerUnavailable as error:
                            lost += 1
                            if lost >= self.connection.max_attempts:
                                raise
                            await _pause(error, lost, 0.0, deadline)
            except Overloaded as error:
                refused += 1
                if self.connection.max_attempts == 1:
                    raise
                await _pause(error, refused, error.retry_after_s, deadline)

    async def _call(self, method: str, request: Any, timeout_s: float) -> Any:
        import grpc
        from tritonclient.grpc import service_pb2_grpc

        if self._stub is None:
            self._channel = self.connection.open_channel()
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        if timeout_s <= 0:
            raise DeadlineExceeded(f"no answer from {self.connection.url} within {self.connection.deadline_s:g} s")
        try:
            return await getattr(self._stub, method)(
                request, timeout=timeout_s, metadata=(*self.connection.metadata(), *_trace_context()) or None
            )
        except grpc.aio.AioRpcError as error:
            raised = error_from_status(error.code().name, error.details() or "", self.connection.url)
            if isinstance(raised, Overloaded):
                raised.retry_after_s = parse_retry_after_s(error.trailing_metadata() or ())
            # The request holds a face: the chain ends here, so that no traceback carries it on.
            raise raised from None


async def _pause(error: ServerError, attempt: int, least_s: float, deadline: float) -> None:
    """Wait until the next attempt is due, the longer the more there were; raise the error where the time is up."""
    longest = min(_RETRY_PAUSE_MAX_S, _RETRY_PAUSE_S * 2 ** min(attempt, 10))  # a thousand would be too large a float
    pause = least_s + random.uniform(0.0, longest)  # noqa: S311
    if time.monotonic() + pause >= deadline:
        raise error
    await asyncio.sleep(pause)


class Client:
    """Anonymises photographs through a server, for callers without an event loop.

    Runs an `AsyncClient` on a thread of its own. Close it, or use it as a context manager. May be shared by threads.

    Args:
        server: address or `Connection`.
        workers: threads for the work outside the server; the number of cores by default.
    """

    def __init__(self, server: str | Connection = DEFAULT_URL, *, workers: int | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="visard-client", daemon=True)
        self._client = AsyncClient(server, workers=workers)
        self._thread.start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop the connection, cancel what is under way on the server and end the threads."""
        if self._loop.is_closed():
            return
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def anonymize(self, photo: Any, options: Options | None = None) -> Result:
        """Anonymise the faces in one photo; see `AsyncClient.anonymize`."""
        return self._run(self._client.anonymize(photo, options))

    def find(self, photo: Any, options: Options | None = None, *, gender: bool = True) -> Found:
        """Find the faces in one photo, for a choice face by face; see `AsyncClient.find`."""
        return self._run(self._client.find(photo, options, gender=gender))

    def anonymize_found(self, found: Found, choices: Sequence[Choice], options: Options | None = None) -> Result:
        """Anonymise a photo whose faces were found before; see `AsyncClient.anonymize_found`."""
        return self._run(self._client.anonymize_found(found, choices, options))

    def anonymize_many(
        self, photos: Iterable[Any], options: Options | None = None, *, window: int | None = None
    ) -> Iterator[Outcome]:
        """Anonymise many photos and yield what became of each in their order; see `AsyncClient.anonymize_many`."""
        outcomes = self._client.anonymize_many(photos, options, window=window)
        try:
            while (outcome := self._run(_next(outcomes))) is not None:
                yield outcome
        finally:
            self._run(outcomes.aclose())

    def swap(
        self,
        aligned: NDArray[np.uint8],
        direction: Direction | Sequence[Direction] = "opposite",
        personas: Sequence[int] | None = None,
    ) -> tuple[Swap, ...]:
        """Swap faces that the caller aligned; see `AsyncClient.swap`."""
        return self._run(self._client.swap(aligned, direction, personas))

    def genders(self, aligned: NDArray[np.uint8]) -> tuple[ApparentGender, ...]:
        """Ask for the apparent gender of faces that the caller aligned; see `AsyncClient.genders`."""
        return self._run(self._client.genders(aligned))

    def models(self) -> dict[str, bool]:
        """Ask which models of the contract the server has ready."""
        return self._run(self._client.models())

    def provenance(self) -> dict[str, dict[str, Any]]:
        """Ask where the served models come from; see `AsyncClient.provenance`."""
        return self._run(self._client.provenance())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the client is closed")
        ended = threading.Event()

        async def tracked() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(tracked(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():  # Ctrl-C ends the request on the server too; what follows must find it ended
                ended.wait(_UNWIND_S)
            raise


async def _next(outcomes: AsyncGenerator[Outcome, None]) -> Outcome | None:
    return await anext(outcomes, None)


def _trace_context() -> tuple[tuple[str, str], ...]:
    """W3C trace context of the caller's current span, in a program that uses OpenTelemetry; no baggage."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
