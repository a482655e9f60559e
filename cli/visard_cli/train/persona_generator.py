"""The command `visard train persona-generator`: faces and personas in, a generator out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visard_cli.console import say
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help
from visard_errors.extras import needs
from visard_training.personas.options import PersonaTrainingOptions

EPILOG = (
    "Example: visard train persona-generator faces/london faces/photos --personas runs/personas -o runs/persona"
    f"\n\n{exit_help(5, 7, 8)}"
)


@derived
def persona_generator(
    data: Annotated[
        list[Path],
        typer.Argument(help="Prepared faces; an age or age_guess in their manifest is learned.", show_default=False),
    ],
    personas: Annotated[Path, typer.Option(help="What visard train personas made.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of this run; a second start resumes it. Holds small pictures."),
    ],
    options: Annotated[PersonaTrainingOptions, Fields(names={"n_downsampling": "downsamplings", "n_blocks": "blocks"})],
    tone_data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Those of the faces that are lit well enough to tell the tone of skin by its lightness; may be given "
            "several times. All by default.",
        ),
    ] = None,
) -> None:
    """Train the generator that puts a persona in a face's place, for both directions at once."""
    with needs("train", "training"):
        from visard_training.personas.training import train_persona_generator

    path = train_persona_generator(data, personas, output, options, tone_caches=tone_data or ())
    say(f"Persona generator ready: {path}, for --to-male and --to-female of visard export")
