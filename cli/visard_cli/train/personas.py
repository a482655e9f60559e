"""The command `visard train personas`: generated portraits in, faces of nobody out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visard_cli.console import say
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help
from visard_errors.extras import needs
from visard_training.personas.options import PersonaOptions

EPILOG = (
    f"Example: visard train personas faces/generated -o runs/personas --shapes faces/photos\n\n{exit_help(5, 7, 8)}"
)


@derived
def personas(
    donors: Annotated[
        list[Path],
        typer.Argument(
            help="Prepared portraits of people who do not exist, with a column age or age_guess in their manifest.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to fill; look at its personas.jpg!")],
    options: Annotated[PersonaOptions, Fields(names={"donors": "donors_each"})],
    shapes: Annotated[
        list[Path] | None,
        typer.Option(
            help="Prepared faces of all poses and expressions, whose landmarks alone are used; may be given several "
            "times. The donors by default.",
        ),
    ] = None,
) -> None:
    """Make faces of nobody, each the average of many generated portraits."""
    with needs("train", "training"):
        from visard_training.personas.atlas import SHEET_FILE, make_personas

    make_personas(donors, [*donors, *(shapes or ())], output, options)
    say(f"Personas ready: {output / SHEET_FILE}")
