"""One closed loop for every server: so many callers, each sending its next image when its last answer is back.

Images are 512×512×3 bytes. Four transports: HTTP with a raw body, bare TCP, Triton's gRPC, and Triton with the pixels
in shared memory. HTTP and TCP callers are threads on blocking sockets that read straight into one buffer, the leanest
client there is in Python; the other two are the SDK's own requests, answers and channel.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from visard import Connection
from visard.shared_memory import RegionPool
from visard.wire import REGION_SIZE, build_request, parse_response, write_region

IMAGE_BYTES = 512 * 512 * 3
TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one closed loop saw.

    Attributes:
        in_flight: callers.
        seconds: from the first image to the last answer that counts.
        latencies_s: of every answer within that time.
        client_cpu_s: processor time of this process meanwhile.
    """

    in_flight: int
    seconds: float
    latencies_s: tuple[float, ...]
    client_cpu_s: float

    @property
    def images_per_s(self) -> float:
        """Answers per second."""
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Latency that so many percent of the answers kept."""
        return float(np.percentile(self.latencies_s, percent)) * 1000


def connect(port: int) -> socket.socket:
    """Open a blocking connection on loopback whose reads give up after `TIMEOUT_S`.

    The kernel keeps the time: Python's own timeouts make a socket non-blocking, and MSG_WAITALL would not wait.
    """
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(TIMEOUT_S), 0))
    return connection


class HttpCaller:
    """One kept-alive connection that posts raw bodies."""

    def __init__(self, port: int, path: str = "/swap") -> None:
        self._socket = connect(port)
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: {IMAGE_BYTES}\r\n\r\n"
        ).encode()
        self._body = bytearray(2 * IMAGE_BYTES)

    def __call__(self, image: bytes) -> memoryview:
        """Send one image and return the answer's body; raises ConnectionError for anything but 200."""
        self._socket.sendall(self._head)
        self._socket.sendall(image)
        reply = bytearray()
        while (end := reply.find(b"\r\n\r\n")) < 0:
            reply += self._some()
        head, rest = bytes(reply[:end]).lower(), reply[end + 4 :]
        if not head.startswith((b"http/1.1 200", b"http/1.0 200")):
            raise ConnectionError(head.split(b"\r\n")[0].decode("latin-1"))
        if b"transfer-encoding: chunked" in head:
            return memoryview(self._chunks(rest))
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        view = memoryview(self._body)[:length]
        view[: len(rest)] = rest
        done = len(rest)
        while done < length:
            received = self._socket.recv_into(view[done:], 0, socket.MSG_WAITALL)
            if not received:
                raise ConnectionError("the server hung up in the middle of an answer")
            done += received
        return view

    def _chunks(self, rest: bytearray) -> bytearray:
        """Read a chunked body, part of which has arrived with the head."""
        body = bytearray()
        while True:
            while (end := rest.find(b"\r\n")) < 0:
                rest += self._some()
            size = int(rest[:end].split(b";")[0], 16)
            while len(rest) < end + 2 + size + 2:
                rest += self._some()
            body += rest[end + 2 : end + 2 + size]
            del rest[: end + 2 + size + 2]
            if not size:
                return body

    def _some(self) -> bytes:
        received = self._socket.recv(IMAGE_BYTES)
        if not received:
            raise ConnectionError("the server hung up")
        return received

    def close(self) -> None:
        """Hang up, whoever waits for an answer."""
        with suppress(OSError):  # the server was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class SocketCaller:
    """One bare connection; the answer is as long as the workload says."""

    def __init__(self, port: int, answer_bytes: int) -> None:
        self._socket = connect(port)
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
    """Load a server over blocking connections, one per caller, a tenth of the time for warming up first."""
    callers = [open_caller() for _ in range(in_flight)]
    latencies: list[list[float]] = [[] for _ in callers]
    failures: list[BaseException] = []
    warm = time.perf_counter() + seconds / 10
    stop = warm + seconds

    def loop(index: int) -> None:
        try:
            while (sent := time.perf_counter()) < stop:
                callers[index](image)
                back = time.perf_counter()
                if warm <= back <= stop:
                    latencies[index].append(back - sent)
        except BaseException as error:  # handed on to the caller of `drive_threads`
            failures.append(error)

    threads = [threading.Thread(target=loop, args=(index,), daemon=True) for index in range(in_flight)]
    try:
        for thread in threads:
            thread.start()
        time.sleep(max(0.0, warm - time.perf_counter()))
        used_s = time.process_time()
        time.sleep(max(0.0, stop - time.perf_counter()))
        used_s = time.process_time() - used_s
        for thread in threads:
            thread.join(TIMEOUT_S)
    finally:
        for caller in callers:
            caller.close()
    if failures:
        raise failures[0]
    return Load(
        in_flight=in_flight,
        seconds=seconds,
        latencies_s=tuple(value for each in latencies for value in each),
        client_cpu_s=used_s,
    )


