"""How much of a GPU's rate comes through the real Triton, and what it costs in CPU, without a GPU.

    python -m visard_benchmarks.simulated_gpu                    all shapes, rates and transports: twenty minutes
        --rates 800 --shapes routed client-first --transports grpc --repeats 5

The generators (or the whole anonymizer) are a model that takes a GPU's time and none of the CPU's: all its instances
share one device, which does 16 faces in 16 / rate seconds. A batch of fewer takes as long, a larger one in proportion.
The device is a file that all of them map: whoever has its lock (`flock`) takes the next free time, lets go, and answers
no sooner than that time is over. So two instances keep it busy and never double its rate. Configurations are those of
`visard export --profile gpu`; directions are mixed at random.

    fused          `anonymizer` is one model
    routed         `anonymizer` is an ensemble with the Python router, which callers without the SDK go through
    client-first   as it is exported: the repository also has a classifier for faces of 224 x 224, and the client asks
                   it and sends the face to the native ensemble of the direction

Each answer is checked: its persona, its direction, its gender; and one of 16 to the last byte. Faces are sent in a
closed loop, which finds the rate that comes through, then in an open one at 90 % of that, for the latency. What is
"models" in the tables are the Python processes that stand for the GPU's models: their copies of pixels are the price
of a Python backend, and a native one has no such process. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.table import Table
from tritonclient.grpc import model_config_pb2

from visard import AsyncClient, Connection, Swap
from visard_benchmarks.environment import environment
from visard_benchmarks.load.figures import Timing, achieved, figures
from visard_benchmarks.load.loops import Load, Senders, senders
from visard_benchmarks.load.report import console
from visard_benchmarks.load.run import GRPC, PATIENCE_S, SHARED_MEMORY
from visard_benchmarks.load.transports import FaceTransport, RequestFailed, Send
from visard_benchmarks.rates import CORES
from visard_export.repository import EXPORTED_MODELS, FUSED_MODEL, ROUTER, SMALL_CLASSIFIER, assemble
from visard_server.triton import TritonServer
from visard_testing.processes import cpu_seconds
from visard_testing.tiny_models import read_config, write_config

SHAPES = ("fused", "routed", "client-first")
RATES = (150.0, 800.0, 5000.0)  # faces/s: the published generators on one GPU, twice that much, the demo models
GOAL_CORES, GOAL_BUSY = 8, 0.7  # the server's cores, and how much of them a full-rate GPU may take
OPEN_SHARE = 0.9  # of the closed loop's rate
CHECKED_WHOLE = 16  # of so many answers one is compared to the last byte
SERVER_PARTS = ("triton", "router", "models")
CLIENT_PARTS = ("event_loop", "other_threads")
PARTS = (*SERVER_PARTS, *CLIENT_PARTS)
_FACES = 64

Row = dict[str, Any]

# Female faces are dark and male ones bright, so one pixel tells. A swap is the negative with eight bytes written over
# its end: the number of the persona, and 0 (to male) or 1 (to female).
MODEL = """
import fcntl, time
from pathlib import Path
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]
        path = Path(args["model_repository"]).parents[1] / "device"
        self.lock = path.open("rb")
        self.device = np.memmap(path, np.float64, "r+")  # see `Site`

    def execute(self, requests):
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        if self.name.startswith("gender_classifier"):
            return [answer(gender=gender(image)) for image in images]
        end = self.occupy(sum(map(len, images)))
        answers = [self.swap(*pair) for pair in zip(requests, images)]
        time.sleep(max(0.0, end - time.monotonic()))
        return answers

    def occupy(self, faces):
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        rate, free, busy, batches, done = self.device
        seconds = max(16, faces) / rate
        end = max(free, time.monotonic()) + seconds
        self.device[1:] = end, busy + seconds, batches + 1, done + faces
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        return end

    def swap(self, request, image):
        persona = pb_utils.get_input_tensor_by_name(request, "persona").as_numpy()
        before = gender(image)
        direction = before[:, 1:] if self.name == "anonymizer" else np.full_like(persona, self.name.endswith("female"))
        swapped = np.invert(image)
        stamp = np.concatenate([persona, direction.astype(np.int32)], axis=1)
        swapped.reshape(len(image), -1)[:, -8:] = stamp.view(np.uint8)
        if self.name == "anonymizer":
            return answer(swapped=swapped, gender=before, swapped_gender=gender(swapped))
        return answer(swapped=swapped)


