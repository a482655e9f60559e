"""Serves the `Engine` without Triton: one process, threads, and so much of Triton's HTTP as `callers.py` speaks.

    python plain_server.py CONFIG     JSON: {"models": {name: settings as JSON, or null for an echo}, "instances": 2}

Writes its port when every model is ready. It is a stand-in: what is measured on it is not Triton.
"""

from __future__ import annotations

import json
import mmap
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch

import checkout
from engine import Engine, Settings

SHAPE = (1, 512, 512, 3)
MAX_ECHO = 64

regions: dict[str, mmap.mmap] = {}


class Call:
    """One request on its way through a model's queue."""

    def __init__(self, image: Any, persona: Any) -> None:
        self.image, self.persona = image, persona
        self.done = threading.Event()
        self.answer: dict[str, Any] = {}
        self.error = ""


class Served:
    """A model: a queue, and threads that each take from it what their engine can do at once."""

    def __init__(self, settings: str | None, instances: int) -> None:
        self.queue: SimpleQueue[Call] = SimpleQueue()
        parsed = None if settings is None else Settings.from_json(settings)
        for _ in range(instances):
            engine = None if parsed is None else Engine(parsed)
            most = MAX_ECHO if parsed is None else parsed.sizes[-1]
            threading.Thread(target=self._serve, args=(engine, most), daemon=True).start()

    def _serve(self, engine: Engine | None, most: int) -> None:
        while True:
            calls = [self.queue.get()]
            try:
                while len(calls) < most:
                    calls.append(self.queue.get_nowait())
            except Empty:
                pass
            try:
                if engine is None:
                    for call in calls:
                        call.answer = {"swapped": call.image}
                else:
                    images = [torch.from_numpy(call.image) for call in calls]
                    answers = engine.run(images, [torch.from_numpy(call.persona) for call in calls])
                    for call, answer in zip(calls, answers, strict=True):
                        call.answer = {n: part.numpy().copy() for n, part in zip(engine.outputs, answer, strict=True)}
            except Exception as error:  # the callers are told, and the next batch may do better
                for call in calls:
                    call.error = str(error)
            for call in calls:
                call.done.set()


class Handler(BaseHTTPRequestHandler):
    """Inference with binary tensors, and the registration of shared memory."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together
    served: dict[str, Served]

    def do_POST(self) -> None:
        """Answer."""
        body = bytearray(int(self.headers["Content-Length"]))  # torch wants memory that can be written
        self.rfile.readinto(body)
        parts = self.path.strip("/").split("/")
        if parts[1] == "systemsharedmemory":
            asked = json.loads(body)
            with Path(f"/dev/shm{asked['key']}").open("r+b") as file:
                regions[parts[3]] = mmap.mmap(file.fileno(), asked["byte_size"])
            self._send(200, b"{}")
            return
        length = int(self.headers["Inference-Header-Content-Length"])
        asked = json.loads(body[:length])
        image, persona = self._inputs(asked, memoryview(body)[length:])
        call = Call(image, persona)
        self.served[parts[2]].queue.put(call)
        call.done.wait()
        if call.error:
            self._send(500, json.dumps({"error": call.error}).encode())
            return
        self._answer(asked, call.answer)

    def _inputs(self, asked: Any, binary: memoryview) -> tuple[Any, Any]:
        values = []
        for tensor in asked["inputs"]:
            parameters = tensor["parameters"]
            if region := parameters.get("shared_memory_region"):
                start, size = parameters["shared_memory_offset"], parameters["shared_memory_byte_size"]
                values.append(memoryview(regions[region])[start : start + size])
            else:
                size = parameters["binary_data_size"]
                values.append(binary[:size])
                binary = binary[size:]
        return np.frombuffer(values[0], np.uint8).reshape(SHAPE), np.frombuffer(values[1], np.int32).reshape(1, 1)

    def _answer(self, asked: Any, answer: dict[str, Any]) -> None:
        described, binary = [], []
        for wanted in asked["outputs"]:
            value = np.ascontiguousarray(answer[wanted["name"]])
            parameters = wanted.get("parameters", {})
            if region := parameters.get("shared_memory_region"):
                start = parameters["shared_memory_offset"]
                regions[region][start : start + value.nbytes] = value.data.cast("B")
                described.append({"name": wanted["name"], "parameters": parameters})
            else:
                binary.append(value.data.cast("B"))
                described.append({"name": wanted["name"], "parameters": {"binary_data_size": value.nbytes}})
        head = json.dumps({"outputs": described}).encode()
        self._send(200, head, *binary, inference_header=len(head))

    def _send(self, status: int, *body: Any, inference_header: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(sum(len(part) for part in body)))
        if inference_header:
            self.send_header("Inference-Header-Content-Length", str(inference_header))
        self.end_headers()
        for part in body:
            self.wfile.write(part)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    daemon_threads = True
    request_queue_size = 512


def main() -> None:
    checkout.end_with_parent()
    config = json.loads(sys.argv[1])
    Handler.served = {name: Served(settings, config["instances"]) for name, settings in config["models"].items()}
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
