"""The same models and faces through what a user would pick instead of Visard, in one run.

    identity   a graph that returns its 512×512×3 bytes: transport, batching and scheduling are all that is left
    photos     classify, swap, classify again: the demo models, or those of --models and --checkpoints

Each peer runs for real, in processes of its own on loopback, in its recommended batching configuration (its file in
`peers/` says which), and is driven by the same closed loop with the same numbers of callers. Peers take turns, in
another order in every repeat, each started anew. The figure of a peer is its best median rate among the numbers of
callers whose p99 keeps the bound. The ceiling is the bare graph in this process, one thread per core; the floor of
transport is a bare TCP connection. The load shares the machine's cores with every server, and its own processor time is
printed, because Python's gRPC costs the caller more than a plain socket does.

A peer that is not installed is named with how to install it and left out. Peers whose packages do not fit together live
in virtual environments of their own, one folder per peer:

    python benchmarks/peers.py --environments ~/peers --install     make them (once)
    python benchmarks/peers.py --environments ~/peers               measure
    python benchmarks/peers.py --quick --only fastapi visard        a look within a minute

The last line is JSON.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from visard_benchmarks.drive import HttpCaller, Load, SocketCaller, TritonCaller, drive_threads, drive_triton
from visard_benchmarks.environment import environment
from numpy.typing import NDArray
from packaging.requirements import Requirement
from visard_benchmarks.processes import Processes
from rich.console import Console
from rich.table import Table

from visard import Connection, Options
from visard.pipeline import prepare
from visard_server.embedded import SAMPLE_PHOTO, demo_models

HERE = Path(__file__).resolve().parent / "peers"
Workload = Literal["identity", "photos"]
P99_MS: dict[Workload, float] = {"identity": 50.0, "photos": 1000.0}
MIN_SECONDS: dict[Workload, float] = {"identity": 0.0, "photos": 3.0}  # a face takes tens of milliseconds on a CPU
ANSWER_BYTES: dict[Workload, int] = {"identity": 786_432, "photos": 786_432 + 16}
START_TIMEOUT_S = 90.0
MAX_GREY_DIFFERENCE = 1.0  # mean, between a peer's face and the bare graph's: torch and onnxruntime round differently
GOAL_OVER_PEERS = 2.0
GOAL_SHARED_OVER_GRPC = 2.0
RIVALS = ("fastapi", "litserve", "ray", "bentoml", "bentoml-batching")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to serve the models.

    Attributes:
        title: how tables call it.
        script: its file in `peers/`.
        transport: how its answers are asked for.
        options: what the script is told besides port and models.
        workloads: what it can do.
        environment: name of the virtual environment that it shares with its like.
    """

    title: str
    script: str
    transport: Literal["http", "tcp", "grpc", "shared memory"]
    environment: str
    options: tuple[str, ...] = ()
    workloads: tuple[Workload, ...] = ("identity", "photos")


PEERS = {
    "socket": Peer(title="bare TCP, no server", script="serve_socket.py", transport="tcp", environment="visard"),
    "notebook": Peer(
        title="notebook: PyTorch, weights per image",
        script="serve_torch.py",
        transport="tcp",
        environment="visard",
        options=("--cold",),
        workloads=("photos",),
    ),
    "torch": Peer(
        title="PyTorch eager, warm",
        script="serve_torch.py",
        transport="tcp",
        environment="visard",
        workloads=("photos",),
    ),
    "fastapi": Peer(title="FastAPI + onnxruntime", script="serve_fastapi.py", transport="http", environment="fastapi"),
    "litserve": Peer(title="LitServe", script="serve_litserve.py", transport="http", environment="litserve"),
    "ray": Peer(title="Ray Serve", script="serve_ray.py", transport="http", environment="ray"),
    "bentoml": Peer(title="BentoML", script="serve_bentoml.py", transport="http", environment="bentoml"),
    "bentoml-batching": Peer(
        title="BentoML, adaptive batching",
        script="serve_bentoml.py",
        transport="http",
        environment="bentoml",
        options=("--batching",),
    ),
    "pytriton": Peer(title="PyTriton", script="serve_pytriton.py", transport="grpc", environment="visard"),
    "visard": Peer(title="Visard, gRPC", script="serve_visard.py", transport="grpc", environment="visard"),
    "visard-shared": Peer(
        title="Visard, shared memory", script="serve_visard.py", transport="shared memory", environment="visard"
    ),
}