def gender(image):
    male = image[:, 0, 0, :1] >= 128
    return np.concatenate([~male, male], axis=1).astype(np.float32)


def answer(**tensors):
    return pb_utils.InferenceResponse([pb_utils.Tensor(*tensor) for tensor in tensors.items()])
"""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark. Returns what the last line says."""
    options = parse_arguments(arguments)
    out, where = console(), environment()
    timing = Timing(warm_up_s=options.window / 2, window_s=options.window)
    found: dict[tuple[float, str, str], list[Any]] = defaultdict(list)
    with ExitStack() as stack:
        enter = stack.enter_context
        sites = {shape: enter(simulated(shape, options.instances)) for shape in options.shapes}
        sending = enter(senders(options.senders))
        for turn in range(options.repeats):
            cells = [(r, s, t) for r in options.rates for s in options.shapes for t in options.transports]
            for rate, shape, transport in cells[:: 1 if turn % 2 == 0 else -1]:  # nobody always comes after the same
                one = measure(sites[shape], sending, rate, transport, options.in_flight, timing, turn)
                found[rate, shape, transport].append(one)
                out.print(
                    f"turn {turn + 1}: {rate:g}/s, {shape}, {transport}: {one[0]['served_per_s']:.0f}/s, server "
                    f"{one[0]['server_ms']:.2f} ms a face"
                )
    rows = [
        summary(rate, shape, transport, found[rate, shape, transport])
        for rate in options.rates
        for shape in options.shapes
        for transport in options.transports
    ]
    for table in tables(rows):
        out.print(table)
    for rate in options.rates:
        out.print(
            f"goal at {rate:g}/s: {GOAL_CORES} cores x {GOAL_BUSY} / {rate:g} = {goal_ms(rate):.2f} ms of server CPU a "
            "face"
        )
    out.print(f"client and server share {CORES} cores: where these are what binds, look at the CPU a face")
    report = {"rows": rows, "environment": where}
    print(json.dumps(report))
    return report


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rates", nargs="+", type=float, default=RATES, help="faces/s that the device does (default 150 800 5000)")
    add("--shapes", nargs="+", choices=SHAPES, default=SHAPES, help="of the repository (default: all)")
    add("--transports", nargs="+", choices=(GRPC, SHARED_MEMORY), default=(GRPC, SHARED_MEMORY), help="default: both")
    add("--instances", type=int, help="of each model that stands for the GPU's (default: as configured)")
    add("--in-flight", type=int, default=128, help="faces under way in the closed loop (default 128)")
    add("--senders", type=int, default=1, help="processes that send (default 1)")
    add("--window", type=float, default=2.0, help="seconds of each of three windows (default 2)")
    add("--repeats", type=int, default=3, help="turns (default 3)")
    return parser.parse_args(arguments)


def goal_ms(rate: float) -> float:
    """Milliseconds of CPU that the server may take for a face at a rate."""
    return GOAL_CORES * GOAL_BUSY / rate * 1000


@dataclass(frozen=True, kw_only=True)
class Site:
    """A server whose models are simulated, and its device: rate, free from, busy seconds, batches, faces."""

    server: TritonServer
    device: NDArray[np.float64]


