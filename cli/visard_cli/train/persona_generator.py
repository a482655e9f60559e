"""The command `visard train persona-generator`: faces and personas in, a generator out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from visard_cli.console import say, usage
from visard_errors.extras import needs

EPILOG = "Example: visard train persona-generator faces/london faces/photos --personas runs/personas -o runs/persona"


def persona_generator(
    data: Annotated[
        list[Path],
        typer.Argument(help="Prepared faces; an age or age_guess in their manifest is learned.", show_default=False),
    ],
    personas: Annotated[Path, typer.Option(help="What visard train personas made.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of this run; started again, it goes on. Holds small pictures."),
    ],
    tone_data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Those of the faces that are lit well enough to tell the tone of skin by its lightness; may be given "
            "several times. All by default.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of the trunk, which learns where things go.")] = 9000,
    traits_steps: Annotated[int, typer.Option(help="Of the network that chooses tone, age and mouth.")] = 3000,
    batch_size: Annotated[int, typer.Option(help="Faces of one step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 1.5e-3,
    ngf: Annotated[int, typer.Option(help="Channels of the trunk's first layer.")] = 16,
    downsamplings: Annotated[int, typer.Option(help="How often the trunk halves the size.")] = 3,
    blocks: Annotated[int, typer.Option(help="Residual blocks at the smallest size.")] = 5,
    mixed_precision: Annotated[Literal["no", "bf16"], typer.Option(help="'bf16' where it is faster.")] = "no",
    save_every: Annotated[int, typer.Option(help="Steps between two states on disk.")] = 500,
    half: Annotated[bool, typer.Option("--half", help="Write the result in half precision.")] = False,
    licence: Annotated[
        str, typer.Option(help="Of the weights, as an SPDX identifier: what the faces allow.")
    ] = "LicenseRef-Unknown",
    seed: Annotated[int, typer.Option(help="Decides weights and batches.")] = 0,
) -> None:
    """Train the generator that puts a persona in a face's place, for both directions at once."""
    with needs("train", "training"):
        from visard_training.personas.training import PersonaTrainingOptions, train_persona_generator

    options = usage(
        lambda: PersonaTrainingOptions(
            steps=steps,
            traits_steps=traits_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            ngf=ngf,
            n_downsampling=downsamplings,
            n_blocks=blocks,
            mixed_precision=mixed_precision,
            save_every=save_every,
            half=half,
            licence=licence,
            seed=seed,
        )
    )
    path = train_persona_generator(data, personas, output, options, tone_caches=tone_data or ())
    say(f"Persona generator ready: {path}, for --to-male and --to-female of visard export")
