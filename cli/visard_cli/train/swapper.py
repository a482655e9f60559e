"""The command `visard train swapper`: pairs in, a generator for one direction out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from visard_cli.console import out, say
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help
from visard_errors.extras import needs
from visard_training.swapper.options import SwapperOptions

EPILOG = (
    "Example: visard train swapper pairs/to_male --direction to_male -o runs/to_male --classifier "
    "runs/classifier/classifier.safetensors. On several GPUs: accelerate launch -m visard_cli train swapper …"
    f"\n\n{exit_help(5, 7, 8)}"
)


@derived
def swapper(
    pairs: Annotated[Path, typer.Argument(help="Folder that `visard train pairs` made.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of this run; a second start resumes it. Holds decoded pairs.")
    ],
    options: Annotated[
        SwapperOptions,
        Fields(
            without=("discriminator", "head", "size"),
            names={"n_downsampling": "downsamplings", "n_blocks": "blocks"},
        ),
    ],
    vgg: Annotated[
        Path | None, typer.Option(help="torchvision's VGG19 weights for the perceptual loss (.pth, .safetensors).")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Trained gender classifier for the perceptual loss where there is no --vgg.")
    ] = None,
) -> None:
    """Train a generator on pairs; the defaults are the published pix2pixHD. Writes weights, losses and samples."""
    with needs("train", "training"):
        from visard_training.swapper.training import train_swapper

    done = train_swapper(pairs, output, options, vgg=vgg, classifier=classifier)
    table = Table("pairs", "broken", "steps", "minutes", "held-out error", "unchanged photos", title_justify="left")
    errors = (f"{done.holdout_l1:.2f} levels", f"{done.unchanged_l1:.2f} levels")
    table.add_row(str(done.pairs), str(done.broken), str(done.steps), f"{done.seconds / 60:.1f}", *errors)
    out.print(table)
    say(f"Generator ready: {done.checkpoint}")