@contextmanager
def simulated(shape: str, instances: int | None) -> Iterator[Site]:
    """Serve a repository of one of `SHAPES` as it is exported for a GPU, with simulated models."""
    extra = {"fused": [FUSED_MODEL], "routed": [], "client-first": [SMALL_CLASSIFIER]}[shape]
    with tempfile.TemporaryDirectory(prefix="visard-simulated-") as name:
        folder = Path(name)
        device = np.memmap(folder / "device", np.float64, "w+", shape=(5,))
        for model in (*EXPORTED_MODELS, *extra):
            (folder / "versions" / model).mkdir(parents=True)
            (folder / "versions" / model / "model.py").write_text(MODEL, encoding="utf-8")
        assemble(folder / "versions", folder / "models", profile="gpu")
        for path in (folder / "models").iterdir():
            config = read_config(path)
            if config.backend == "onnxruntime":
                config.backend = "python"
                config.ClearField("optimization")
                config.ClearField("model_warmup")
                for group in config.instance_group:
                    group.count = instances or group.count
            for group in config.instance_group:
                group.kind = model_config_pb2.ModelInstanceGroup.KIND_CPU
            write_config(path, config)
        with TritonServer(folder / "models", shared_memory=True) as server:
            yield Site(server=server, device=device)


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckedFaces(FaceTransport):
    """Faces over one transport, whose answers are compared with what the simulated models make of them."""

    @asynccontextmanager
    async def opened(self, *, patient: bool) -> AsyncIterator[Send]:
        """Connect."""
        connection = self.connection if patient else replace(self.connection, max_attempts=1)
        async with AsyncClient(connection, workers=1) as client:

            async def send(number: int) -> bool:
                face = self.faces[number % len(self.faces)]
                (swap,) = await client.swap(face, personas=[number])
                if not as_expected(swap, face, number, whole=number % CHECKED_WHOLE == 0):
                    raise RequestFailed("OtherBytes")
                return True

            yield send


def make_faces(seed: int = 0) -> NDArray[np.uint8]:
    """Make noise, the dark and the bright half of the levels mixed: (64, 512, 512, 3) uint8."""
    rng = np.random.default_rng(seed)
    male = rng.permutation(np.arange(_FACES) % 2 == 1)
    noise = rng.integers(0, 128, (_FACES, 512, 512, 3), np.uint8)
    return noise + 128 * male.astype(np.uint8)[:, None, None, None]


def as_expected(swap: Swap, face: NDArray[np.uint8], persona: int, *, whole: bool) -> bool:
    """Whether an answer is that of this face and this persona."""
    male = bool(face[0, 0, 0] >= 128)
    stamp = np.array([persona, male], np.int32).view(np.uint8)
    right = np.array_equal(swap.swapped.reshape(-1)[-8:], stamp) and swap.swapped_gender.argmax() == (not male)
    right = (
        right and swap.swapped[0, 0, 0] == 255 - face[0, 0, 0] and (swap.gender is None or swap.gender[int(male)] == 1)
    )
    return right and (not whole or np.array_equal(swap.swapped.reshape(-1)[:-8], ~face.reshape(-1)[:-8]))


def measure(
    site: Site, sending: Senders, rate: float, transport: str, in_flight: int, timing: Timing, turn: int
) -> tuple[dict[str, float], Counter[str]]:
    """Put both loops on one server.

    Returns:
        Figures: `offered_per_s`, latencies and `lag_ms` are of the open loop, all others of the closed one; CPU is in
        milliseconds a face; `device_busy` is the share of the time from the connection to the last answer. And how
        many requests of both loops ended how.
    """
    connection = Connection(
        url=site.server.grpc_url,
        deadline_s=PATIENCE_S,
        max_in_flight=1024,
        shared_memory=transport == SHARED_MEMORY,
    )
    faces = CheckedFaces(name=transport, connection=connection, faces=make_faces())
    site.device[:] = rate, 0.0, 0.0, 0.0, 0.0
    cpu, started = cpu_by_part(site, sending), time.monotonic()
    closed = sending.run(faces, Load(callers=in_flight), timing, turn)
    elapsed, after = time.monotonic() - started, cpu_by_part(site, sending)
    busy, batches, swapped = site.device[2:].tolist()
    served = achieved(closed)
    opened = sending.run(faces, Load(rate_per_s=max(1.0, OPEN_SHARE * served)), timing, turn)
    late = figures([opened], PATIENCE_S)
    spent = {f"{part}_ms": 1000 * (after[part] - cpu[part]) / swapped for part in PARTS}
    return {
        "offered_per_s": late.offered_per_s,
        "p50_ms": late.latency_ms.get("p50", math.nan),
        "p99_ms": late.latency_ms.get("p99", math.nan),
        "lag_ms": late.lag_ms,
        "served_per_s": served,
        "share": served / rate,
        "device_busy": busy / elapsed,
        "batch": swapped / batches,
        **spent,
        "server_ms": sum(spent[f"{part}_ms"] for part in SERVER_PARTS),
        "client_ms": sum(spent[f"{part}_ms"] for part in CLIENT_PARTS),
    }, Counter(each.outcome for turn_ in (closed, opened) for each in turn_.samples)


