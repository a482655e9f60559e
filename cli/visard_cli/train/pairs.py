"""The command `visard train pairs`: a StyleGAN2 in, pairs of generated faces out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from visard_cli.console import out, say
from visard_errors.extras import needs

EPILOG = (
    "Example: visard train pairs pairs/ --generator ffhq.pkl --classifier "
    "runs/classifier/classifier.safetensors --tries 20000 --device cuda --batch-size 40"
)


def pairs(
    folder: Annotated[
        Path, typer.Argument(help="Folder of pairs to make or to go on with. Look at its contact sheets!")
    ],
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
    min_certainty: Annotated[
        float, typer.Option(min=0.51, max=0.999, help="What the classifier must reach on both sides of a pair.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Decides the faces and their order.")] = 0,
    samples: Annotated[int, typer.Option(min=2, help="Faces that the two class centres are taken from.")] = 10_000,
    tries: Annotated[
        int, typer.Option(min=1, help="New faces to make pairs of; raise it to go on with a folder.")
    ] = 10_000,
    psi: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Truncation: less variety for fewer broken faces.")
    ] = 0.7,
    layers: Annotated[
        int | None,
        typer.Option(min=1, help="Move only the first so many layers: 8 of FFHQ's 18 change shapes and leave colours."),
    ] = None,
    holdout: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share never trained on.")] = 0.05,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures rendered at once.")] = 10,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to render.")] = "auto",
    image_format: Annotated[Literal["jpg", "png"], typer.Option("--format", help="Of the images.")] = "jpg",
) -> None:
    """Make pairs to train the swapper on: the same face once female, once male. Goes on where it was stopped."""
    with needs("train", "training"):
        from visard_training.pairs.stylegan2_pairs import StyleGAN2Options, make_pairs

    options = StyleGAN2Options(
        seed=seed, samples=samples, min_certainty=min_certainty, psi=psi, layers=layers, holdout=holdout
    )
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
