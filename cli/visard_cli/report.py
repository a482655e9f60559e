"""What the command line shows: tables, progress and JSON lines. No pixels, and no decisions."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from visard_cli.console import coloured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from visard.result import Outcome, Result


def scores_table() -> Table:
    """An empty table for `add_rows`."""
    table = Table(title="Anonymised faces", title_justify="left")
    for heading in ("photo", "face", "apparent gender", "after", "flipped", "similarity %", "identity distance", "s"):
        table.add_column(heading, overflow="fold")
    return table


def add_rows(table: Table, source: Path, result: Result | None) -> None:
    """Add a row per face, or one for a photo that has no result; why not does not fit into it."""
    if result is None:
        table.add_row(source.name, "–", coloured("red", "withheld"), *["–"] * 5)
        return
    for number, face in enumerate(result.faces, 1):
        before = face.gender
        distance = "–"
        if face.identity_distance is not None:
            distance = f"{face.identity_distance:.2f} ({'same person' if face.same_person else 'not matched'})"
        table.add_row(
            source.name,
            f"{number}/{result.faces_found}",
            "not asked" if before is None else f"{before.label} {before.confidence:.0%}",
            f"{face.swapped_gender.label} {face.swapped_gender.confidence:.0%}",
            "yes" if face.flipped else coloured("yellow", "no"),
            f"{face.similarity_percent:.1f}",
            distance,
            f"{sum(result.seconds.values()):.2f}",
        )


def json_line(source: Path, saved: list[Path], result: Result | None, error: Exception | None) -> str:
    """One photo's outcome as a line of JSON."""
    line: dict[str, Any] = {"photo": str(source), "saved": [str(path) for path in saved]}
    if error is not None:
        line |= {"error": type(error).__name__, "message": str(error)}
    elif result is not None:
        line |= result.to_dict()
    return json.dumps(line)


@contextmanager
def progress_bar(console: Console, total: int, *, show: bool) -> Iterator[Any]:
    """Show a bar; yields a function that counts outcomes as they pass."""
    columns = (TextColumn("Anonymising"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not show) as progress:
        task = progress.add_task("photos", total=total)

        def counted(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
            for outcome in outcomes:
                progress.advance(task)
                yield outcome

        yield counted


def provenance_table(provenance: dict[str, dict[str, Any]]) -> Table:
    """Where each model comes from, a row per model."""
    table = Table(title="Where the models come from", title_justify="left")
    for heading in ("model", "trained", "architecture", "precision", "checkpoint", "sha256"):
        table.add_column(heading, overflow="fold")
    for model, origin in sorted(provenance.items()):
        trained, sizes = origin.get("trained"), dict(origin.get("architecture", {}))
        table.add_row(
            model,
            "not said" if trained is None else "yes" if trained else coloured("red", "no"),
            ", ".join(f"{key} {value}" for key, value in sizes.get("trunk", sizes).items()),
            str(origin.get("precision", "")),
            str(origin.get("checkpoint", "")),
            str(origin.get("checkpoint_sha256", ""))[:12],
        )
    return table
