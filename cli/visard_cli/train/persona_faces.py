"""The command `visard train persona-faces`: faces in, the same with personas out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visard_cli.console import say
from visard_cli.exit_codes import exit_help
from visard_errors.extras import needs

EPILOG = (
    "Example: visard train persona-faces faces/london faces/london-personas --generator persona.safetensors"
    f"\n\n{exit_help(5, 7, 8)}"
)


def persona_faces(
    data: Annotated[Path, typer.Argument(help="Prepared faces.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Folder to fill, itself prepared faces.", show_default=False)],
    generator: Annotated[Path, typer.Option(help="What visard train persona-generator made.")],
    seed: Annotated[int, typer.Option(help="Decides the personas.")] = 0,
) -> None:
    """Give every face a female and a male persona: further faces for the classifier, in which hair tells nothing."""
    with needs("train", "training"):
        from visard_training.personas.faces import make_persona_faces

    n = make_persona_faces(data, generator, output, seed=seed)
    say(f"{n} faces in {output}")
