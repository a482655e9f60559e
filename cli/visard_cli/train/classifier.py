"""The command `visard train classifier`: aligned faces in, a gender classifier out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from visard_cli.console import out, say
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help
from visard_cli.train.prepare import print_preparation
from visard_errors.extras import needs
from visard_training.classifier.options import ClassifierOptions

if TYPE_CHECKING:
    from visard_training.classifier.report import ClassifierReport

EPILOG = (
    "Example: visard train classifier faces/ -o runs/classifier --width 32 --augmentation strong --epochs 30 "
    "--learning-rate 0.05 --schedule cosine. On several GPUs: accelerate launch -m visard_cli train classifier …"
    f"\n\n{exit_help(5, 7, 8)}"
)


@derived
def classifier(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Prepared faces, or anything that `visard train prepare` takes: it is prepared under --output first.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of this run; a second start resumes it.")],
    options: Annotated[ClassifierOptions, Fields()],
) -> None:
    """Train the gender classifier; the defaults are the published recipe. Writes weights, figures and plots."""
    with needs("train", "training"):
        from visard_training.classifier.training import RESULT_FILE, train_classifier
        from visard_training.runs.run import main_process_first

    with main_process_first():
        caches = [_prepared(source, output / "faces") for source in data]
    report = train_classifier(caches, output, options)
    out.print(_table(report))
    say(f"Classifier ready: {output / RESULT_FILE}")


def _prepared(source: Path, folder: Path) -> Path:
    """The cache itself, or the one that is made of a source."""
    with needs("train", "training"):
        from visard_training.data.faces import FACES_FILE, prepare_faces
        from visard_training.data.options import PrepareOptions

    if (source / FACES_FILE).is_file():
        return source
    cache = folder / source.resolve().stem
    print_preparation(prepare_faces(source, cache, PrepareOptions()))
    return cache


def _table(report: ClassifierReport) -> Table:
    table = Table("faces", "group", "n", "accuracy", title="Measured through the served graph", title_justify="left")
    for name, split in report.splits.items():
        table.add_row(name, "all", str(split.n), f"{split.accuracy:.1%}")
        for gender, accuracy in split.by_gender.items():
            table.add_row("", gender, str(sum(split.confusion[gender].values())), f"{accuracy:.1%}")
        for group, values in split.by_group.items():
            for value, figures in values.items():
                table.add_row("", f"{group} {value}", str(figures["n"]), f"{figures['accuracy']:.1%}")
    return table
