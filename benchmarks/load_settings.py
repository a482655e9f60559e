"""Which serving settings keep goodput up when more is offered than a CPU can do? Variants of one repository in turns.

    as it is        the CPU profile as exported: short queues, more classifiers
    other queue     the same with queues of `--queue`
    long queues     as in the static configurations: excess waits until its callers have hung up
    door            long queues, and a model before the ensemble that holds a slot for as long as a face is inside
                    (`load_door.py`): excess is refused before anything is computed

    python benchmarks/load_settings.py                     five rounds on the demo models, about eight minutes
    python benchmarks/load_settings.py --queue 13 --rounds 9

All servers run at once and take turns; an idle one costs nothing. Deadline, load and targets are those of `load.py`.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bare import CORES
from google.protobuf import text_format
from load_figures import Timing, figures
from load_loops import Load, Senders, senders
from load_report import console
from load_roads import FaceRoad
from load_run import DEADLINE, PATIENCE_S, TARGET_LOAD, TARGET_OVERLOAD
from rich.table import Table
from tritonclient.grpc import model_config_pb2

from visard import Connection
from visard.embedded import SAMPLE_PHOTO, aligned_faces, demo_models
from visard_export.repository import static_repository
from visard_server.triton import TritonServer

GENERATORS = ("generator_to_male", "generator_to_female")
FIGURES = ("capacity_per_s", "p99_over_unloaded", "goodput_over_capacity", "refused_p50_ms")


def other_queue(repository: Path, queue: int) -> None:
    for model in ("gender_router", *GENERATORS):
        with edited(repository / model) as config:
            config.dynamic_batching.default_queue_policy.max_queue_size = queue


def long_queues(repository: Path, _: int = 0) -> None:
    for model in ("gender_classifier", "gender_router", *GENERATORS):
        static = read(static_repository() / model)
        with edited(repository / model) as config:
            policy = static.dynamic_batching.default_queue_policy
            config.dynamic_batching.default_queue_policy.max_queue_size = policy.max_queue_size
            config.instance_group[0].count = CORES
    with edited(repository / "gender_router") as config:
        del config.dynamic_batching.preferred_batch_size[:]


def door(repository: Path, queue: int) -> None:
    long_queues(repository)
    outer = repository / "anonymizer"
    shutil.copytree(outer, repository / "inside")
    with edited(repository / "inside") as config:
        config.name = "inside"
    with edited(outer) as config:
        policy = read(repository / "gender_router").dynamic_batching.default_queue_policy
        config.ClearField("platform")
        config.ClearField("ensemble_scheduling")
        config.backend = "python"
        config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=2 * CORES)
        config.dynamic_batching.default_queue_policy.CopyFrom(policy)
        config.dynamic_batching.default_queue_policy.max_queue_size = queue
        config.dynamic_batching.preferred_batch_size[:] = [1]
    shutil.copy(Path(__file__).with_name("load_door.py"), outer / "1" / "model.py")


VARIANTS: dict[str, Callable[[Path, int], None]] = {
    "as it is": lambda *_: None,
    "other queue": other_queue,
    "long queues": long_queues,
    "door": door,
}


def read(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


@contextmanager
def edited(model: Path) -> Iterator[Any]:
    """Hold a model's configuration, and write it back."""
    config = read(model)
    yield config
    (model / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")


def measure(server: TritonServer, sending: Senders, timing: Timing, seed: int) -> dict[str, float]:
    """One variant, once."""
    face = aligned_faces(SAMPLE_PHOTO)[:1]

    def put(load: Load, deadline_s: float) -> Any:
        road = FaceRoad(name="", connection=Connection(url=server.grpc_url, deadline_s=deadline_s), faces=face)
        return figures([sending.run(road, load, timing, seed)], deadline_s)

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
    parser.add_argument("--queue", type=int, default=8 * CORES, help="places of the other queues (default: 8 per core)")
    parser.add_argument("--rounds", type=int, default=5, help="how often all take turns (default 5)")
    parser.add_argument("--window", type=float, default=1.5, help="seconds of each of the three windows (default 1.5)")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants (default: all)")
    arguments = parser.parse_args()

    out = console()
    timing = Timing(warm_up_s=arguments.window / 2, window_s=arguments.window)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sending = stack.enter_context(senders(1))
        servers = {}
        for index, name in enumerate(arguments.only):
            repository = scratch / str(index)
            shutil.copytree(arguments.models or demo_models(), repository)
            VARIANTS[name](repository, arguments.queue)
            servers[name] = stack.enter_context(TritonServer(repository))
        for turn in range(arguments.rounds):
            for name, server in servers.items():
                found[name].append(measure(server, sending, timing, turn))
                values = "   ".join(f"{key} {value:.2f}" for key, value in found[name][-1].items())
                out.print(f"round {turn + 1}, {name}: {values}")
    medians = {
        name: {key: round(statistics.median(each[key] for each in rounds), 3) for key in FIGURES}
        for name, rounds in found.items()
    }
    table = Table(
        "settings", "capacity/s", "p99 at 70 % / unloaded", "goodput at 150 % / capacity", "refused after, ms"
    )
    for name, middle in medians.items():
        table.add_row(name, *(f"{middle[key]:.2f}" for key in FIGURES))
    out.print(table)
    print(json.dumps({"queue": arguments.queue, "rounds": arguments.rounds, "settings": medians}))


if __name__ == "__main__":
    main()