@dataclass(kw_only=True)
class Measured:
    """What was seen of one peer under one number of callers, one entry per repeat."""

    images_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    server_cpu_ms: list[float] = field(default_factory=list)
    client_cpu_ms: list[float] = field(default_factory=list)

    def add(self, load: Load, server_cpu_s: float) -> None:
        """Note one repeat; the servers' processor time includes the warm-up, a tenth more of the time."""
        self.images_per_s.append(load.images_per_s)
        self.p50_ms.append(load.percentile_ms(50))
        self.p99_ms.append(load.percentile_ms(99))
        self.server_cpu_ms.append(server_cpu_s * 1000 / (len(load.latencies_s) * 1.1))
        self.client_cpu_ms.append(load.client_cpu_s * 1000 / len(load.latencies_s))

    def medians(self) -> dict[str, float]:
        """Median of each figure over the repeats."""
        return {name: round(statistics.median(values), 2) for name, values in asdict(self).items()}


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


def requirements(peer: Peer) -> tuple[str, ...]:
    """What the peer's file says that it needs, read without running it."""
    for node in ast.parse((HERE / peer.script).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "REQUIREMENTS":
            return tuple(ast.literal_eval(node.value))
    raise ValueError(f"{peer.script} names no REQUIREMENTS")


def find_python(peer: Peer, environments: Path | None) -> Path | None:
    """The interpreter to run a peer with: its own environment's, or this one where it has all that is needed."""
    if environments is not None and (python := environments / peer.environment / "bin" / "python").exists():
        return python
    return Path(sys.executable) if all(map(is_installed, map(Requirement, requirements(peer)))) else None


def is_installed(requirement: Requirement) -> bool:
    """Whether this interpreter has a package in a fitting version, with what its extras need (but not theirs)."""
    try:
        if metadata.version(requirement.name) not in requirement.specifier:
            return False
    except metadata.PackageNotFoundError:
        return False
    needs = [Requirement(text) for text in metadata.requires(requirement.name) or ()] if requirement.extras else []
    return all(
        is_installed(need)
        for need in needs
        if need.marker is not None
        and not need.marker.evaluate({"extra": ""})
        and any(need.marker.evaluate({"extra": extra}) for extra in requirement.extras)
    )


def how_to_install(peer: Peer, environments: Path | None) -> str:
    """The commands that would make the peer's environment."""
    folder = (environments or Path("peers-environments")) / peer.environment
    packages = " ".join(f"'{requirement}'" for requirement in requirements(peer))
    return f"python3 -m venv {folder} && {folder}/bin/pip install {packages}   (and --environments {folder.parent})"


def install(peers: Sequence[Peer], environments: Path) -> None:
    """Make the environments that are missing."""
    for peer in {peer.environment: peer for peer in peers}.values():
        folder = environments / peer.environment
        if find_python(peer, environments) is not None:
            continue
        print(f"{folder}: installing {', '.join(requirements(peer))}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *requirements(peer)], check=True)


def identity_models(folder: Path) -> tuple[Path, Path]:
    """Write the identity graph: the ONNX file, and a repository that serves it as one of our models does its graph."""
    import onnx
    from google.protobuf import text_format
    from onnx import TensorProto, helper
    from tritonclient.grpc import model_config_pb2

    from visard_export.repository import adapt, static_repository

    shape: list[str | int | None] = ["N", 512, 512, 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["swapped"])],
        "identity",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, shape),
            helper.make_tensor_value_info("persona", TensorProto.INT32, ["N", 1]),  # as the generators have it
        ],
        [helper.make_tensor_value_info("swapped", TensorProto.UINT8, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    name = "generator_to_male"
    version = folder / "repository" / name / "1"
    version.mkdir(parents=True)
    onnx.save(model, version / "model.onnx")
    static = (static_repository() / name / "config.pbtxt").read_text(encoding="utf-8")
    config = adapt(name, text_format.Parse(static, model_config_pb2.ModelConfig()), "cpu")
    config.dynamic_batching.default_queue_policy.max_queue_size = 256  # waiting for a graph that is free takes no time
    (version.parent / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    return version / "model.onnx", folder / "repository"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Bench:
    """What all peers of one run have in common.

    Args:
        workload: which graphs.
        paths: what peers are told to load: `graph` the ONNX files, `repository` Triton's, `torch` the checkpoints.
        image: (1, 512, 512, 3) uint8 RGB.
        seconds: of one measurement.
    """

    def __init__(self, workload: Workload, paths: dict[str, Path], image: NDArray[np.uint8], seconds: float) -> None:
        sys.path.insert(0, str(HERE))
        from graph import Graph, batch_of, cores

        self.workload = workload
        self.image = image
        self.seconds = seconds
        self.cores = cores()
        self._paths = paths
        self._graphs = [Graph(paths["graph"]) for _ in range(self.cores)]
        self._batch_of = batch_of
        self.expected = self._graphs[0](image)[0]

    def bare(self) -> Load:
        """The graph without any server, a thread per core."""
        left = iter(self._graphs)

        def caller() -> Any:
            return _Bare(next(left), self._batch_of)

        return drive_threads(caller, self.image.tobytes(), self.cores, self.seconds)

    def command(self, peer: Peer, python: Path, port: int) -> list[str]:
        """How to start a peer."""
        kind = {"serve_visard.py": "repository", "serve_torch.py": "torch"}.get(peer.script, "graph")
        arguments = ["--port", str(port), "--models", str(self._paths[kind]), *peer.options]
        return [str(python), str(HERE / peer.script), *arguments]

    def check(self, answer: bytes) -> None:
        """Hold an answer against the bare graph's; whoever is fast because it does something else must not count."""
        pixels = np.frombuffer(answer, np.uint8, self.image.size).astype(int)
        difference = float(np.abs(pixels - np.frombuffer(self.expected, np.uint8, self.image.size)).mean())
        if difference > (0 if self.workload == "identity" else MAX_GREY_DIFFERENCE):
            raise ValueError(f"the answer is {difference:.2f} grey levels away from the bare graph's")

    def model(self, peer: Peer) -> tuple[str, str]:
        """Contract and name of the model behind a Triton."""
        if peer.script == "serve_pytriton.py":
            return "generator_to_male", "swap"
        model = "generator_to_male" if self.workload == "identity" else "anonymizer"
        return model, model

    def ask_once(self, peer: Peer, port: int) -> bytes:
        """Send one image."""
        if peer.transport in ("http", "tcp"):
            caller = self.caller(peer, port)
            try:
                return bytes(caller(self.image.tobytes()))
            finally:
                caller.close()

        import asyncio

        async def ask() -> bytes:
            caller = TritonCaller(self.connection(peer, port, 1), *self.model(peer))
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
        import grpc

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
        model, name = self.model(peer)
        return drive_triton(self.connection(peer, port, in_flight), model, self.image, in_flight, self.seconds, name)


class _Bare:
    """One caller of the bare graph."""

    def __init__(self, graph: Any, batch_of: Any) -> None:
        self._graph, self._batch_of = graph, batch_of

    def __call__(self, image: bytes) -> bytes:
        answer: bytes = self._graph(self._batch_of([image]))[0]
        return answer

    def close(self) -> None:
        """Nothing to close."""


def run(
    bench: Bench, peers: dict[str, tuple[Peer, Path]], callers: Sequence[int], repeats: int
) -> tuple[dict[str, dict[int, Measured]], Measured, dict[str, str]]:
    """Measure all peers in turn.

    Returns:
        Peer → number of callers → figures; the bare graph's figures; peer → why it was given up.
    """
    measured: dict[str, dict[int, Measured]] = {}
    bare, failed = Measured(), dict[str, str]()
    for repeat in range(repeats):
        order = list(peers)
        random.Random(repeat).shuffle(order)
        bare.add(bench.bare(), 0.0)
        print(f"repeat {repeat + 1}/{repeats}  {'bare graph':38}{bare.images_per_s[-1]:9.1f} images/s", flush=True)
        for key in order:
            peer, python = peers[key]
            if key in failed:
                continue
            port = free_port()
            with Processes(bench.command(peer, python, port), HERE) as processes:
                try:
                    started = time.perf_counter()
                    bench.wait_until_ready(peer, port, processes)
                    ready_s = time.perf_counter() - started
                    rates = []
                    for in_flight in callers:
                        used_s = processes.cpu_seconds()
                        try:
                            load = bench.drive(peer, port, in_flight)
                        except OSError as error:  # it broke under so many callers; fewer, it may have served
                            failed[f"{key} with {in_flight} callers"] = str(error)
                            rates.append(f"{in_flight}: {error}")
                            continue
                        used_s = processes.cpu_seconds() - used_s
                        if not load.latencies_s:  # the slower the peer, the longer the callers wait for one another
                            rates.append(f"{in_flight}: no answer within the time, allow more --seconds")
                            continue
                        measured.setdefault(key, {}).setdefault(in_flight, Measured()).add(load, used_s)
                        rates.append(f"{in_flight}: {load.images_per_s:.1f}")
                except Exception as error:  # one peer that fails stops no other
                    failed[key] = f"{type(error).__name__}: {error}"
                    measured.pop(key, None)
                    print(f"{peer.title} failed and is left out: {failed[key]}\n{processes.last_words()}", flush=True)
                    continue
            shown = "   ".join(rates)
            print(f"repeat {repeat + 1}/{repeats}  {peer.title:38} ready in {ready_s:.1f} s   {shown}", flush=True)
    return measured, bare, failed


def report(
    workload: Workload, medians: dict[str, dict[int, dict[str, float]]], bare: dict[str, float], p99_ms: float
) -> Table:
    """One row per peer, the fastest first."""
    table = Table(title=f"{workload}: images/s with p99 ≤ {p99_ms:g} ms; bare graph {bare['images_per_s']:.1f}/s")
    for heading in ("peer", "images/s", "callers", "p50 ms", "p99 ms", "ms beyond bare", "CPU ms server", "client"):
        table.add_column(heading, justify="left" if heading == "peer" else "right")
    rows = [(best_within(levels, p99_ms), key, levels) for key, levels in medians.items()]
    for best, key, levels in sorted(rows, key=lambda row: -(row[0][1]["images_per_s"] if row[0] else 0)):
        if best is None:
            least = min(levels.values(), key=lambda figures: figures["p99_ms"])
            table.add_row(PEERS[key].title, "none", "", "", f"≥ {least['p99_ms']:.0f}", "", "", "")
            continue
        callers, figures = best
        beyond = 1000 / figures["images_per_s"] - 1000 / bare["images_per_s"]
        table.add_row(
            PEERS[key].title,
            f"{figures['images_per_s']:.1f}",
            str(callers),
            f"{figures['p50_ms']:.1f}",
            f"{figures['p99_ms']:.1f}",
            f"{beyond:+.2f}",
            f"{figures['server_cpu_ms']:.2f}",
            f"{figures['client_cpu_ms']:.2f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return what the last line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), help="these peers alone")
    parser.add_argument("--workload", choices=("identity", "photos", "both"), default="both")
    parser.add_argument("--environments", type=Path, help="folder with one virtual environment per peer")
    parser.add_argument("--install", action="store_true", help="make the environments that are missing, and end")
    parser.add_argument(
        "--photo", type=Path, default=SAMPLE_PHOTO, help="whose largest face is sent (default: the sample)"
    )
    parser.add_argument("--models", type=Path, help="model repository; the demo models by default")
    parser.add_argument("--checkpoints", type=Path, help="folder of its three checkpoints, for PyTorch; the demo's")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement (default 4)")
    parser.add_argument("--repeats", type=int, default=3, help="how often all take turns (default 3)")
    parser.add_argument(
        "--callers", type=int, nargs="+", default=[1, 4, 8, 16], help="callers at once (default 1 4 8 16)"
    )
    parser.add_argument("--p99-ms", type=float, help="the bound (default 50 for identity, 1000 for photos)")
    parser.add_argument("--quick", action="store_true", help="one repeat of one second under 1 and 8 callers")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.seconds, arguments.repeats, arguments.callers = min(arguments.seconds, 1.0), 1, [1, 8]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves the blocks that end the servers
    chosen = {key: PEERS[key] for key in arguments.only}
    if arguments.install:
        if arguments.environments is None:
            parser.error("--install needs --environments")
        install(list(chosen.values()), arguments.environments)
        return {}

    found: dict[str, tuple[Peer, Path]] = {}
    missing = {}
    for key, peer in chosen.items():
        python = find_python(peer, arguments.environments)
        if python is None:
            missing[key] = how_to_install(peer, arguments.environments)
            print(f"{peer.title} is not installed and is left out: {missing[key]}")
        else:
            found[key] = peer, python
    machine = environment()
    summary: dict[str, Any] = {"workloads": {}, "left_out": missing}
    workloads: list[Workload] = ["identity", "photos"] if arguments.workload == "both" else [arguments.workload]
    with tempfile.TemporaryDirectory(prefix="visard-peers-") as folder:
        for workload in workloads:
            if workload == "identity":
                model, repository = identity_models(Path(folder))
                paths = {"graph": model, "repository": repository}
            else:
                repository = arguments.models or demo_models()
                paths = {
                    "graph": repository,
                    "repository": repository,
                    "torch": arguments.checkpoints or _demo_weights(),
                }
            able = {key: pair for key, pair in found.items() if workload in pair[0].workloads}
            seconds = max(arguments.seconds, MIN_SECONDS[workload])
            least_s = arguments.repeats * len(able) * len(arguments.callers) * seconds * 1.1
            print(f"{workload}: {len(able)} peers, {least_s / 60:.1f} minutes and the time that they take to start")
            image = prepare(arguments.photo, Options()).aligned[:1]
            bench = Bench(workload, paths, image, seconds)
            measured, bare, failed = run(bench, able, arguments.callers, arguments.repeats)
            medians = {
                key: {callers: each.medians() for callers, each in levels.items()} for key, levels in measured.items()
            }
            p99_ms = arguments.p99_ms or P99_MS[workload]
            Console(width=120).print(report(workload, medians, bare.medians(), p99_ms))
            best = {key: best_within(levels, p99_ms) for key, levels in medians.items()}
            rates = {key: found_best[1]["images_per_s"] for key, found_best in best.items() if found_best is not None}
            summary["workloads"][workload] = {
                "p99_bound_ms": p99_ms,
                "bare_images_per_s": bare.medians()["images_per_s"],
                "best_images_per_s": rates,
                **ratios(rates),
                "peers": medians,
                "failed": failed,
            }
            _print_goals(workload, ratios(rates))
    print(json.dumps({**summary, "environment": machine}))
    return summary


def _print_goals(workload: Workload, figures: dict[str, float | None]) -> None:
    goals = {
        "grpc_over_best_peer": ("gRPC over the best peer", GOAL_OVER_PEERS),
        "shared_memory_over_best_peer": ("shared memory over the best peer", GOAL_OVER_PEERS),
        "shared_memory_over_grpc": ("shared memory over our own gRPC", GOAL_SHARED_OVER_GRPC),
    }
    for name, (what, goal) in goals.items():
        if (value := figures[name]) is not None:
            verdict = f" (goal {goal:g}: {'met' if value >= goal else 'missed'})" if workload == "identity" else ""
            print(f"{what}: {value:.2f} times{verdict}")


def _demo_weights() -> Path:
    from visard_export.demo import WEIGHTS_FOLDER

    return WEIGHTS_FOLDER


if __name__ == "__main__":
    main()
