"""The same models and faces through other servers that a user could choose instead of Visard, in one run.

    identity   a graph that returns its 512×512×3 bytes: transport, batching and scheduling are all that is left
    photos     classify, swap, classify again: the demo models, or those of --models

Each peer runs for real, in processes of its own on loopback, in its recommended batching configuration (its file in
`servers/` says which), and is driven by the same closed loop with the same numbers of callers. Peers take turns, in
another order in every repeat, each started anew. The figure of a peer is its best median rate among the numbers of
callers whose p99 keeps the bound. The ceiling is the bare graph in this process, one thread per core; the floor of
transport is a bare TCP connection. The load shares the machine's cores with every server, and its own processor time is
printed, because Python's gRPC costs the caller more than a plain socket does.

A peer that is not installed is named with how to install it and left out. Peers whose packages do not fit together live
in virtual environments of their own, one folder per peer:

    python -m visard_benchmarks.peers --environments ~/peers --install     make them (once)
    python -m visard_benchmarks.peers --environments ~/peers               measure
    python -m visard_benchmarks.peers --quick --only fastapi visard        a look within a minute

The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from visard import Connection, Options
from visard.pipeline import prepare
from visard_benchmarks.drive import HttpCaller, Load, SocketCaller, TritonCaller, drive_threads, drive_triton
from visard_benchmarks.environment import environment
from visard_benchmarks.identity import MODEL, identity_models
from visard_benchmarks.peers.environments import PEERS, RIVALS, SERVERS, Peer, find_python, how_to_install, install
from visard_benchmarks.peers.servers.graph import Graph
from visard_benchmarks.rates import bare_rate
from visard_server.embedded import SAMPLE_PHOTO, demo_models
from visard_testing.nginx_gateway import free_ports
from visard_testing.processes import Processes

Workload = Literal["identity", "photos"]
P99_MS: dict[Workload, float] = {"identity": 50.0, "photos": 1000.0}
MIN_SECONDS: dict[Workload, float] = {"identity": 0.0, "photos": 3.0}  # a face takes tens of milliseconds on a CPU
ANSWER_BYTES: dict[Workload, int] = {"identity": 786_432, "photos": 786_432 + 16}
START_TIMEOUT_S = 90.0
MAX_GREY_DIFFERENCE = 1.0  # mean, between a peer's face and the bare graph's: versions of onnxruntime round differently
GOAL = 2.0  # of each ratio below, on the identity graph


def figures_of(load: Load, server_cpu_s: float) -> dict[str, float]:
    """What is noted of one load."""
    return {
        "images_per_s": load.images_per_s,
        "p50_ms": load.percentile_ms(50),
        "p99_ms": load.percentile_ms(99),
        "server_cpu_ms": server_cpu_s * 1000 / load.answers,
        "client_cpu_ms": load.client_cpu_s * 1000 / load.answers,
    }


def medians_of(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median of each figure over the repeats."""
    return {name: round(statistics.median(each[name] for each in repeats), 2) for name in repeats[0]}


def best_within(levels: dict[int, dict[str, float]], p99_ms: float) -> tuple[int, dict[str, float]] | None:
    """Number of callers with the most images per second among those that keep the bound, and its figures."""
    kept = {callers: figures for callers, figures in levels.items() if figures["p99_ms"] <= p99_ms}
    if not kept:
        return None
    callers = max(kept, key=lambda callers: kept[callers]["images_per_s"])
    return callers, kept[callers]


def ratios(rates: dict[str, float]) -> dict[str, float | None]:
    """Our images per second over the best rival's, both ways, and our two ways over one another.

    Args:
        rates: peer → images per second; whoever is missing was not measured or kept no bound.
    """
    best = max((rates[rival] for rival in RIVALS if rival in rates), default=None)
    grpc, shared = rates.get("visard"), rates.get("visard-shared")

    def over(ours: float | None, other: float | None) -> float | None:
        return None if ours is None or not other else round(ours / other, 3)

    return {
        "grpc_over_best_peer": over(grpc, best),
        "shared_memory_over_best_peer": over(shared, best),
        "shared_memory_over_grpc": over(shared, grpc),
    }


