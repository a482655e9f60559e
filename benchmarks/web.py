"""What the web server bears: many uploads at once, what each caller got, and whether it stood still or kept memory.

The server runs in this process with an event loop of its own; the callers are another process, so that they do not
share its interpreter. Rounds follow one another on the same server: memory that grows from round to round is kept, what
grows once is the allocator's. While they run, a task on the server's event loop sleeps for 2 ms again and again: how
much longer that took is how long others had to wait, the machine's own scheduling included. The same task on an idle
server, and in a process beside the callers that does nothing else, is the floor. A turn of the loop with work for 200
connections takes its time without anything blocking it, so the longest single callback is measured too.

The models do next to nothing (tiny ones), so that the web server is what is measured. Prints a line per round; the last
line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from visard import Connection
from visard_server.embedded import SAMPLE_PHOTO
from visard_server.triton import TritonServer
from visard_testing.tiny_models import tiny_repository
from visard_web.serve import listen, make_server
from visard_web.settings import Settings

NAP_S = 0.002
MEBIBYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=200, help="uploads at once (default 200)")
    parser.add_argument("--rounds", type=int, default=3, help="how often (default 3)")
    parser.add_argument("--megapixels", type=float, default=12.0, help="of every fourth photo (default 12)")
    parser.add_argument("--call", metavar="URL", help=argparse.SUPPRESS)  # be the callers
    parser.add_argument("--nap", type=float, help=argparse.SUPPRESS)  # be the floor
    arguments = parser.parse_args()
    if arguments.call:
        print(json.dumps(asyncio.run(call(arguments.call, arguments.callers, arguments.megapixels))))
        return
    if arguments.nap:
        print(json.dumps(summary(asyncio.run(nap(arguments.nap)))))
        return
    with tempfile.TemporaryDirectory() as folder:
        repository = tiny_repository(Path(folder) / "models")
        with TritonServer(repository) as triton:
            print(json.dumps(measure(triton.grpc_url, arguments)))


def measure(triton_url: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Serve, let the callers come round after round, and look at this process in between."""
    listening = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = make_server(Connection(url=triton_url), Settings(rate=None, keep_s=5.0))
    stalls: list[float] = []
    callbacks = time_callbacks()

    async def serve() -> None:
        probe = asyncio.create_task(watch(stalls))
        await server.serve(sockets=[listening])
        probe.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not server.started:
        time.sleep(0.05)
    time.sleep(0.5)
    stalls.clear()
    time.sleep(5)
    idle = summary(stalls)
    print(f"idle: {idle}, {memory():.0f} MiB")
    rounds = []
    for _ in range(arguments.rounds):
        stalls.clear()
        callbacks.clear()
        floor = subprocess.Popen([sys.executable, __file__, "--nap", "5"], stdout=subprocess.PIPE, text=True)
        command = [sys.executable, __file__, "--call", url, "--callers", str(arguments.callers)]
        command += ["--megapixels", str(arguments.megapixels)]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        stood, longest = summary(stalls), summary(callbacks)
        beside = json.loads(floor.communicate()[0])
        time.sleep(11)  # all photos of the page are forgotten, and the sweeper has come round
        gc.collect()
        rounds.append(
            {
                **done,
                "loop_ms": stood,
                "callback_ms": longest,
                "other_process_ms": beside,
                "memory_mib": round(memory()),
            }
        )
        print(rounds[-1], flush=True)
    server.should_exit = True
    thread.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cores": os.cpu_count(), "idle_loop_ms": idle, "rounds": rounds, "peak_mib": round(peak)}


def time_callbacks() -> list[float]:
    """Note how long each callback on an event loop of this process runs, from now on."""
    seconds: list[float] = []
    run = asyncio.events.Handle._run

    def timed(handle: asyncio.events.Handle) -> None:
        started = time.perf_counter()
        run(handle)
        seconds.append(time.perf_counter() - started)

    asyncio.events.Handle._run = timed  # type: ignore[method-assign, assignment]  # for this process alone
    return seconds


async def watch(stalls: list[float]) -> None:
    """Note by how much each nap was longer than it should be."""
    while True:
        started = time.perf_counter()
        await asyncio.sleep(NAP_S)
        stalls.append(time.perf_counter() - started - NAP_S)


async def nap(seconds: float) -> list[float]:
    stalls: list[float] = []
    probe = asyncio.create_task(watch(stalls))
    await asyncio.sleep(seconds)
    probe.cancel()
    return stalls


def summary(stalls: list[float]) -> dict[str, float]:
    """Milliseconds: median, 99 % and the longest."""
    milliseconds = np.array(stalls) * 1000
    return {
        "p50": round(float(np.median(milliseconds)), 2),
        "p99": round(float(np.percentile(milliseconds, 99)), 1),
        "max": round(float(milliseconds.max()), 1),
    }


async def call(url: str, callers: int, megapixels: float) -> dict[str, object]:
    """Upload from many callers at once: every fourth a large photo, every third by the page."""
    small = SAMPLE_PHOTO.read_bytes()
    edge = round((megapixels * 1e6) ** 0.5)
    buffer = io.BytesIO()
    Image.open(SAMPLE_PHOTO).convert("RGB").resize((edge, edge)).save(buffer, "JPEG", quality=90)
    large = buffer.getvalue()
    seconds: list[float] = []

    async def upload(http: httpx.AsyncClient, number: int) -> str:
        photo = large if number % 4 == 0 else small
        started = time.perf_counter()
        try:
            if number % 3 == 0:
                answer = await http.post("/page/photos", files={"photo": photo}, data={"consent": "yes"})
            else:
                kind = "application/json" if number % 2 else "image/*"
                headers = {"Content-Type": "image/jpeg", "Accept": kind}
                answer = await http.post("/v1/anonymize?identity=true", content=photo, headers=headers)
        except httpx.HTTPError as error:
            return type(error).__name__
        if answer.status_code < 300:
            seconds.append(time.perf_counter() - started)
        return str(answer.status_code)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=callers)) as http:
        started = time.perf_counter()
        statuses = Counter(await asyncio.gather(*(upload(http, number) for number in range(callers))))
        took = time.perf_counter() - started
    return {"statuses": dict(statuses), "seconds": round(took, 1), "longest_s": round(max(seconds, default=0.0), 1)}


def memory() -> float:
    """Resident MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


if __name__ == "__main__":
    main()
