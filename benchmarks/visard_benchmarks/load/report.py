"""The report of a load run: tables, pictures and files."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from visard_benchmarks.load.figures import Figures, Turn
from visard_benchmarks.load.server import ModelTimes

CLOSED, OPEN = "closed", "open"
Key = tuple[str, str, float]  # transport; kind of load; callers or share of capacity
_STEPS = ("queue", "compute_input", "compute_infer", "compute_output", "request")
_PERCENTILES = ("p50", "p90", "p95", "p99", "p99.9", "max")


def loads_table(results: Mapping[Key, Figures], deadlines_s: Mapping[str, float]) -> Table:
    """One row per load."""
    table = Table(title="Loads: rates per second, latency in ms from when a request was due", title_justify="left")
    for name in ("transport", "load", "offered", "back", "good", *_PERCENTILES, "refused, p99", "settled"):
        table.add_column(name, justify="left" if name in ("transport", "load") else "right", no_wrap=True)
    before = None
    for (transport, kind, amount), figures in results.items():
        if before not in (None, (transport, kind)):
            table.add_section()
        before = transport, kind
        latency = [_ms(figures.latency_ms.get(name)) for name in _PERCENTILES]
        table.add_row(
            transport if kind != OPEN else f"{transport} (deadline {deadlines_s[transport] * 1000:.0f} ms)",
            load_name(kind, amount),
            f"{figures.offered_per_s:.1f}",
            f"{figures.achieved_per_s:.1f}",
            f"{figures.good_per_s:.1f}",
            *latency,
            _ms(figures.refused_ms.get("p99")),
            f"{figures.stable_turns}/{figures.turns}",
        )
    return table


def outcomes_table(results: Mapping[Key, Figures]) -> Table:
    """How requests ended, for the loads where not every face came back flipped."""
    table = Table(
        "transport", "load", "answered", "how requests ended", title="Failures by reason", title_justify="left"
    )
    for (transport, kind, amount), figures in results.items():
        if set(figures.outcomes) != {"flipped"}:
            words = ", ".join(f"{name} {count}" for name, count in sorted(figures.outcomes.items()))
            table.add_row(transport, load_name(kind, amount), f"{figures.answered_share:.1%}", words)
    return table


def server_table(label: str, times: Sequence[ModelTimes]) -> Table:
    """Where time went in the server."""
    table = Table(title=f"Inside the server, {label}: milliseconds per request", title_justify="left")
    for name in ("model", "faces", "batch", "queue", "input", "infer", "output", "in all", "failed"):
        table.add_column(name, justify="left" if name in ("model", "failed") else "right")
    for each in times:
        table.add_row(
            each.model,
            str(each.faces),
            f"{each.mean_batch:.2f}",
            *(f"{getattr(each, f'{step}_ms'):.1f}" for step in _STEPS),
            ", ".join(f"{reason} {count}" for reason, count in each.failures.items()),
        )
    return table


def load_name(kind: str, amount: float) -> str:
    """How tables call a load."""
    return f"{amount:g} under way" if kind == CLOSED else f"{amount:.0%} of capacity"


def write_samples(path: Path, turns: Mapping[Key, Sequence[Turn]]) -> None:
    """Write every request of every load, for whoever wants other figures: gzipped CSV, seconds from a load's start."""
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["transport", "kind", "amount", "turn", "due_s", "sent_s", "done_s", "outcome"])
        for (transport, kind, amount), repeats in turns.items():
            for number, turn in enumerate(repeats, 1):
                for sample in turn.samples:
                    moments = (f"{moment:.6f}" for moment in sample[:3])
                    writer.writerow([transport, kind, amount, number, *moments, sample.outcome])


def plot_latency(path: Path, results: Mapping[Key, Figures]) -> None:
    """Draw latency against throughput in closed loops, and goodput against what was offered in open ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    closed, opened = figure.subplots(1, 2)
    measured = dict.fromkeys(transport for transport, kind, _ in results if kind in (CLOSED, OPEN))
    for number, transport in enumerate(measured):
        hue = f"C{number}"
        loops = [figures for (of, kind, _), figures in results.items() if of == transport and kind == CLOSED]
        loops = [figures for figures in loops if figures.latency_ms]
        rates = [figures.achieved_per_s for figures in loops]
        closed.plot(rates, [figures.latency_ms["p50"] for figures in loops], "o-", color=hue, label=f"{transport}, p50")
        closed.plot(rates, [figures.latency_ms["p99"] for figures in loops], "s:", color=hue, label=f"{transport}, p99")
        loops = [figures for (of, kind, _), figures in results.items() if of == transport and kind == OPEN]
        if loops:
            offered = [figures.offered_per_s for figures in loops]
            opened.plot(offered, [figures.good_per_s for figures in loops], "o-", color=hue, label=transport)
            opened.axline((0, 0), slope=1, color="0.75", linewidth=1)
    closed.set(xlabel="faces back per second", ylabel="latency, ms", yscale="log", title="Closed loop: more callers")
    opened.set(
        xlabel="requests due per second", ylabel="good faces per second", title="Open loop: goodput (grey: all offered)"
    )
    for axes in (closed, opened):
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    opened.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def console(width: int = 160) -> Console:
    """A console that cuts nothing off where the output goes to a file."""
    shown = Console(highlight=False, markup=False)
    return shown if shown.is_terminal else Console(highlight=False, markup=False, width=width)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"
