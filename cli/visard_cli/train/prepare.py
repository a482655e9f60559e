"""The command `visard train prepare`: photographs in, aligned faces out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visard_cli.console import say
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help
from visard_errors.extras import needs
from visard_training.data.options import PrepareOptions

if TYPE_CHECKING:
    from visard_training.data.faces import Preparation

EPILOG = f"Example: visard train prepare photos/ faces/ --validation-share 0.15\n\n{exit_help(5, 7, 8)}"


@derived
def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with one folder per class (female, male), or with Training and Validation that have those; or "
            "a CSV manifest: file, gender, optionally split and person, any further columns as groups.",
            show_default=False,
        ),
    ],
    cache: Annotated[Path, typer.Argument(help="Folder to fill. It will hold pictures of people.", show_default=False)],
    options: Annotated[PrepareOptions, Fields()],
) -> None:
    """Align photographs once, for every training after it. Broken ones and those without a face are counted."""
    with needs("train", "training"):
        from visard_training.data.faces import prepare_faces

    report = prepare_faces(source, cache, options)
    print_preparation(report)


def print_preparation(report: Preparation) -> None:
    """Say what became of the photographs."""
    skipped = ", ".join(f"{n} {reason}" for reason, n in sorted(report.skipped.items())) or "none"
    say(f"{report.n_faces} faces in {report.cache}; photos skipped: {skipped}")