class Bench:
    """What all peers of one run have in common.

    Args:
        workload: which graphs.
        graph: model repository, or the identity's ONNX file.
        repository: what Triton serves.
        image: (1, 512, 512, 3) uint8 RGB.
        seconds: of one measurement.
    """

    def __init__(
        self, workload: Workload, graph: Path, repository: Path, image: NDArray[np.uint8], seconds: float
    ) -> None:
        self.workload = workload
        self.graph = graph
        self.repository = repository
        self.image = image
        self.seconds = seconds
        self.model = MODEL if workload == "identity" else "anonymizer"
        self.expected = Graph(graph)(image)[0]

    def command(self, peer: Peer, python: Path, port: int) -> list[str]:
        """How to start a peer."""
        models = self.repository if peer.script == "serve_visard.py" else self.graph
        return [str(python), str(SERVERS / peer.script), "--port", str(port), "--models", str(models)]

    def check(self, answer: bytes) -> None:
        """Hold an answer against the bare graph's; whoever is fast because it does something else must not count."""
        pixels = np.frombuffer(answer, np.uint8, self.image.size).astype(int)
        difference = float(np.abs(pixels - np.frombuffer(self.expected, np.uint8, self.image.size)).mean())
        if difference > (0 if self.workload == "identity" else MAX_GREY_DIFFERENCE):
            raise ValueError(f"the answer is {difference:.2f} grey levels away from the bare graph's")

    def ask_once(self, peer: Peer, port: int) -> bytes:
        """Send one image."""
        if peer.transport in ("http", "tcp"):
            caller = self.caller(peer, port)
            try:
                return bytes(caller(self.image.tobytes()))
            finally:
                caller.close()

        async def ask() -> bytes:
            caller = TritonCaller(self.connection(peer, port, 1), self.model)
            try:
                return bytes((await caller(self.image))["swapped"].tobytes())
            finally:
                await caller.close()

        return asyncio.run(ask())

    def caller(self, peer: Peer, port: int) -> Any:
        """One connection of a peer that is asked over a socket."""
        return HttpCaller(port) if peer.transport == "http" else SocketCaller(port, ANSWER_BYTES[self.workload])

    def connection(self, peer: Peer, port: int, in_flight: int) -> Connection:
        """How the SDK reaches a Triton."""
        shared = peer.transport == "shared memory"
        return Connection(url=f"127.0.0.1:{port}", max_in_flight=in_flight, shared_memory=shared)

    def wait_until_ready(self, peer: Peer, port: int, processes: Processes) -> None:
        """Ask until the right answer comes."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.check(self.ask_once(peer, port))
            except (OSError, grpc.RpcError) as error:
                if processes.ended() or time.monotonic() > deadline:
                    raise ConnectionError(f"{peer.title} does not answer ({error})") from None
                time.sleep(0.2)
            else:
                return

    def drive(self, peer: Peer, port: int, in_flight: int) -> Load:
        """Load a running peer."""
        if peer.transport in ("http", "tcp"):
            return drive_threads(lambda: self.caller(peer, port), self.image.tobytes(), in_flight, self.seconds)
        return drive_triton(self.connection(peer, port, in_flight), self.model, self.image, in_flight, self.seconds)


Levels = dict[int, list[dict[str, float]]]  # number of callers → figures of each repeat


def measure(
    bench: Bench, peer: Peer, python: Path, callers: Sequence[int], levels: Levels, failed: dict[str, str]
) -> str:
    """Start a peer and load it with each number of callers.

    Args:
        bench: what all peers have in common.
        peer: the server.
        python: its interpreter.
        callers: numbers of them.
        levels: takes the figures.
        failed: takes why a number of callers was too many.

    Returns:
        What is said of it.

    Raises:
        RuntimeError: it failed, with what it last said.
    """
    (port,) = free_ports(1)
    with Processes(bench.command(peer, python, port), SERVERS) as processes:
        try:
            started = time.perf_counter()
            bench.wait_until_ready(peer, port, processes)
            said = [f"ready in {time.perf_counter() - started:.1f} s"]
            for in_flight in callers:
                used_s = processes.cpu_seconds()
                try:
                    load = bench.drive(peer, port, in_flight)
                except OSError as error:  # it broke under so many callers; fewer, it may have served
                    failed[f"{peer.title} with {in_flight} callers"] = str(error)
                    said.append(f"{in_flight}: {error}")
                    continue
                if load.latencies_s:
                    levels.setdefault(in_flight, []).append(figures_of(load, processes.cpu_seconds() - used_s))
                    said.append(f"{in_flight}: {load.images_per_s:.1f}")
                else:  # the slower the peer, the longer the callers wait for one another
                    said.append(f"{in_flight}: no answer within the time, allow more --seconds")
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}\n{processes.last_words()}") from error
    return "   ".join(said)


def run(
    bench: Bench, peers: dict[str, tuple[Peer, Path]], callers: Sequence[int], repeats: int
) -> tuple[dict[str, dict[int, dict[str, float]]], float, dict[str, str]]:
    """Measure all peers in turn.

    Returns:
        Peer → number of callers → figures; the bare graph's images per second; peer → why it was given up.
    """
    measured: dict[str, Levels] = {key: {} for key in peers}
    bare: list[float] = []
    failed: dict[str, str] = {}
    for repeat in range(repeats):
        bare.append(bare_rate(bench.graph, bench.image, bench.seconds))
        print(f"repeat {repeat + 1}/{repeats}  {'bare graph':38}{bare[-1]:9.1f} images/s", flush=True)
        order = [key for key in peers if key in measured]
        random.Random(repeat).shuffle(order)
        for key in order:
            peer, python = peers[key]
            try:
                said = measure(bench, peer, python, callers, measured[key], failed)
            except Exception as error:  # one peer that fails stops no other
                failed[key] = str(error).splitlines()[0]
                del measured[key]
                said = f"failed and is left out: {error}"
            print(f"repeat {repeat + 1}/{repeats}  {peer.title:38} {said}", flush=True)
    medians = {
        key: {in_flight: medians_of(each) for in_flight, each in levels.items()}
        for key, levels in measured.items()
        if levels
    }
    return medians, statistics.median(bare), failed


def report(
    workload: Workload, medians: dict[str, dict[int, dict[str, float]]], bare_per_s: float, p99_ms: float
) -> Table:
    """One row per peer, the fastest first."""
    table = Table(title=f"{workload}: images/s with p99 ≤ {p99_ms:g} ms; bare graph {bare_per_s:.1f}/s")
    for heading in ("peer", "images/s", "callers", "p50 ms", "p99 ms", "ms beyond bare", "CPU ms server", "client"):
        table.add_column(heading, justify="left" if heading == "peer" else "right")
    rows = [(best_within(levels, p99_ms), key, levels) for key, levels in medians.items()]
    for best, key, levels in sorted(rows, key=lambda row: -(row[0][1]["images_per_s"] if row[0] else 0)):
        if best is None:
            least = min(levels.values(), key=lambda figures: figures["p99_ms"])
            table.add_row(PEERS[key].title, "none", "", "", f"≥ {least['p99_ms']:.0f}", "", "", "")
            continue
        callers, figures = best
        beyond = 1000 / figures["images_per_s"] - 1000 / bare_per_s
        shown = [f"{figures[name]:.2f}" for name in ("server_cpu_ms", "client_cpu_ms")]
        latency = [f"{figures[name]:.1f}" for name in ("p50_ms", "p99_ms")]
        rate = f"{figures['images_per_s']:.1f}"
        table.add_row(PEERS[key].title, rate, str(callers), *latency, f"{beyond:+.2f}", *shown)
    return table


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), help="these peers alone")
    parser.add_argument("--workload", nargs="+", choices=P99_MS, default=list(P99_MS), help="both by default")
    parser.add_argument("--environments", type=Path, help="folder with one virtual environment per peer")
    parser.add_argument("--install", action="store_true", help="make the environments that are missing, and end")
    parser.add_argument("--photo", type=Path, default=SAMPLE_PHOTO, help="whose largest face is sent")
    parser.add_argument("--models", type=Path, help="model repository; the demo models by default")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement (default 4)")
    parser.add_argument("--repeats", type=int, default=3, help="how often all take turns (default 3)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 8, 16], help="at once (default 1 4 8 16)")
    parser.add_argument("--p99-ms", type=float, help="the bound (default 50 for identity, 1000 for photos)")
    parser.add_argument("--quick", action="store_true", help="one repeat of one second under 1 and 8 callers")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.seconds, arguments.repeats, arguments.callers = min(arguments.seconds, 1.0), 1, [1, 8]
    if arguments.install and arguments.environments is None:
        parser.error("--install needs --environments")
    return arguments


def compare(
    workload: Workload, arguments: argparse.Namespace, peers: dict[str, tuple[Peer, Path]], scratch: Path
) -> dict[str, Any]:
    """Measure one workload, print it, and return what the last line says of it."""
    if workload == "identity":
        graph, repository = identity_models(scratch)
    else:
        graph = repository = arguments.models or demo_models()
    seconds = max(arguments.seconds, MIN_SECONDS[workload])
    least_s = arguments.repeats * len(peers) * len(arguments.callers) * seconds * 1.1
    print(f"{workload}: {len(peers)} peers, {least_s / 60:.1f} minutes and the time that they take to start")
    bench = Bench(workload, graph, repository, prepare(arguments.photo, Options()).aligned[:1], seconds)
    medians, bare, failed = run(bench, peers, arguments.callers, arguments.repeats)
    p99_ms = arguments.p99_ms or P99_MS[workload]
    Console(width=120).print(report(workload, medians, bare, p99_ms))
    best = {key: best_within(levels, p99_ms) for key, levels in medians.items()}
    rates = {key: each[1]["images_per_s"] for key, each in best.items() if each is not None}
    for name, value in ratios(rates).items():
        if value is not None:
            verdict = f" (goal {GOAL:g}: {'met' if value >= GOAL else 'missed'})" if workload == "identity" else ""
            print(f"{name.replace('_', ' ')}: {value:.2f} times{verdict}")
    return {
        "p99_bound_ms": p99_ms,
        "bare_images_per_s": round(bare, 2),
        "best_images_per_s": rates,
        **ratios(rates),
        "peers": medians,
        "failed": failed,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what the last line says."""
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves the blocks that end the servers
    if arguments.install:
        install([PEERS[key] for key in arguments.only], arguments.environments)
        return {}
    found: dict[str, tuple[Peer, Path]] = {}
    missing = {}
    for key in arguments.only:
        peer = PEERS[key]
        python = find_python(peer, arguments.environments)
        if python is None:
            missing[key] = how_to_install(peer, arguments.environments)
            print(f"{peer.title} is not installed and is left out: {missing[key]}")
        else:
            found[key] = peer, python
    machine = environment()
    with tempfile.TemporaryDirectory(prefix="visard-peers-") as scratch:
        workloads = {each: compare(each, arguments, found, Path(scratch)) for each in arguments.workload}
    summary = {"workloads": workloads, "left_out": missing, "environment": machine}
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
