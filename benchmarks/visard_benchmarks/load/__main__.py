"""Loads the models over every transport and reports how many answers came back, how fast, how good, and which errors.

    python -m visard_benchmarks.load              all of it, on the embedded server with the demo models: half an hour
        --quick                                   fewer loads and short windows: two to four minutes
        --models models                           your own models
        --server gpu:8001 --metrics http://gpu:8002/metrics --senders 4
                                                  a server that runs elsewhere, loaded by four processes
        --transports grpc --callers 1 4 16 --loads 0.5 0.7 0.9 1 1.2 1.5 2
                                                  one transport, more closely

Each turn (`--repeats`, three) goes through all of it, so that a slow minute of the machine slows all of it, and ratios
are taken within a turn:

    bare            the ceiling on a CPU: the same graphs with onnxruntime in one process, the faster of two layouts
    closed loop     `--callers` under way on each transport, each sending when it is answered: finds the capacity
    open loop       Poisson arrivals at `--loads` (shares of the turn's capacity), sent whether or not earlier ones are
                    back. Latency counts from when a request was due, so that a stall is not hidden. Nothing is sent
                    twice. Good is what came back flipped and within the deadline

A load has settled where its three windows agree within 10 %; one that has not is run again once, and said. Client,
server, gateway and load share this machine unless `--server` says otherwise. Figures from before anything else runs:
cold start, first request.

Results go to a folder of their own below `--output`: report.json (with machine, versions, commit and the models'
digests), samples.csv.gz (every request), latency.png. No photo and no file name is in any of them. The last line
printed is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from visard import Client, Connection
from visard_benchmarks.environment import environment, model_digests
from visard_benchmarks.load.figures import Timing
from visard_benchmarks.load.loops import senders
from visard_benchmarks.load.report import (
    console,
    load_name,
    loads_table,
    outcomes_table,
    plot_latency,
    server_table,
    write_samples,
)
from visard_benchmarks.load.run import (
    PATIENCE_S,
    TARGET_LOAD,
    TARGET_OVERLOAD,
    TRANSPORTS,
    Plan,
    Run,
    Target,
    open_transports,
)
from visard_benchmarks.load.summary import headline, make_report, shown_times
from visard_benchmarks.load.transports import RequestFailed, Transport
from visard_benchmarks.rates import CORES
from visard_errors import VisardError
from visard_server.embedded import SAMPLE_PHOTO, aligned_faces, demo_models
from visard_server.triton import TritonServer


def main() -> None:
    arguments = parse_arguments()
    plan = make_plan(arguments)
    out = console()
    where = environment()
    with ExitStack() as stack:
        repository = None if arguments.server else arguments.models or demo_models()
        cold = [cold_start(repository) for _ in range(plan.cold_starts)] if repository else []
        if repository is None:
            target = Target(grpc_url=arguments.server, metrics_url=arguments.metrics)
        else:
            server = stack.enter_context(TritonServer(repository, shared_memory=True))
            target = Target(grpc_url=server.grpc_url, metrics_url=server.metrics_url, embedded=server)
        face = aligned_faces(SAMPLE_PHOTO)[:1]
        with Client(Connection(url=target.grpc_url, deadline_s=PATIENCE_S)) as client:
            provenance = client.provenance()
        transports = stack.enter_context(open_transports(plan.transports, target, face, out.print))
        transports = [each for each in transports if asyncio.run(is_open(each, out.print))]
        run = Run(plan, target, stack.enter_context(senders(arguments.senders)), out.print)
        for turn in range(plan.repeats):
            out.rule(f"turn {turn + 1} of {plan.repeats}")
            run.one_turn(transports, face, turn)
    report = make_report(run, transports)
    report |= {"cold_starts": cold, "arguments": sys.argv[1:]}
    report |= {"environment": {**where, "models": model_digests(provenance)}}
    folder = arguments.output / f"{time.strftime('%Y%m%dT%H%M%S')}-{where['commit'][:8] or 'no-commit'}"
    show(out, run, report)
    write(folder, run, report)
    out.print(f"\nwritten to {folder}")
    print(json.dumps(headline(report)))
    sys.exit(1 if arguments.check and not all(each["met"] for each in report["targets"].values()) else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("what is loaded").add_argument
    add("--models", type=Path, help="model repository for the embedded server; the demo models without it")
    add("--server", help="host:port of a server that runs already, instead of an embedded one")
    add("--metrics", help="with --server: URL of its Prometheus page, for the breakdown inside it")
    add("--transports", nargs="+", choices=TRANSPORTS, default=TRANSPORTS, help="ways to the models (default: all)")
    add = parser.add_argument_group("loads").add_argument
    add("--callers", nargs="+", type=int, help="closed loop: how many under way (default 1 2 4 8 16)")
    shares = "open loop: offered rate over capacity (default 0.5 0.7 0.9 1.2 1.5; all but grpc take 0.7 and 1.5 alone)"
    add("--loads", nargs="+", type=float, help=shares)
    add("--in-flight", type=int, default=2 * CORES, help="under way for served_over_bare (default: 2 per core)")
    add("--deadline-ms", type=float, help="a good answer comes within this (default: 10 times the unloaded latency)")
    add("--senders", type=int, default=1, help="processes that send; see `lag_ms` in the report (default 1)")
    add = parser.add_argument_group("length").add_argument
    add("--quick", action="store_true", help="two minutes: fewer loads, short windows")
    add("--window", type=float, help="seconds of each of the three windows (default 2; open loop: twice that)")
    add("--repeats", type=int, default=3, help="turns; below three nothing is known of the spread (default 3)")
    add("--seed", type=int, default=0, help="of the arrivals (default 0)")
    add = parser.add_argument_group("results").add_argument
    add("--output", type=Path, default=Path("out/bench"), help="folder for the results (default out/bench)")
    add("--check", action="store_true", help="exit with 1 where a target is missed")
    arguments = parser.parse_args()
    if arguments.server and arguments.models:
        parser.error("--models is for the embedded server: leave it or --server out")
    return arguments


def make_plan(arguments: argparse.Namespace) -> Plan:
    """Fill in what was not given."""
    quick = arguments.quick
    window_s = arguments.window or (0.5 if quick else 2.0)
    callers = arguments.callers or ((1, arguments.in_flight) if quick else (1, 2, 4, 8, 16))
    return Plan(
        transports=tuple(arguments.transports),
        callers=tuple(sorted({1, arguments.in_flight, *callers})),
        loads=tuple(arguments.loads or ()) or ((TARGET_LOAD, TARGET_OVERLOAD) if quick else (0.5, 0.7, 0.9, 1.2, 1.5)),
        in_flight=arguments.in_flight,
        closed=Timing(warm_up_s=window_s / 2, window_s=window_s),
        opened=Timing(warm_up_s=window_s, window_s=2 * window_s),
        repeats=arguments.repeats,
        tries=1 if quick else 2,
        cold_starts=1 if quick else 3,
        seed=arguments.seed,
        deadline_s=arguments.deadline_ms and arguments.deadline_ms / 1000,
    )


def cold_start(repository: Path) -> dict[str, float]:
    """Start a server and send it two faces; seconds until it is ready, then for the first face and for the second."""
    face = aligned_faces(SAMPLE_PHOTO)[:1]
    start = time.perf_counter()
    moments = []
    with TritonServer(repository) as server:
        moments.append(time.perf_counter())
        with Client(server.grpc_url) as client:
            for _ in range(2):
                client.swap(face)
                moments.append(time.perf_counter())
    ready, first, second = np.diff([start, *moments])
    return {"ready_s": round(ready, 3), "first_face_s": round(first, 3), "second_face_s": round(second, 3)}


async def is_open(transport: Transport, say: Callable[[str], None]) -> bool:
    """Whether one request comes through; where it does not, the reason is said."""
    try:
        async with transport.opened(patient=True) as send:
            await send(0)
    except (VisardError, RequestFailed) as error:
        say(f"{transport.name} is left out: {error}")
        return False
    return True


def show(out: Console, run: Run, report: dict[str, Any]) -> None:
    """Print the tables."""
    results = run.results()
    out.print()
    out.print(loads_table(results, run.deadlines_s))
    if any(set(figures.outcomes) != {"flipped"} for figures in results.values()):
        out.print(outcomes_table(results))
    for (transport, kind, amount), times in shown_times(run).items():
        out.print(server_table(f"{transport}, {kind} loop at {amount:g}", times))
    for start in report["cold_starts"]:
        out.print(
            "cold start: " + ", ".join(f"{name.removesuffix('_s')} {value:.2f} s" for name, value in start.items())
        )
    if run.bare:
        shares = ", ".join(f"{transport} {value:.1%}" for transport, value in report["over_bare"].items())
        out.print(f"bare {report['bare_per_s']:.1f}/s; of it, with {run.plan.in_flight} under way: {shares}")
    for (transport, kind, amount), figures in results.items():
        if figures.lag_ms > 0.1 * figures.latency_ms.get("p99", 0) > 0:
            out.print(
                f"{transport}, {load_name(kind, amount)}: sent up to {figures.lag_ms:.0f} ms late (p99); add --senders"
            )
    for name, target in report["targets"].items():
        sign = "met   " if target["met"] else "MISSED"
        ideal = f"; {target['ideal_queue']:g} in a queue without any loss" if "ideal_queue" in target else ""
        out.print(f"{sign}  {name.replace('_', ' ')}: {target['value']:g} (target {target['target']:g}{ideal})")


def write(folder: Path, run: Run, report: dict[str, Any]) -> None:
    """Write the results into a new folder."""
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_samples(folder / "samples.csv.gz", run.turns)
    plot_latency(folder / "latency.png", run.results())


if __name__ == "__main__":
    main()
