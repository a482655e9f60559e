"""The calls to the models of one server: checked against the contract, under a deadline, sent again where that helps.

What a request and its answer hold is in `wire`, how the server is reached in `connection`, how many faces may be under
way in `slots`. Photos are unknown here.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from visard.result import ApparentGender
from visard.shared_memory import RegionPool
from visard.slots import Slots
from visard.statuses import error_from_status, parse_retry_after_s
from visard.wire import (
    CLASSIFIER,
    ENCODED_ENSEMBLES,
    ENSEMBLES,
    GENERATORS,
    MODELS,
    REGION_SIZE,
    SMALL_CLASSIFIER,
    Swap,
    build_encoded_request,
    build_provenance_request,
    build_request,
    build_small_request,
    check_metadata,
    opposite_of,
    parse_encoded_swap,
    parse_provenance,
    parse_response,
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
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Executor
    from contextlib import AbstractAsyncContextManager

    from visard.connection import Connection

    _Infer = Callable[[str, NDArray[np.uint8], int, float], Awaitable[Swap]]

T = TypeVar("T")

_RETRY_PAUSE_S = 0.1  # doubled per attempt, jittered over its whole length so that callers do not return in step
_RETRY_PAUSE_MAX_S = 2.0
_METADATA_DEADLINE_S = 5.0
_GIVEN_UP_REST = 10  # deadlines: a request may wait in three queues, one after another, and then be computed


class Calls:
    """The calls of one client, on one event loop.

    Args:
        connection: where the server is, and the limits.
        threads: for work on pixels that the event loop should not wait for.
    """

    def __init__(self, connection: Connection, threads: Executor) -> None:
        self.connection = connection
        self.ensembles = ENCODED_ENSEMBLES if connection.encoded else ENSEMBLES
        self._threads = threads
        self._slots = Slots(connection.max_in_flight, adapts=connection.max_attempts > 1)
        self._checked: set[str] = set()
        self._asks_first = False  # for the direction of a face
        self._channel: Any = None
        self._stub: Any = None
        self._regions = RegionPool(connection.max_in_flight, _GIVEN_UP_REST * connection.deadline_s, self._register)

    async def close(self) -> None:
        """Drop the connection and cancel what is under way on the server."""
        if self._channel is not None:
            await self._unregister(self._regions.forget())
            await self._channel.close()
            self._channel = self._stub = None

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

    async def check_contract(self, model: str) -> None:
        """Compare the model's tensors with ours, once: a wrong model gives a clear error, not garbage."""
        if model in self._checked:
            return
        metadata = await self._metadata(model)
        check_metadata(model, metadata)
        if model == ENSEMBLES["opposite"] and metadata.platform == "ensemble":
            self._asks_first = await self._has_small_classifier()
        self._checked.add(model)

    async def _has_small_classifier(self) -> bool:
        """Whether faces of unknown direction can be spared the server's router; checks what they go to instead."""
        try:
            check_metadata(SMALL_CLASSIFIER, await self._metadata(SMALL_CLASSIFIER))
        except (ServerRefused, PermissionDenied):  # exported before there was one, or a gateway that does not know it
            return False
        for direction in GENERATORS:
            await self.check_contract(ENSEMBLES[direction])
        return True

    async def _metadata(self, model: str) -> Any:
        from tritonclient.grpc import service_pb2

        request = service_pb2.ModelMetadataRequest(name=model)
        return await self._retry(partial(self._call, "ModelMetadata", request))

    async def gender(self, image: NDArray[np.uint8]) -> ApparentGender:
        """Ask for the apparent gender of one aligned face, (1, 512, 512, 3) uint8 RGB."""
        return await self._retry(partial(self._classify, image), self._slots.slot)

    async def swap(self, model: str, image: NDArray[np.uint8], persona: int) -> Swap:
        """Swap one aligned face, (1, 512, 512, 3) uint8 RGB, with an ensemble and the number of a persona.

        Every attempt sends the same number, so that a lost answer does not become another look.
        """
        attempt: _Infer = self._infer
        if self.connection.shared_memory:
            attempt = self._infer_shared
        elif self.connection.encoded:
            attempt = self._infer_encoded
        if model == ENSEMBLES["opposite"] and self._asks_first:
            attempt = self._asking_first(attempt)
        return await self._retry(partial(attempt, model, image, persona), self._slots.slot)

    def _asking_first(self, infer: _Infer) -> _Infer:
        """Ask for the direction, once for all attempts, and send the face to the ensemble of that direction.

        So each generator's queue fills by itself, which the server's router cannot do as well.
        """
        known: list[NDArray[np.float32]] = []

        async def attempt(model: str, image: NDArray[np.uint8], persona: int, timeout_s: float) -> Swap:
            deadline = time.monotonic() + timeout_s
            if not known:
                try:
                    known.append(await self._classify_small(image, timeout_s))
                except ServerRefused:  # it was started again, with other models
                    self._asks_first = False
                    return await infer(model, image, persona, deadline - time.monotonic())
            swap = await infer(ENSEMBLES[opposite_of(known[0])], image, persona, deadline - time.monotonic())
            return replace(swap, gender=known[0])

        return attempt

    async def _classify(self, image: NDArray[np.uint8], timeout_s: float) -> ApparentGender:
        request = build_request(CLASSIFIER, image, timeout_s=self.connection.deadline_s)
        response = await self._call("ModelInfer", request, timeout_s)
        return ApparentGender.from_probabilities(parse_response(CLASSIFIER, response)["gender"][0])

    async def _classify_small(self, image: NDArray[np.uint8], timeout_s: float) -> NDArray[np.float32]:
        build = partial(build_small_request, image, timeout_s=self.connection.deadline_s)
        request = await asyncio.get_running_loop().run_in_executor(self._threads, build)
        response = await self._call("ModelInfer", request, timeout_s)
        gender: NDArray[np.float32] = parse_response(SMALL_CLASSIFIER, response)["gender"][0]
        return gender

    async def _infer(self, model: str, image: NDArray[np.uint8], persona: int, timeout_s: float) -> Swap:
        request = build_request(model, image, [persona], timeout_s=self.connection.deadline_s)
        return parse_swap(model, await self._call("ModelInfer", request, timeout_s))

    async def _infer_encoded(self, model: str, image: NDArray[np.uint8], persona: int, timeout_s: float) -> Swap:
        build = partial(build_encoded_request, model, image, persona, timeout_s=self.connection.deadline_s)
        loop = asyncio.get_running_loop()
        response = await self._call("ModelInfer", await loop.run_in_executor(self._threads, build), timeout_s)
        return await loop.run_in_executor(self._threads, parse_encoded_swap, model, response)

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


def _trace_context() -> tuple[tuple[str, str], ...]:
    """W3C trace context of the caller's current span, in a program that uses OpenTelemetry; no baggage."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