def cpu_by_part(site: Site, sending: Senders) -> dict[str, float]:
    """CPU time so far of every process of a server, and of the clients, their first threads (the event loops) apart."""
    spent: dict[str, float] = defaultdict(float)
    here = psutil.Process()
    for process in here.children(recursive=True):
        command = process.cmdline()
        seconds = cpu_seconds(process)
        if any(str(site.server.repository) in word for word in command):
            name = Path(command[0]).name
            model = next((word for word in command if word.endswith("model.py")), "")
            if name == "tritonserver":
                spent["triton"] += seconds
            elif model:
                spent["router" if f"/{ROUTER}/" in model else "models"] += seconds
        elif "spawn_main" in " ".join(command) and sending.count > 1:
            _add_client(spent, process)
    if sending.count == 1:
        _add_client(spent, here)
    return spent


def _add_client(spent: dict[str, float], process: psutil.Process) -> None:
    loop = next(thread.user_time + thread.system_time for thread in process.threads() if thread.id == process.pid)
    spent["event_loop"] += loop
    spent["other_threads"] += cpu_seconds(process) - loop


def summary(rate: float, shape: str, transport: str, turns: list[tuple[dict[str, float], Counter[str]]]) -> Row:
    """Medians of the turns, and what they mean for a machine."""
    row = {name: statistics.median(figures_[name] for figures_, _ in turns) for name in turns[0][0]}
    row |= {
        "goal_server_ms": goal_ms(rate),
        "server_cores": rate * row["server_ms"] / 1000,
        "client_cores": rate * row["client_ms"] / 1000,
        "event_loop_per_s": 1000 / max(row["event_loop_ms"], 1e-9),
    }
    outcomes = dict(sum((outcomes for _, outcomes in turns), Counter[str]()))
    by_turn = [round(figures_["served_per_s"], 1) for figures_, _ in turns]
    rounded = {name: round(value, 3) for name, value in row.items()}
    named = {"rate": rate, "shape": shape, "transport": transport}
    return {**named, **rounded, "served_by_turn": by_turn, "outcomes": outcomes}


def tables(rows: list[Row]) -> Iterator[Table]:
    """What came through; what it cost; what a GPU at its full rate wants."""
    heads = {
        "What came through": {
            "served/s": "served_per_s", "share (goal 0.95)": "share", "batch": "batch", "device busy": "device_busy",
            "offered/s": "offered_per_s", "p50 ms": "p50_ms", "p99 ms": "p99_ms", "lag ms": "lag_ms",
        },
        "CPU, ms a face": {
            "server": "server_ms", "goal": "goal_server_ms", "Triton": "triton_ms", "router": "router_ms",
            "models": "models_ms", "client": "client_ms", "of it event loop": "event_loop_ms",
        },
        "At the device's full rate": {
            "server cores": "server_cores", "client cores": "client_cores",
            "faces/s of one event loop": "event_loop_per_s",
        },
    }  # fmt: skip
    for title, columns in heads.items():
        table = Table("rate", "shape", "transport", *columns, title=title)
        for row in rows:
            table.add_row(
                f"{row['rate']:g}", row["shape"], row["transport"], *(f"{row[name]:.4g}" for name in columns.values())
            )
        yield table


if __name__ == "__main__":
    main()
