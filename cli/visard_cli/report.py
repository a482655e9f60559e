"""What the command line shows: tables, progress and JSON lines. No pixels, and no decisions."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from visard.policy import REASONS
from visard_cli.console import coloured
from visard_preprocess.files import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from rich.console import Console

    from visard.policy import FaceOutcome
    from visard.result import FaceResult, Outcome, Result, UnswappedFace


def scores_table() -> Table:
    """An empty table for `add_rows`."""
    table = Table(title="Anonymised faces", title_justify="left")
    for heading in ("photo", "face", "outcome", "apparent gender", "after", "similarity %", "identity distance", "s"):
        table.add_column(heading, overflow="fold")
    return table


def add_rows(table: Table, source: Path, result: Result | None) -> None:
    """Add a row per face, or one for a photo that has no result; why not does not fit into it."""
    if result is None:
        table.add_row(one_line(source.name), "–", coloured("red", "withheld"), *["–"] * 5)
        return
    for face in result.faces:
        before = face.gender
        distance = "–"
        if face.identity_distance is not None:
            distance = f"{face.identity_distance:.2f} ({'same person' if face.same_person else 'not matched'})"
        table.add_row(
            one_line(source.name),
            f"{face.index + 1}/{result.faces_found}",
            _outcome(face),
            "not asked" if before is None else f"{before.label} {before.confidence:.0%}",
            f"{face.swapped_gender.label} {face.swapped_gender.confidence:.0%}",
            f"{face.similarity_percent:.1f}",
            distance,
            f"{sum(result.seconds.values()):.2f}",
        )
    for other in result.others:
        table.add_row(one_line(source.name), f"{other.index + 1}/{result.faces_found}", _outcome(other), *["–"] * 5)


def _outcome(face: FaceResult | UnswappedFace) -> Text:
    colour = {"swapped": "green", "covered": "yellow", "visible": "bold red"}[face.outcome]
    return coloured(colour, face.outcome, "" if face.reason is None else f": {REASONS[face.reason]}")


def faces_line(counts: Mapping[FaceOutcome, int]) -> Text:
    """Say what became of the faces of all photos, the visible ones loudest."""
    line = Text(f"Faces: {counts['swapped']} swapped, {counts['covered']} covered")
    if counts["visible"]:
        line.append_text(coloured("bold red", f", {counts['visible']} STILL VISIBLE"))
    return line.append(". One that the detector did not see is not counted: look at the results before you share them.")


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
            " + ".join(digest[:12] for digest in str(origin.get("checkpoint_sha256", "")).split(" + ")),
        )
    return table
