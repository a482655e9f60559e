"""The command `visard train swapper`: pairs in, a generator for one direction out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from visard_cli.console import out, say, usage
from visard_errors.extras import needs

EPILOG = (
    "Example: visard train swapper pairs/to_male --direction to_male -o runs/to_male --classifier "
    "runs/classifier/classifier.safetensors. On several GPUs: accelerate launch -m visard_cli train swapper …"
)


def swapper(
    pairs: Annotated[Path, typer.Argument(help="Folder that `visard train pairs` made.", show_default=False)],
    direction: Annotated[
        Literal["to_male", "to_female"], typer.Option(help="Which side of a pair is made of the other.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of this run; started again, it goes on. Holds decoded pairs.")
    ],
    ngf: Annotated[int, typer.Option(help="Channels of the first layer.")] = 64,
    downsamplings: Annotated[int, typer.Option(help="How often the size is halved.")] = 4,
    blocks: Annotated[int, typer.Option(help="Residual blocks at the smallest size.")] = 9,
    photo_size: Annotated[int, typer.Option(help="Side of the training pictures.")] = 512,
    initial: Annotated[Path | None, typer.Option(help="Generator to start from (.pth, .safetensors).")] = None,
    vgg: Annotated[
        Path | None, typer.Option(help="torchvision's VGG19 weights for the perceptual loss (.pth, .safetensors).")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Trained gender classifier for the perceptual loss where there is no --vgg.")
    ] = None,
    adversarial: Annotated[float, typer.Option(min=0, help="Weight of the discriminator's verdict.")] = 1.0,
    feature_matching: Annotated[float, typer.Option(min=0, help="Weight of the discriminator's features.")] = 10.0,
    perceptual: Annotated[float, typer.Option(min=0, help="Weight of the perceptual loss.")] = 10.0,
    reconstruction: Annotated[float, typer.Option(min=0, help="Weight of the pixels and their gradients.")] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Pairs of one step, over all GPUs.")] = 1,
    epochs: Annotated[int, typer.Option(help="How often every pair is seen.")] = 200,
    minutes: Annotated[float | None, typer.Option(help="End earlier, after so long.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Constant at first, then falling linearly to zero.")] = 2e-4,
    constant_share: Annotated[float, typer.Option(help="Of the training, in which the rate does not fall.")] = 0.5,
    augmentation: Annotated[
        Literal["flip", "strong"], typer.Option(help="'strong' also turns, relights, blurs and compresses.")
    ] = "flip",
    mixed_precision: Annotated[Literal["no", "bf16"], typer.Option(help="'bf16' where it is faster.")] = "no",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for a fifth more time.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Export in half precision.")] = False,
    save_every: Annotated[int, typer.Option(help="Steps between two states on disk.")] = 500,
    sample_every: Annotated[int, typer.Option(help="Steps between two sheets of samples.")] = 500,
    licence: Annotated[
        str, typer.Option(help="Of the weights, as an SPDX identifier: what the faces allow.")
    ] = "LicenseRef-Unknown",
    seed: Annotated[int, typer.Option(help="Decides weights, order and augmentation.")] = 0,
) -> None:
    """Train a generator on pairs; the defaults are the published pix2pixHD. Writes weights, losses and samples."""
    with needs("train", "training"):
        from visard_export.networks.architectures import Pix2PixHDArchitecture
        from visard_training.swapper.training import LossWeights, SwapperOptions, train_swapper

    options = usage(
        lambda: SwapperOptions(
            direction=direction,
            generator=Pix2PixHDArchitecture(ngf=ngf, n_downsampling=downsamplings, n_blocks=blocks),
            initial=initial,
            photo_size=photo_size,
            weights=LossWeights(
                adversarial=adversarial,
                feature_matching=feature_matching,
                perceptual=perceptual,
                reconstruction=reconstruction,
            ),
            batch_size=batch_size,
            epochs=epochs,
            minutes=minutes,
            learning_rate=learning_rate,
            constant_share=constant_share,
            augmentation=augmentation,
            mixed_precision=mixed_precision,
            gradient_checkpointing=gradient_checkpointing,
            half=half,
            save_every=save_every,
            sample_every=sample_every,
            licence=licence,
            seed=seed,
        )
    )
    done = train_swapper(pairs, output, options, vgg=vgg, classifier=classifier)
    table = Table("pairs", "broken", "steps", "minutes", "held-out error", "unchanged photos", title_justify="left")
    errors = (f"{done.holdout_l1:.2f} levels", f"{done.unchanged_l1:.2f} levels")
    table.add_row(str(done.pairs), str(done.broken), str(done.steps), f"{done.seconds / 60:.1f}", *errors)
    out.print(table)
    say(f"Generator ready: {done.checkpoint}")
