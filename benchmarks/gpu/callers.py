"""One process of callers: a closed loop over Triton's HTTP, every caller sending its next face with its last answer.

    python callers.py CONFIG      a `Callers` as JSON

Writes `ready` when it is connected, waits for a line, runs, and writes what it saw as one line of JSON. It speaks the
binary tensor extension of the HTTP protocol, and registers shared memory over it; numpy is all that it needs. Where
grpcio is there, it speaks gRPC as well.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import mmap
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import checkout
import grpc_messages

Transport = Literal["shared memory", "HTTP", "gRPC"]

FACE_BYTES = 512 * 512 * 3
TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Callers:
    """What one process is to do.

    Attributes:
        transport: pixels in HTTP messages, in gRPC messages, or in shared memory with messages over HTTP.
        port: of the server on this machine, for these messages.
        outputs: names that are asked for, `swapped` first.
        models: each caller takes them in turns, each with the next of its faces.
        faces: per model, numbers of the faces to send; the persona's number is the face's.
        images: file with all faces.
        expected: file with the right answers per model, one for each face.
        callers: how many; each has a connection and a thread.
        segment: name of the shared memory, where there is one.
        alone: send every face once before all else, one after the other.
        warm_s: seconds before those that count.
        seconds: that count.
    """

    transport: Transport
    port: int
    outputs: list[str]
    models: list[str]
    faces: dict[str, list[int]]
    images: str
    expected: dict[str, str]
    callers: int
    segment: str
    alone: bool
    warm_s: float
    seconds: float

    def to_json(self) -> str:
        """Write it down."""
        return json.dumps(dataclasses.asdict(self))


@dataclass
class Seen:
    """What the callers of one process saw.

    Attributes:
        ended: when each answer came, in seconds from the start.
        took: how long it took.
        checked: answers that were compared with the right ones.
        equal: those that were the same, byte for byte.
        largest_difference: of the others, in grey levels.
        alone: how many of the first faces, sent one after the other, were answered right; None where none were sent.
    """

    ended: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    checked: int = 0
    equal: int = 0
    largest_difference: int = 0
    alone: list[int] | None = None

    def check(self, answer: Any, right: Any) -> None:
        """Compare an answer."""
        difference = int(np.abs(np.frombuffer(answer, np.uint8).astype(np.int16) - right.reshape(-1)).max())
        self.checked += 1
        self.equal += difference == 0
        self.largest_difference = max(self.largest_difference, difference)


class HttpConnection:
    """One caller's connection over HTTP, and its place in shared memory where there is one."""

    def __init__(self, config: Callers, memory: mmap.mmap | None, place: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", config.port, timeout=TIMEOUT_S)
        self._outputs, self._region, self._memory, self._place = config.outputs, config.segment, memory, place
        self._message = json.dumps(self._describe()).encode()

    def _describe(self) -> dict[str, Any]:
        def in_region(offset: int) -> dict[str, Any]:
            return {
                "shared_memory_region": self._region,
                "shared_memory_offset": offset,
                "shared_memory_byte_size": FACE_BYTES,
            }

        at = 2 * FACE_BYTES * self._place
        image: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [1, 512, 512, 3]}
        persona = {"name": "persona", "datatype": "INT32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
        image["parameters"] = {"binary_data_size": FACE_BYTES} if self._memory is None else in_region(at)
        outputs: list[dict[str, Any]] = [{"name": name, "parameters": {"binary_data": True}} for name in self._outputs]
        if self._memory is not None:
            outputs[0]["parameters"] = in_region(at + FACE_BYTES)
        return {"inputs": [image, persona], "outputs": outputs}

    def ask(self, model: str, image: bytes, persona: int) -> Any:
        """Send one face and return the swapped one's bytes."""
        number = persona.to_bytes(4, "little")
        if self._memory is None:
            body = b"".join((self._message, image, number))
        else:
            at = 2 * FACE_BYTES * self._place
            self._memory[at : at + FACE_BYTES] = image
            body = self._message + number
        headers = {"Inference-Header-Content-Length": str(len(self._message))}
        self._http.request("POST", f"/v2/models/{model}/infer", body, headers)
        answer = self._http.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"{answer.status}: {content[:300].decode(errors='replace')}")
        if self._memory is None:
            start = int(answer.headers["Inference-Header-Content-Length"])
            return memoryview(content)[start : start + FACE_BYTES]
        return memoryview(self._memory)[at + FACE_BYTES : at + 2 * FACE_BYTES]

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    def register(self, size: int) -> None:
        """Tell the server of the shared memory."""
        body = json.dumps({"key": f"/{self._region}", "offset": 0, "byte_size": size})
        self._http.request("POST", f"/v2/systemsharedmemory/region/{self._region}/register", body)
        answer = self._http.getresponse()
        if answer.read() and answer.status != 200:
            raise ConnectionError(f"shared memory is not registered: {answer.status}")


