"""The command `visard train personas`: generated portraits in, faces of nobody out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visard_cli.console import say, usage
from visard_errors.extras import needs

EPILOG = "Example: visard train personas faces/generated -o runs/personas --shapes faces/photos"


def personas(
    donors: Annotated[
        list[Path],
        typer.Argument(
            help="Prepared portraits of people who do not exist, with a column age or age_guess in their manifest.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to fill; look at its personas.jpg!")],
    shapes: Annotated[
        list[Path] | None,
        typer.Option(
            help="Prepared faces of all poses and expressions, whose landmarks alone are used; may be given several "
            "times. The donors by default.",
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="Personas for each gender, tone of skin (3) and age (2).")] = 4,
    donors_each: Annotated[int, typer.Option(help="Donors averaged in each of them, at least 8.")] = 8,
    push: Annotated[float, typer.Option(help="How far personas go beyond their gender's mean face.")] = 0.35,
    skin: Annotated[float, typer.Option(help="Share of one donor's finest detail on top of the average.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Decides who is averaged with whom.")] = 0,
) -> None:
    """Make faces of nobody, each the average of many generated portraits."""
    with needs("train", "training"):
        from visard_training.personas.atlas import SHEET_FILE, PersonaOptions, make_personas

    options = usage(lambda: PersonaOptions(count=count, donors=donors_each, push=push, skin=skin, seed=seed))
    make_personas(donors, [*donors, *(shapes or ())], output, options)
    say(f"Personas ready: {output / SHEET_FILE}")
