"""How long may the queues before the models be on a CPU? One repository with other queue lengths, in turns.

A short queue refuses bursts that could have been served; a long one keeps faces until their callers have hung up, and
computes them all the same. The length is that of the first queues of all ensembles, the router's and the generators'.

    python benchmarks/load_queues.py                       4, 8, 16 and 256 (the length for a GPU): about eight minutes
    python benchmarks/load_queues.py --queues 8 --rounds 9

All servers run at once and take turns; an idle one costs nothing. Deadline, load and targets are those of `load.py`.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bare import CORES
from environment import environment
from google.protobuf import text_format
from load_figures import Timing, figures
from load_loops import Load, Senders, senders
from load_report import console
from load_run import DEADLINE, PATIENCE_S, TARGET_LOAD, TARGET_OVERLOAD
from load_transports import FaceTransport
from numpy.typing import NDArray
from rich.table import Table
from tritonclient.grpc import model_config_pb2

from visard import Connection
from visard_export.repository import AFTER_GENERATORS
from visard_server.embedded import SAMPLE_PHOTO, aligned_faces, demo_models
from visard_server.triton import TritonServer

FIGURES = ("capacity_per_s", "p99_over_unloaded", "goodput_over_capacity", "refused_p50_ms")


def set_queues(repository: Path, length: int) -> None:
    for path in repository.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        if not config.HasField("dynamic_batching") or path.parent.name in AFTER_GENERATORS:
            continue
        config.dynamic_batching.default_queue_policy.max_queue_size = length
        path.write_text(text_format.MessageToString(config), encoding="utf-8")


def measure(
    server: TritonServer, face: NDArray[np.uint8], sending: Senders, timing: Timing, seed: int
) -> dict[str, float]:
    """One length, once; `face` is (1, 512, 512, 3) uint8."""

    def put(load: Load, deadline_s: float) -> Any:
        transport = FaceTransport(
            name="", connection=Connection(url=server.grpc_url, deadline_s=deadline_s), faces=face
        )
        return figures([sending.run(transport, load, timing, seed)], deadline_s)

    unloaded_ms = put(Load(callers=1), PATIENCE_S).latency_ms["p50"]
    deadline_s = DEADLINE * unloaded_ms / 1000
    capacity = put(Load(callers=2 * CORES), PATIENCE_S).achieved_per_s
    usual = put(Load(rate_per_s=TARGET_LOAD * capacity), deadline_s)
    over = put(Load(rate_per_s=TARGET_OVERLOAD * capacity), deadline_s)
    return {
        "capacity_per_s": capacity,
        "p99_over_unloaded": usual.latency_ms.get("p99", float("inf")) / unloaded_ms,
        "goodput_over_capacity": over.good_per_s / capacity,
        "refused_p50_ms": over.refused_ms.get("p50", 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="model repository for a CPU; the demo models by default")
    parser.add_argument(
        "--queues", type=int, nargs="+", default=[4, 8, 16, 256], help="places in each queue (default 4 8 16 256)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often all take turns (default 5)")
    parser.add_argument("--window", type=float, default=1.5, help="seconds of each of the three windows (default 1.5)")
    arguments = parser.parse_args()

    out = console()
    where = environment()
    timing = Timing(warm_up_s=arguments.window / 2, window_s=arguments.window)
    found: dict[int, list[dict[str, float]]] = {length: [] for length in arguments.queues}
    models = arguments.models or demo_models()
    face = aligned_faces(SAMPLE_PHOTO)[:1]
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sending = stack.enter_context(senders(1))
        servers = {}
        for length in arguments.queues:
            repository = scratch / str(length)
            shutil.copytree(models, repository)
            set_queues(repository, length)
            servers[length] = stack.enter_context(TritonServer(repository))
        for turn in range(arguments.rounds):
            for length, server in servers.items():
                found[length].append(measure(server, face, sending, timing, turn))
                values = "   ".join(f"{key} {value:.2f}" for key, value in found[length][-1].items())
                out.print(f"round {turn + 1}, queues of {length}: {values}")
    medians = {
        length: {key: round(statistics.median(each[key] for each in rounds), 3) for key in FIGURES}
        for length, rounds in found.items()
    }
    table = Table(
        "queues of", "capacity/s", "p99 at 70 % / unloaded", "goodput at 150 % / capacity", "refused after, ms"
    )
    for length, middle in medians.items():
        table.add_row(str(length), *(f"{middle[key]:.2f}" for key in FIGURES))
    out.print(table)
    print(json.dumps({"rounds": arguments.rounds, "queues": medians, "environment": where}))


if __name__ == "__main__":
    main()
