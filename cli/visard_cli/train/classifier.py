"""The command `visard train classifier`: aligned faces in, a gender classifier out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from visard_cli.console import out, say, usage
from visard_cli.train.prepare import print_preparation
from visard_errors.extras import needs

if TYPE_CHECKING:
    from visard_training.classifier.report import ClassifierReport

EPILOG = (
    "Example: visard train classifier faces/ -o runs/classifier --width 32 --augmentation strong --epochs 30 "
    "--learning-rate 0.05 --schedule cosine. On several GPUs: accelerate launch -m visard_cli train classifier …"
)


def classifier(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Prepared faces, or anything that `visard train prepare` takes: it is prepared under --output first.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of this run; started again, it goes on.")],
    width: Annotated[int, typer.Option(help="Channels of the first stage; 64 is the published network.")] = 64,
    initial: Annotated[Path | None, typer.Option(help="Weights to start from (.pth, .safetensors).")] = None,
    epochs: Annotated[int, typer.Option(help="How often every face is seen.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Faces of one step, over all GPUs.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 0.001,
    schedule: Annotated[
        Literal["constant", "cosine"], typer.Option(help="'cosine' rises briefly, then falls to zero.")
    ] = "constant",
    momentum: Annotated[float, typer.Option(help="Of the gradient descent.")] = 0.9,
    weight_decay: Annotated[float, typer.Option(help="Pull of the weights towards zero.")] = 0.0,
    label_smoothing: Annotated[float, typer.Option(help="Against mistaken labels.")] = 0.0,
    balance: Annotated[
        Literal["none", "sampler", "weights"], typer.Option(help="Draw or weight both classes alike.")
    ] = "none",
    balance_by: Annotated[
        str, typer.Option(help="Column of the manifest whose rarer groups count more as well, such as ethnicity.")
    ] = "",
    augmentation: Annotated[
        Literal["flip", "strong"],
        typer.Option(
            help="'strong' also changes hair and background, turns, scales, relights, blurs, compresses and covers: "
            "for few faces."
        ),
    ] = "flip",
    size: Annotated[
        int, typer.Option(help="Edge of the pictures; below 224 only for weights that another training starts from.")
    ] = 224,
    mixed_precision: Annotated[Literal["no", "bf16"], typer.Option(help="'bf16' where it is faster.")] = "no",
    save_every: Annotated[int, typer.Option(help="Steps between two states on disk.")] = 200,
    half: Annotated[bool, typer.Option("--half", help="Write the result in half precision.")] = False,
    licence: Annotated[
        str, typer.Option(help="Of the weights, as an SPDX identifier: what the faces allow.")
    ] = "LicenseRef-Unknown",
    seed: Annotated[int, typer.Option(help="Decides weights, order and augmentation.")] = 0,
) -> None:
    """Train the gender classifier; the defaults are the published recipe. Writes weights, figures and plots."""
    with needs("train", "training"):
        from visard_training.classifier.training import RESULT_FILE, ClassifierOptions, train_classifier
        from visard_training.runs.run import main_process_first

    options = usage(
        lambda: ClassifierOptions(
            width=width,
            initial=initial,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            schedule=schedule,
            momentum=momentum,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            balance=balance,
            balance_by=balance_by,
            augmentation=augmentation,
            size=size,
            mixed_precision=mixed_precision,
            save_every=save_every,
            half=half,
            licence=licence,
            seed=seed,
        )
    )
    with main_process_first():
        caches = [_prepared(source, output / "faces") for source in data]
    report = train_classifier(caches, output, options)
    out.print(_table(report))
    say(f"Classifier ready: {output / RESULT_FILE}")


def _prepared(source: Path, folder: Path) -> Path:
    """The cache itself, or the one that is made of a source."""
    with needs("train", "training"):
        from visard_training.data.faces import FACES_FILE, prepare_faces

    if (source / FACES_FILE).is_file():
        return source
    cache = folder / source.resolve().stem
    print_preparation(prepare_faces(source, cache))
    return cache


def _table(report: ClassifierReport) -> Table:
    table = Table("faces", "group", "n", "accuracy", title="Measured through the served graph", title_justify="left")
    for name, split in report.splits.items():
        table.add_row(name, "all", str(split.n), f"{split.accuracy:.1%}")
        for gender, accuracy in split.by_gender.items():
            table.add_row("", gender, str(sum(split.confusion[gender].values())), f"{accuracy:.1%}")
        for group, values in split.by_group.items():
            for value, figures in values.items():
                table.add_row("", f"{group} {value}", str(figures["n"]), f"{figures['accuracy']:.1%}")
    return table
