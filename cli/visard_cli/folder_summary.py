"""What `visard folder` shows: its progress, and at the end what became of the photos and what to look at."""

from __future__ import annotations

import csv
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from visard.policy import REASONS
from visard_cli.console import coloured, err, out
from visard_preprocess.files import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import ExitStack

    from rich.progress import Task

    from visard_folder.journal import Record
    from visard_folder.run import Watcher

_LISTED = 8  # files of each kind; all stand in `to_check.csv`
_TO_CHECK = {  # what stands in it, in the order in which it is shown, with a heading and a style
    "visible": ("Faces left VISIBLE", "bold red"),
    "withheld": ("Photos withheld", "yellow"),
    "failed": ("Photos that failed", "yellow"),
    "covered": ("Faces covered", "yellow"),
}


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0.0:.1f} photos/s")


def progress(stack: ExitStack) -> Watcher:
    """Show a bar with what is done, what was not written, the rate and the time left."""
    from visard_folder.run import Watcher

    columns = (TextColumn("Anonymising"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    bar = stack.enter_context(Progress(*columns, TextColumn("{task.fields[trouble]}"), console=err))
    task = bar.add_task("photos", total=None, trouble="")
    troubles = 0
    counting = threading.Lock()

    def photo(record: Record | None) -> None:
        nonlocal troubles
        with counting:
            if record is not None and record.outcome in ("withheld", "failed"):
                troubles += 1
            bar.update(task, advance=1, trouble=f"{troubles} not written" if troubles else "")

    return Watcher(
        photo=photo,
        total=lambda total: bar.update(task, total=total),
        notice=lambda text: err.print(text, style="yellow", soft_wrap=True),
    )


def progress_lines() -> Watcher:
    """Say what became of each photo, for a run that has no end."""
    from visard_folder.run import Watcher

    def photo(record: Record | None) -> None:
        if record is None or record.outcome == "ignored":
            return
        counts = Counter(face.outcome for face in record.faces)
        said = record.message or ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        style = "yellow" if record.message else "bold red" if counts["visible"] else ""
        err.print(coloured(style, f"{one_line(record.path)}: {record.outcome}", f" ({said})" if said else ""))

    return Watcher(
        photo=photo,
        notice=lambda text: err.print(text, style="yellow", soft_wrap=True),
        waiting=lambda: err.print("All done; waiting for photos (Ctrl-C ends it)"),
    )


def show_summary(summary: Mapping[str, Any]) -> None:
    """Show what a run did, what to look at, and where everything stands; see `visard_folder.run.anonymise_folder`."""
    if not summary["changed"]:
        out.print(_nothing_done(summary), soft_wrap=True)
    out.print(_summary_table(summary))
    listed, *page = summary["report"]
    _show_list(Path(listed), page)
    saved = "Saved" if summary["changed"] else "As before"
    for path in (*summary["manifest"], *summary["report"], *summary["annotations"]):
        err.print(f"{saved}: {path}", soft_wrap=True)
    if "receipt" in summary:
        err.print(f"{'Signed' if summary['signed'] else 'As before'}: {summary['receipt']}", soft_wrap=True)


def _nothing_done(summary: Mapping[str, Any]) -> str:
    failed = summary["outcomes"]["failed"]
    files = "1 file" if summary["done_before"] == 1 else f"{summary['done_before']} files"
    words = f"Nothing to do: an earlier run did {files}, and nothing has changed since."
    if failed:
        words += f" {failed} that had failed {'was' if failed == 1 else 'were'} tried again and failed again."
    if "receipt" in summary:
        words += " The receipt was signed for the first time." if summary["signed"] else " The receipt stays as it is."
    return words


def _show_list(path: Path, page: Sequence[str]) -> None:
    """Show the beginning of `to_check.csv`, what matters most first."""
    counts: Counter[str] = Counter()
    first: dict[str, dict[str, Counter[str]]] = {outcome: {} for outcome in _TO_CHECK}  # → file → its reasons
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            files = first[row["outcome"]]
            counts[row["outcome"]] += 1
            if row["file"] in files or len(files) < _LISTED:
                files.setdefault(row["file"], Counter())[row["reason"]] += 1
    for outcome, (heading, style) in _TO_CHECK.items():
        if not counts[outcome]:
            continue
        out.print(coloured(style, f"{heading}: {counts[outcome]}"))
        for name, reasons in first[outcome].items():
            said = "; ".join(reason if n == 1 else f"{n} × {reason}" for reason, n in reasons.items())
            out.print(f"  {one_line(name)}: {one_line(said)}", soft_wrap=True)
        if more := counts[outcome] - sum(reasons.total() for reasons in first[outcome].values()):
            out.print(f"  and {more} more")
    if counts:
        out.print(
            f"All of them stand in {path.name}" + "".join(f", with pictures in {Path(each).name}" for each in page)
        )
    else:
        out.print("Nothing was withheld, covered or left visible.")


def _summary_table(summary: Mapping[str, Any]) -> Table:
    table = Table("photos", "", title=f"Done in {summary['seconds']:.0f} s", title_justify="left")
    for outcome, count in summary["outcomes"].items():
        table.add_row(outcome, str(count))
    table.add_section()
    for outcome, count in summary["faces"].items():
        if count:
            loud = outcome == "visible"
            table.add_row(coloured("bold red", "faces VISIBLE") if loud else f"faces {outcome}", str(count))
    for reason, count in summary["reasons"].items():
        if count:
            table.add_row(f"  {REASONS[reason]}", str(count))
    table.add_section()
    for error, count in summary["errors"].items():
        table.add_row(coloured("yellow", error), str(count))
    if summary["done_before"]:
        table.add_row("done by an earlier run", str(summary["done_before"]))
    return table