class GrpcConnection:
    """One caller's channel over gRPC."""

    def __init__(self, config: Callers) -> None:
        import grpc

        # A connection of its own, as the others have, and no limit on a message's size.
        options = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{config.port}", [*options, ("grpc.use_local_subchannel_pool", 1)]
        )
        self._infer = self._channel.unary_unary(grpc_messages.METHOD)
        self._outputs = config.outputs

    def ask(self, model: str, image: bytes, persona: int) -> Any:
        """Send one face and return the swapped one's bytes."""
        inputs = ("image", "UINT8", (1, 512, 512, 3)), ("persona", "INT32", (1, 1))
        contents = image, persona.to_bytes(4, "little")
        asked = grpc_messages.request(model, inputs, self._outputs, contents)
        return grpc_messages.first_output(self._infer(asked, timeout=TIMEOUT_S))

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


def run(config: Callers) -> dict[str, Any]:
    """Do what the configuration says."""
    images = np.load(config.images)
    expected = {model: np.load(path) for model, path in config.expected.items()}
    pixels = [image.tobytes() for image in images]
    memory, path = None, Path(f"/dev/shm/{config.segment}")
    if config.segment:
        with path.open("w+b") as file:
            file.truncate(2 * FACE_BYTES * config.callers)
            memory = mmap.mmap(file.fileno(), 0)
    connections: list[HttpConnection] | list[GrpcConnection] = []
    try:
        if config.transport == "gRPC":
            connections = [GrpcConnection(config) for _ in range(config.callers)]
        else:
            connections = [HttpConnection(config, memory, place) for place in range(config.callers)]
            if memory is not None:
                connections[0].register(len(memory))
        seen = Seen()
        if config.alone:
            alone = Seen()
            for model in config.models:
                for face in config.faces[model]:
                    alone.check(connections[0].ask(model, pixels[face], face), expected[model][face])
            seen.alone = [alone.equal, alone.checked]
        print("ready", flush=True)
        sys.stdin.readline()
        start, cpu = time.perf_counter(), time.process_time()
        lock = threading.Lock()

        def loop(place: int) -> None:
            connection, turn = connections[place], place
            now = start
            while turn == place or now - start < config.warm_s + config.seconds:
                sent = time.perf_counter()
                model = config.models[turn % len(config.models)]
                faces = config.faces[model]
                face = faces[turn // len(config.models) % len(faces)]
                answer = connection.ask(model, pixels[face], face)
                now = time.perf_counter()
                with lock:
                    seen.ended.append(round(now - start, 6))
                    seen.took.append(round(now - sent, 6))
                    if turn == place:  # under load, and in the time that does not count
                        seen.check(answer, expected[model][face])
                turn += 1

        with ThreadPoolExecutor(config.callers) as pool:
            list(pool.map(loop, range(config.callers)))
        return {**dataclasses.asdict(seen), "cpu_s": time.process_time() - cpu, "pid": os.getpid()}
    finally:
        for connection in connections:
            connection.close()
        if config.segment:
            path.unlink(missing_ok=True)


def main() -> None:
    checkout.end_with_parent()
    print(json.dumps(run(Callers(**json.loads(sys.argv[1])))), flush=True)


if __name__ == "__main__":
    main()
