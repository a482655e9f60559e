"""The result of one run of the load benchmark: report, targets, and the few figures by which runs are compared."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from visard_benchmarks.load.figures import Figures
from visard_benchmarks.load.report import CLOSED, OPEN, Key
from visard_benchmarks.load.run import GRPC, SHARED_MEMORY, TARGET_LOAD, TARGET_OVERLOAD, Run
from visard_benchmarks.load.server import ModelTimes, times_between
from visard_benchmarks.load.transports import Transport

TARGET_P99 = 4.0  # times the unloaded latency, at TARGET_LOAD
TARGET_GOODPUT = 0.9  # of capacity, at TARGET_OVERLOAD
TARGET_BARE = 0.95
TARGET_SHARED_MEMORY = 0.98


def make_report(run: Run, transports: list[Transport]) -> dict[str, Any]:
    """Everything that was found, ready for JSON."""
    results = run.results()
    served = results.get((GRPC, CLOSED, float(run.plan.in_flight)))
    return {
        "targets": targets(run, results),
        "capacity_per_s": {
            transport.name: round(median_of(run.capacities(transport.name)), 2) for transport in transports
        },
        "bare_per_s": round(median_of(run.bare), 2),
        "over_bare": {
            transport.name: round(median_of(run.over_bare(transport.name)), 4)
            for transport in transports
            if run.bare and transport.name in (GRPC, SHARED_MEMORY, "gateway")  # the others do more than serve
        },
        "in_flight": run.plan.in_flight,
        "served": None if served is None else served.to_dict(),
        "deadlines_ms": {transport: round(deadline * 1000, 1) for transport, deadline in run.deadlines_s.items()},
        "loads": [
            {"transport": transport, "kind": kind, "amount": amount, **figures.to_dict()}
            for (transport, kind, amount), figures in results.items()
        ],
        "server": [
            {"transport": transport, "kind": kind, "amount": amount, "models": [each.to_dict() for each in times]}
            for (transport, kind, amount), times in server_times(run).items()
            if times
        ],
        "repeats": run.plan.repeats,
    }


def targets(run: Run, results: dict[Key, Figures]) -> dict[str, dict[str, Any]]:
    """What is promised, what was found, and whether that is enough; targets whose loads were not run are left out."""
    found: dict[str, dict[str, Any]] = {}
    unloaded, loaded = results.get((GRPC, CLOSED, 1.0)), results.get((GRPC, OPEN, TARGET_LOAD))
    if unloaded and loaded and unloaded.latency_ms and loaded.latency_ms:
        ratio = loaded.latency_ms["p99"] / unloaded.latency_ms["p50"]
        enough = loaded.answered_share >= 0.99  # a 99th percentile of those who survived says nothing
        found["p99_at_70_percent_over_unloaded"] = {
            "value": round(ratio, 3),
            "target": TARGET_P99,
            "met": ratio <= TARGET_P99 and enough,
        }
        if run.bare:  # on a CPU, whose servers are its cores
            ideal = run.ideal_p99_s(GRPC, TARGET_LOAD) * 1000 / unloaded.latency_ms["p50"]
            found["p99_at_70_percent_over_unloaded"]["ideal_queue"] = round(ideal, 3)
    for name, shares, wanted in (
        ("goodput_at_150_percent_over_capacity", run.goodput_over_capacity(GRPC, TARGET_OVERLOAD), TARGET_GOODPUT),
        ("served_over_bare", run.over_bare(GRPC), TARGET_BARE),
        ("shared_memory_over_bare", run.over_bare(SHARED_MEMORY), TARGET_SHARED_MEMORY),
    ):
        if shares:
            share = median_of(shares)
            found[name] = {"value": round(share, 3), "target": wanted, "met": share >= wanted}
    return found


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """The figures by which runs are compared; latency is that of the open loop at 70 % of capacity."""
    loads = {(load["transport"], load["kind"], load["amount"]): load for load in report["loads"]}
    loaded = loads.get((GRPC, OPEN, TARGET_LOAD)) or loads.get((GRPC, CLOSED, float(report["in_flight"]))) or {}
    environment_ = {name: value for name, value in report["environment"].items() if name not in ("versions", "models")}
    return {
        "images_per_second": (report["served"] or {}).get("achieved_per_s"),
        "p99_ms": loaded.get("latency_ms", {}).get("p99"),
        "served_over_bare": report["over_bare"].get(GRPC),
        "shared_memory_over_bare": report["over_bare"].get(SHARED_MEMORY),
        "capacity_per_s": report["capacity_per_s"],
        "targets": report["targets"],
        "repeats": report["repeats"],
        "environment": environment_,
    }


def server_times(run: Run) -> dict[Key, list[ModelTimes]]:
    return {key: times_between({}, counters) for key, counters in run.counters.items()}


def shown_times(run: Run) -> dict[Key, list[ModelTimes]]:
    """The loads whose breakdown is shown: as many under way as for served_over_bare, and those of the targets."""
    shown = [(CLOSED, float(run.plan.in_flight)), (OPEN, TARGET_LOAD), (OPEN, TARGET_OVERLOAD)]
    return {key: times for key, times in server_times(run).items() if key[0] == GRPC and key[1:] in shown and times}


def median_of(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
