"""The command `visard train pairs`: a StyleGAN2 in, pairs of generated faces out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from visard_cli.console import out, say
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help
from visard_errors.extras import needs
from visard_training.pairs.options import StyleGAN2Options

EPILOG = (
    "Example: visard train pairs pairs/ --generator ffhq.pkl --classifier "
    "runs/classifier/classifier.safetensors --tries 20000 --device cuda --batch-size 40"
    f"\n\n{exit_help(5, 7, 8)}"
)


@derived
def pairs(
    folder: Annotated[Path, typer.Argument(help="Folder of pairs to make or to continue. Look at its contact sheets!")],
    generator: Annotated[
        Path,
        typer.Option(
            help="StyleGAN2 weights for FFHQ-aligned faces: a .pkl of stylegan2-ada-pytorch or a .pt of rosinality's "
            "stylegan2-pytorch. No code in them is run."
        ),
    ],
    classifier: Annotated[
        Path, typer.Option(help="The gender classifier (.pth, .safetensors), which judges every step.")
    ],
    options: Annotated[StyleGAN2Options, Fields()],
    tries: Annotated[
        int, typer.Option(min=1, help="New faces to make pairs of; raise it to add pairs to a folder.")
    ] = 10_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures rendered at once.")] = 10,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to render.")] = "auto",
    image_format: Annotated[Literal["jpg", "png"], typer.Option("--format", help="Of the images.")] = "jpg",
) -> None:
    """Make pairs to train the swapper on: the same face once female, once male. Resumes where it was stopped."""
    with needs("train", "training"):
        from visard_training.pairs.stylegan2_pairs import make_pairs

    report = make_pairs(
        generator,
        classifier,
        folder,
        options,
        tries=tries,
        batch_size=batch_size,
        device=_device(device),
        suffix=".png" if image_format == "png" else ".jpg",
    )
    out.print(_survival_table("Samples for the class centres", report["samples"]))
    out.print(_survival_table("Pairs", report["pairs"]))
    say(f"Pairs ready: {folder}")


def _device(name: str) -> str:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no CUDA device on this machine", param_hint="--device")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _survival_table(title: str, survival: dict[str, int]) -> Table:
    table = Table("after", "left", "of all", title=title, title_justify="left")
    for name, n in survival.items():
        table.add_row(name, str(n), f"{n / max(1, next(iter(survival.values()))):.1%}")
    return table