class TritonCaller:
    """The SDK's requests to one model of a Triton server, without its retries; shared by all callers.

    Args:
        connection: where, and whether the pixels go through shared memory.
        model: a key of `visard.wire.MODELS`; its graph draws the personas, where it takes any.
        name: what the server calls it, where that is something else.
    """

    def __init__(self, connection: Connection, model: str, name: str | None = None) -> None:
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self._service = service_pb2
        self._connection = connection
        self._model = model
        self._name = name or model
        self._channel = connection.open_channel()
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._regions = RegionPool(connection.max_in_flight, 600.0, self._register)

    async def __call__(self, image: Any) -> dict[str, Any]:
        """Send (1, 512, 512, 3) uint8 and return the answer's tensors."""
        if not self._connection.shared_memory:
            request = build_request(self._model, image, timeout_s=TIMEOUT_S)
            request.model_name = self._name
            return parse_response(self._model, await self._stub.ModelInfer(request, timeout=TIMEOUT_S))
        region = await self._regions.take()
        assert region is not None
        write_region(region.memory, image)
        request = build_request(self._model, image, timeout_s=TIMEOUT_S, region=region.name)
        request.model_name = self._name
        response = await self._stub.ModelInfer(request, timeout=TIMEOUT_S)
        answer = parse_response(self._model, response, region.memory)
        self._regions.give_back(region, answered=True)
        return answer

    async def close(self) -> None:
        """Let the server forget the shared memory and hang up."""
        for name in self._regions.forget():
            with suppress(Exception):  # a server that is gone has let go of it already
                await self._stub.SystemSharedMemoryUnregister(
                    self._service.SystemSharedMemoryUnregisterRequest(name=name), timeout=5
                )
        await self._channel.close()

    async def _register(self, name: str) -> None:
        await self._stub.SystemSharedMemoryRegister(
            self._service.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", offset=0, byte_size=REGION_SIZE),
            timeout=5,
        )


def drive_triton(
    connection: Connection, model: str, image: Any, in_flight: int, seconds: float, name: str | None = None
) -> Load:
    """Load a Triton server with the SDK's requests, a tenth of the time for warming up first."""

    async def loop() -> Load:
        caller = TritonCaller(connection, model, name)
        latencies: list[float] = []
        warm = time.perf_counter() + seconds / 10
        stop = warm + seconds

        async def one() -> None:
            while (sent := time.perf_counter()) < stop:
                await caller(image)
                back = time.perf_counter()
                if warm <= back <= stop:
                    latencies.append(back - sent)

        async def processor() -> float:
            await asyncio.sleep(max(0.0, warm - time.perf_counter()))
            used_s = time.process_time()
            await asyncio.sleep(max(0.0, stop - time.perf_counter()))
            return time.process_time() - used_s

        try:
            callers = [asyncio.ensure_future(one()) for _ in range(in_flight)]
            used_s = await processor()
            await asyncio.gather(*callers)
        finally:
            await caller.close()
        return Load(in_flight=in_flight, seconds=seconds, latencies_s=tuple(latencies), client_cpu_s=used_s)

    return asyncio.run(loop())
