"""One closed loop for every server: so many callers, each sending its next image when its last answer is back.

Images are 512×512×3 bytes. Four transports: HTTP with a raw body, bare TCP, Triton's gRPC, and Triton with the pixels
in shared memory. HTTP and TCP callers are threads, with `http.client` and a blocking socket; the other two are the
SDK's own requests, answers and channel.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from visard import Connection
from visard.shared_memory import RegionPool
from visard.wire import REGION_SIZE, build_request, parse_response, write_region

IMAGE_BYTES = 512 * 512 * 3
TIMEOUT_S = 60.0
PERSONA = (0,)  # the one of the bare graph, so that answers can be held against it


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one closed loop saw; its first tenth, which warms up, counts for processor time alone.

    Attributes:
        seconds: from the end of the warm-up to the last answer that counts.
        latencies_s: of every answer within that time.
        answers: how many came, from the first to the last.
        client_cpu_s: processor time of this process, from the first to the last.
    """

    seconds: float
    latencies_s: tuple[float, ...]
    answers: int
    client_cpu_s: float

    @property
    def images_per_s(self) -> float:
        """Answers per second."""
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Latency that so many percent of the answers kept."""
        return float(np.percentile(self.latencies_s, percent)) * 1000


class _Clock:
    """Notes what comes back during one load."""

    def __init__(self, seconds: float) -> None:
        self._cpu_s = time.process_time()
        self._warm = time.perf_counter() + seconds / 10
        self.stop = self._warm + seconds
        self._seconds = seconds
        self._answers: list[tuple[float, float]] = []

    def note(self, sent: float) -> None:
        """Count an answer that has just come, to what was sent at `sent`."""
        self._answers.append((sent, time.perf_counter()))

    def load(self) -> Load:
        """Sum up."""
        counted = tuple(back - sent for sent, back in self._answers if self._warm <= back <= self.stop)
        used_s = time.process_time() - self._cpu_s
        return Load(seconds=self._seconds, latencies_s=counted, answers=len(self._answers), client_cpu_s=used_s)


class HttpCaller:
    """One kept-alive connection that posts raw bodies."""

    def __init__(self, port: int, path: str = "/swap") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._path = path

    def __call__(self, image: bytes) -> bytes:
        """Send one image and return the answer's body; raises ConnectionError for anything but 200."""
        try:
            self._connection.request("POST", self._path, image, {"Content-Type": "application/octet-stream"})
            answer = self._connection.getresponse()
            body = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"the server hung up in the middle of an answer: {error!r}") from None
        if answer.status != 200:
            raise ConnectionError(f"{answer.status} {answer.reason}")
        return body

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class SocketCaller:
    """One bare connection; the answer is as long as the workload says."""

    def __init__(self, port: int, answer_bytes: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel keeps the time: Python's own timeouts make a socket non-blocking, and MSG_WAITALL would not wait.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(TIMEOUT_S), 0))
        self._answer = bytearray(answer_bytes)

    def __call__(self, image: bytes) -> memoryview:
        """Send one image and return the answer."""
        self._socket.sendall(image)
        if self._socket.recv_into(self._answer, len(self._answer), socket.MSG_WAITALL) < len(self._answer):
            raise ConnectionError("the server hung up")
        return memoryview(self._answer)

    def close(self) -> None:
        """Hang up, whoever waits for an answer."""
        with suppress(OSError):  # the server was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def drive_threads(open_caller: Callable[[], Any], image: bytes, in_flight: int, seconds: float) -> Load:
    """Load a server over blocking connections, one per caller; what one of them raises is raised here."""
    callers = [open_caller() for _ in range(in_flight)]
    clock = _Clock(seconds)

    def loop(caller: Any) -> None:
        while (sent := time.perf_counter()) < clock.stop:
            caller(image)
            clock.note(sent)

    try:
        with ThreadPoolExecutor(in_flight) as pool:
            list(pool.map(loop, callers))
    finally:
        for caller in callers:
            caller.close()
    return clock.load()


class TritonCaller:
    """The SDK's requests to one model of a Triton server, without its retries; shared by all callers.

    Args:
        connection: where, and whether the pixels go through shared memory.
        model: a key of `visard.wire.MODELS` that takes a persona.
    """

    def __init__(self, connection: Connection, model: str) -> None:
        self._connection = connection
        self._model = model
        self._channel = connection.open_channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._regions = RegionPool(connection.max_in_flight, 600.0, self._register)

    async def __call__(self, image: Any) -> dict[str, Any]:
        """Send (1, 512, 512, 3) uint8 and return the answer's tensors."""
        if not self._connection.shared_memory:
            request = build_request(self._model, image, PERSONA, timeout_s=TIMEOUT_S)
            return parse_response(self._model, await self._stub.ModelInfer(request, timeout=TIMEOUT_S))
        region = await self._regions.take()
        assert region is not None
        write_region(region.memory, image)
        request = build_request(self._model, image, PERSONA, timeout_s=TIMEOUT_S, region=region.name)
        response = await self._stub.ModelInfer(request, timeout=TIMEOUT_S)
        answer = parse_response(self._model, response, region.memory)
        self._regions.give_back(region, answered=True)
        return answer

    async def close(self) -> None:
        """Let the server forget the shared memory and hang up."""
        for name in self._regions.forget():
            with suppress(Exception):  # a server that is gone has let go of it already
                request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
                await self._stub.SystemSharedMemoryUnregister(request, timeout=5)
        await self._channel.close()

    async def _register(self, name: str) -> None:
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=name, key=f"/{name}", offset=0, byte_size=REGION_SIZE
        )
        await self._stub.SystemSharedMemoryRegister(request, timeout=5)


def drive_triton(connection: Connection, model: str, image: Any, in_flight: int, seconds: float) -> Load:
    """Load a Triton server with the SDK's requests."""

    async def loop() -> Load:
        caller = TritonCaller(connection, model)
        clock = _Clock(seconds)

        async def one() -> None:
            while (sent := time.perf_counter()) < clock.stop:
                await caller(image)
                clock.note(sent)

        try:
            await asyncio.gather(*(one() for _ in range(in_flight)))
        finally:
            await caller.close()
        return clock.load()

    return asyncio.run(loop())
