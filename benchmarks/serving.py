"""Images per second through the served ensemble, beside what the same graphs reach without a server.

The ceiling is a bare loop over the ensemble's three graphs (classifier, generator, classifier) with onnxruntime in
one process, on as many threads as the machine has cores, the faster of two layouts: every graph on all cores, one
image after another, or one image per core, each graph on one thread. The server, the client that loads it and the
bare loop share the same cores and take turns within one run, so that a slow minute of the machine slows both. The
ensemble is measured twice: with the pixels inside the gRPC messages, and with them in shared memory.

Prints medians and the ratio; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from visard import AsyncClient, Client, Connection, Options
from visard.embedded import SAMPLE_PHOTO, demo_models
from visard.pipeline import prepare
from visard.wire import Direction
from visard_server.triton import TritonServer

CORES = len(os.sched_getaffinity(0))
MODELS = ("gender_classifier", "generator_to_male", "generator_to_female")


@dataclass
class Road:
    """One way of the pixels to the server and back, and what was measured on it in each repeat."""

    shared_memory: bool
    rates: list[float] = field(default_factory=list)
    over_bare: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def load(repository: Path, threads: int) -> dict[str, onnxruntime.InferenceSession]:
    """One session per graph, from the very files that the server has loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return {
        model: onnxruntime.InferenceSession(
            max((repository / model).glob("*/model.onnx")), options, providers=["CPUExecutionProvider"]
        )
        for model in MODELS
    }


def bare_image(sessions: dict[str, onnxruntime.InferenceSession], image: np.ndarray) -> None:
    """One image through the three graphs."""
    (gender,) = sessions["gender_classifier"].run(None, {"image": image})
    generator = "generator_to_male" if gender[0, 0] >= gender[0, 1] else "generator_to_female"
    (swapped,) = sessions[generator].run(None, {"image": image})
    sessions["gender_classifier"].run(None, {"image": swapped})


def bare(repository: Path, image: np.ndarray, seconds: float, workers: int) -> float:
    """Images per second of `workers` loops that share the cores."""
    sessions = [load(repository, CORES // workers) for _ in range(workers)]
    for session in sessions:
        bare_image(session, image)
    counts = [0] * workers
    start = time.perf_counter()

    def loop(worker: int) -> None:
        while time.perf_counter() - start < seconds:
            bare_image(sessions[worker], image)
            counts[worker] += 1

    threads = [threading.Thread(target=loop, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


async def served(
    connection: Connection, image: np.ndarray, seconds: float, direction: Direction = "opposite"
) -> tuple[float, list[float]]:
    """Faces per second with `max_in_flight` callers, each sending its next face when the last one is back."""
    latencies: list[float] = []
    async with AsyncClient(connection) as client:
        await client.swap(image, direction)
        start = time.perf_counter()

        async def caller() -> None:
            while (sent := time.perf_counter()) - start < seconds:
                await client.swap(image, direction)
                latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(caller() for _ in range(connection.max_in_flight)))
        return len(latencies) / (time.perf_counter() - start), latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="model repository; the demo models by default")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each measurement (default 5)")
    parser.add_argument("--repeats", type=int, default=5, help="how often all take turns (default 5)")
    parser.add_argument("--in-flight", type=int, default=4, help="faces under way at once (default 4)")
    arguments = parser.parse_args()

    image = prepare(SAMPLE_PHOTO, Options()).aligned
    repository = arguments.models or demo_models()
    start = time.perf_counter()
    with TritonServer(repository, shared_memory=True) as server:
        ready_s = time.perf_counter() - start
        start = time.perf_counter()
        with Client(server.grpc_url) as client:
            client.swap(image)
        first_s = time.perf_counter() - start
        layouts: dict[int, list[float]] = {1: [], CORES: []}
        roads = {"gRPC": Road(shared_memory=False), "shared memory": Road(shared_memory=True)}
        for repeat in range(arguments.repeats):
            line = f"repeat {repeat + 1}:"
            for workers, rate in layouts.items():
                rate.append(bare(repository, image, arguments.seconds, workers))
            best = max(rate[-1] for rate in layouts.values())
            for name, road in roads.items():
                connection = Connection(
                    url=server.grpc_url, max_in_flight=arguments.in_flight, shared_memory=road.shared_memory
                )
                rate_served, latencies = asyncio.run(served(connection, image, arguments.seconds))
                road.rates.append(rate_served)
                road.over_bare.append(rate_served / best)
                road.latencies += latencies
                line += f"   {name} {rate_served:6.2f}/s {rate_served / best:6.1%}"
            print(f"{line}   bare {best:6.2f}/s")

    print(f"\nserver ready in {ready_s:.2f} s, first request after {first_s:.2f} s")
    for workers, rate in layouts.items():
        print(f"bare, {workers} at once on {CORES // workers} thread(s): {statistics.median(rate):6.2f} images/s")
    for name, road in roads.items():
        p50, p99 = np.percentile(road.latencies, [50, 99]) * 1000
        print(
            f"served over {name}, {arguments.in_flight} in flight: {statistics.median(road.rates):6.2f} images/s, "
            f"{statistics.median(road.over_bare):.1%} of bare   latency p50 {p50:.0f} ms, p99 {p99:.0f} ms"
        )
    grpc, shared = roads.values()
    print(
        json.dumps(
            {
                "images_per_second": round(statistics.median(grpc.rates), 2),
                "bare_images_per_second": round(
                    statistics.median(max(pair) for pair in zip(*layouts.values(), strict=True)), 2
                ),
                "served_over_bare": round(statistics.median(grpc.over_bare), 4),
                "shared_memory_over_bare": round(statistics.median(shared.over_bare), 4),
                "p99_ms": round(float(np.percentile(grpc.latencies, 99)) * 1000, 1),
                "ready_s": round(ready_s, 2),
                "environment": {
                    "machine": f"{platform.processor() or platform.machine()}, {CORES} cores",
                    "python": platform.python_version(),
                    "onnxruntime": onnxruntime.__version__,
                    "date": time.strftime("%Y-%m-%d"),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
