"""The command `visard evaluate`: options in, tables and report files out."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from visard.blocking import Client
from visard_cli import console, outputs
from visard_cli.console import ModelsOption, ServerOption
from visard_cli.exit_codes import exit_help

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visard_evaluation.judges import Judges
    from visard_evaluation.summary import Evaluation

EPILOG = f"Example: visard evaluate photos/ --split test --report report.html\n\n{exit_help(3, 4, 5, 6, 7, 8)}"


def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Photos with a manifest.csv (file, gender[, split, person, …]), in folders female/ and male/, or "
            "without labels."
        ),
    ],
    split: Annotated[str | None, typer.Option(help="Only this split of the manifest.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Folder with finished results by the photos' names, as `visard folder` leaves them: judge these "
            "instead of anonymising now."
        ),
    ] = None,
    recogniser: Annotated[
        list[str] | None,
        typer.Option(
            help="One more judge of identity, as NAME=FILE.onnx:SIZE:THRESHOLD, such as arcface=w600k_r50.onnx:112:1.1 "
            "(RGB in −1..1, aligned by five points as ArcFace; THRESHOLD: distance of unit vectors), with :raw at the "
            "end where the model scales 0..255 by itself. Repeatable."
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the manifest to split the figures by; without it every further column of 2 to 12 values "
            "with five photos each on average. Repeatable."
        ),
    ] = None,
    second_classifier: Annotated[
        Path | None,
        typer.Option(
            help="A second judge of apparent gender that steered no swap: ONNX in the form of the served classifier, "
            "or safetensors as `visard train classifier` writes them.",
            dir_okay=False,
        ),
    ] = None,
    restore: Annotated[
        bool,
        typer.Option(
            "--restore", help="Also train an attacker that restores faces, in minutes; needs the extra train."
        ),
    ] = False,
    naturalness: Annotated[
        bool,
        typer.Option("--naturalness", help="Also measure how natural results look; needs the extra naturalness."),
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.", dir_okay=False)] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a one-page summary.", dir_okay=False)] = None,
    with_pictures: Annotated[
        bool, typer.Option("--with-pictures", help="Put faces into the HTML report (shows the originals!).")
    ] = False,
    server: ServerOption = None,
    models: ModelsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Measure how well photos are anonymised, with 95 % intervals; the largest face of each counts."""
    from visard_evaluation.labels import choose_groups, find_photos
    from visard_evaluation.run import evaluate as measure
    from visard_evaluation.sentences import sentences

    if with_pictures and report is None:
        raise typer.BadParameter("--with-pictures has no --report to put them into")
    if report is not None and markdown is not None and report.resolve() == markdown.resolve():
        raise typer.BadParameter("--report and --markdown would overwrite each other")
    photos = find_photos(folder, split)
    groups = choose_groups(photos, group or ())
    judges = _judges(
        recogniser or (), second_classifier, restore=restore, naturalness=naturalness, pictures=with_pictures
    )
    if report is not None:
        from visard_evaluation.html import write_html  # before the work: a missing extra is known at once
    with ExitStack() as stack:
        client = stack.enter_context(Client(console.connection_to(stack, server, models)))
        provenance = console.warn_untrained(client)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        bar = stack.enter_context(Progress(*columns, console=console.err))
        found = measure(
            photos,
            client,
            results=results,
            judges=judges,
            groups=groups,
            progress=lambda items, what, total: bar.track(items, total=total, description=what),
        )
        settings = replace(
            found.settings,
            visard=metadata.version("visard"),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            models={
                model: {key: origin.get(key) for key in ("trained", "checkpoint_sha256")}
                for model, origin in provenance.items()
            },
        )
        found = replace(found, settings=settings)
    title = f"How well {'the results of ' if results else ''}“{folder.name or folder.resolve().name}” "
    title += "is anonymised" if not results else "are anonymised"
    if markdown is not None:
        from visard_evaluation.markdown import write_markdown

        _save(markdown, write_markdown(found, title, results=results is not None))
    if report is not None:
        _save(report, write_html(found, title, results=results is not None))
    if as_json:
        sys.stdout.write(json.dumps(found.to_dict()) + "\n")
    else:
        for sentence in sentences(found):
            console.out.print(f"• {sentence}")
        console.out.print(figures_table(found))


def _judges(
    recognisers: Sequence[str],
    second_classifier: Path | None,
    *,
    restore: bool,
    naturalness: bool,
    pictures: bool,
) -> Judges:
    """Load everything that was requested before the work begins, so that a missing part is reported at once."""
    from visard_evaluation.judges import Judges
    from visard_evaluation.recognisers import build_recognisers

    if restore:
        import visard_evaluation.restore  # noqa: F401 # the extra that it needs is known to be there, or missing, now
    perception, second = None, None
    if naturalness:
        from visard_evaluation.perception import Perception

        perception = Perception()
    if second_classifier is not None:
        from visard_evaluation.second_classifier import SecondClassifier

        second = SecondClassifier(second_classifier)
    return Judges(
        recognisers=console.usage(lambda: build_recognisers(recognisers)),
        second_classifier=second,
        perception=perception,
        restore=restore,
        pictures=pictures,
    )


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
