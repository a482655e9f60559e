"""The command `visard evaluate`: options in, tables and report files out."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typing_extensions import Doc

from visard.blocking import Client
from visard_cli import console, outputs
from visard_cli.console import EngineOption, ModelsOption, ServerOption
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help

if TYPE_CHECKING:
    from collections.abc import Mapping

    from visard_evaluation.judges import Judges
    from visard_evaluation.summary import Evaluation

EPILOG = f"Example: visard evaluate photos/ --split test --report report.html\n\n{exit_help(3, 4, 5, 6, 7, 8)}"

FolderArgument = Annotated[
    Path,
    typer.Argument(
        help="Photos with a manifest.csv (file, gender[, split, person, …]), in folders female/ and male/, or "
        "without labels."
    ),
]


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who judges, beside dlib."""

    recogniser: Annotated[
        list[str] | None,
        Doc(
            "One more judge of identity, as NAME=FILE.onnx:SIZE:THRESHOLD, such as arcface=w600k_r50.onnx:112:1.1 "
            "(RGB in −1..1, aligned by five points as ArcFace; THRESHOLD: distance of unit vectors), with :raw at the "
            "end where the model scales 0..255 by itself. Repeatable."
        ),
    ] = None
    group: Annotated[
        list[str] | None,
        Doc(
            "Column of the manifest to split the figures by; without it every further column of 2 to 12 values "
            "with five photos each on average. Repeatable."
        ),
    ] = None
    second_classifier: Annotated[
        Path | None,
        Doc(
            "A second judge of apparent gender that steered no swap: ONNX in the form of the served classifier, "
            "or safetensors as `visard train classifier` writes them."
        ),
    ] = None
    restore: Annotated[bool, Doc("Also train an attacker that restores faces, in minutes; needs the extra train.")] = (
        False
    )
    naturalness: Annotated[bool, Doc("Also measure how natural results look; needs the extra naturalness.")] = False

    def __post_init__(self) -> None:
        """Refuse a folder for the second classifier."""
        _no_folder("--second-classifier", self.second_classifier)

    def load(self, *, pictures: bool) -> Judges:
        """Load everything that was requested before the work begins, so that a missing part is reported at once."""
        from visard_evaluation.judges import Judges
        from visard_evaluation.recognisers import build_recognisers

        if self.restore:
            import visard_evaluation.restore  # noqa: F401 # the extra that it needs is known to be missing now
        perception, second = None, None
        if self.naturalness:
            from visard_evaluation.perception import Perception

            perception = Perception()
        if self.second_classifier is not None:
            from visard_evaluation.second_classifier import SecondClassifier

            second = SecondClassifier(self.second_classifier)
        return Judges(
            recognisers=console.usage(lambda: build_recognisers(self.recogniser or ())),
            second_classifier=second,
            perception=perception,
            restore=self.restore,
            pictures=pictures,
        )


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is written."""

    report: Annotated[Path | None, Doc("Write a self-contained HTML report.")] = None
    markdown: Annotated[Path | None, Doc("Write a one-page summary.")] = None
    with_pictures: Annotated[bool, Doc("Put faces into the HTML report (shows the originals!).")] = False

    def __post_init__(self) -> None:
        """Refuse what would be in vain, or known only after the work."""
        if self.with_pictures and self.report is None:
            raise ValueError("--with-pictures has no --report to put them into")
        if self.report and self.markdown and self.report.resolve() == self.markdown.resolve():
            raise ValueError("--report and --markdown would overwrite each other")
        _no_folder("--report", self.report)
        _no_folder("--markdown", self.markdown)

    def write(self, found: Evaluation, title: str, *, results: bool) -> None:
        """Write what was asked for."""
        if self.markdown is not None:
            from visard_evaluation.markdown import write_markdown

            _save(self.markdown, write_markdown(found, title, results=results))
        if self.report is not None:
            from visard_evaluation.html import write_html

            _save(self.report, write_html(found, title, results=results))


def _no_folder(name: str, path: Path | None) -> None:
    if path is not None and path.is_dir():
        raise ValueError(f"{name}: '{path}' is a directory")


@derived
def evaluate(
    folder: FolderArgument,
    *,
    split: Annotated[str | None, Doc("Only this split of the manifest.")] = None,
    results: Annotated[
        Path | None,
        Doc(
            "Folder with finished results by the photos' names, as `visard folder` leaves them: judge these "
            "instead of anonymising now."
        ),
    ] = None,
    judging: Annotated[JudgeOptions, Fields()],
    reports: Annotated[ReportOptions, Fields()],
    server: ServerOption = None,
    models: ModelsOption = None,
    engine: EngineOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Measure how well photos are anonymised, with 95 % intervals; the largest face of each counts."""
    from visard_evaluation.labels import choose_groups, find_photos
    from visard_evaluation.run import evaluate as measure

    photos = find_photos(folder, split)
    groups = choose_groups(photos, judging.group or ())
    judges = judging.load(pictures=reports.with_pictures)
    if reports.report is not None:
        import visard_evaluation.html  # noqa: F401 # a missing extra is known before the work
    with ExitStack() as stack:
        client = stack.enter_context(Client(console.engine_for(stack, server, models, engine)))
        provenance = console.warn_untrained(client)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(TextColumn("{task.description}", markup=False), *columns, console=console.err)
        stack.enter_context(bar)
        found = measure(
            photos,
            client,
            results=results,
            judges=judges,
            groups=groups,
            progress=lambda items, what, total: bar.track(items, total=total, description=what),
        )
    found = _described(found, provenance)
    title = f"How well {'the results of ' if results else ''}“{folder.name or folder.resolve().name}” "
    title += "is anonymised" if not results else "are anonymised"
    reports.write(found, title, results=results is not None)
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict()) + "\n")
    else:
        _say(found)


def _described(found: Evaluation, provenance: Mapping[str, Mapping[str, Any]]) -> Evaluation:
    """The same with what else the figures depend on: version, time and models."""
    settings = replace(
        found.settings,
        visard=metadata.version("visard"),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        models={
            model: {key: origin.get(key) for key in ("trained", "checkpoint_sha256")}
            for model, origin in provenance.items()
        },
    )
    return replace(found, settings=settings)


def _say(found: Evaluation) -> None:
    """Show what was found: in short, in detail, in figures."""
    from visard_evaluation.brief import brief
    from visard_evaluation.sentences import sentences

    for paragraph in brief(found):
        console.out.print(paragraph + "\n")
    for sentence in sentences(found):
        console.out.print(f"• {sentence}")
    console.out.print(figures_table(found))


def figures_table(evaluation: Evaluation) -> Table:
    """What an evaluation found, a row per figure."""
    from visard_evaluation.rows import rows
    from visard_evaluation.wording import cell

    parts = {"all": evaluation.figures, **evaluation.groups["gender"]}
    table = Table("figure", title=f"{evaluation.figures.n} faces (95 % intervals)", title_justify="left")
    for name, part in parts.items():
        table.add_column(f"{name} ({part.n})")
    for row in rows(evaluation):
        table.add_row(row.label, *(cell(part, row) for part in parts.values()))
    for error, count in evaluation.errors.items():
        table.add_row(console.coloured("red", error), str(count))
    return table


def _save(path: Path, text: str) -> None:
    outputs.write_text(path, text)
    console.err.print(f"Report saved: {path}", soft_wrap=True)
