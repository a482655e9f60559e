"""The commands of `visard train`: one for each stage, in the order of the data.

Says what happens and draws tables; the work is done by the stages' own files, loaded when a command needs them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from visard_errors import MissingExtra

if TYPE_CHECKING:
    from visard_training.classifier_report import ClassifierReport

app = typer.Typer(
    name="train",
    help=(
        "Train models on faces of your own: [bold]prepare[/] aligns photographs, [bold]classifier[/] learns the "
        "apparent gender, [bold]personas[/] averages generated portraits into faces of nobody, "
        "[bold]persona-generator[/] learns to put them in a face's place. As published: [bold]pairs[/] generates the "
        "same face in both genders, [bold]swapper[/] learns the way from one to the other. What takes long goes on "
        "where it was stopped. Then: visard export."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)
_out = Console()


@app.command(epilog="Example: visard train prepare photos/ faces/ --validation-share 0.15")
def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder with one folder per class (female, male), or with Training and Validation that have those; or "
            "a CSV manifest: file, gender, optionally split and person, any further columns as groups.",
            show_default=False,
        ),
    ],
    cache: Annotated[Path, typer.Argument(help="Folder to fill. It will hold pictures of people.", show_default=False)],
    validation_share: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of the people of each gender to hold out.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Decides who is held out.")] = 0,
    detector: Annotated[
        Literal["hog", "cnn"], typer.Option(help="dlib's face detector; 'cnn' finds more poses, much more slowly.")
    ] = "hog",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
) -> None:
    """Align photographs once, for every training after it. Broken ones and those without a face are counted."""
    data = _stage("data")
    report = data.prepare_faces(
        source, cache, validation_share=validation_share, seed=seed, detector=detector, workers=workers
    )
    _print_preparation(report)


@app.command(
    epilog="Example: visard train classifier faces/ -o runs/classifier --width 32 --augmentation strong --epochs 30 "
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
    stage = _stage("classifier")
    try:
        options = stage.ClassifierOptions(
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
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with stage.main_process_first():
        caches = [_prepared(source, output / "faces") for source in data]
    report = stage.train_classifier(caches, output, options)
    _out.print(_classifier_table(report))
    _out.print(f"Classifier ready: {output / stage.RESULT_FILE}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: visard train personas faces/generated -o runs/personas --shapes faces/photos")
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
    stage = _stage("personas")
    try:
        options = stage.PersonaOptions(count=count, donors=donors_each, push=push, skin=skin, seed=seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    stage.make_personas(donors, [*donors, *(shapes or ())], output, options, report=_say)
    _say(f"Personas ready: {output / stage.SHEET_FILE}")


@app.command(
    epilog="Example: visard train persona-generator faces/london faces/photos --personas runs/personas -o runs/persona"
)
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
    stage = _stage("persona_generator")
    try:
        options = stage.PersonaTrainingOptions(
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
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    path = stage.train_persona_generator(data, personas, output, options, tone_caches=tone_data or ())
    _say(f"Persona generator ready: {path}, for --to-male and --to-female of visard export")


@app.command(
    epilog="Example: visard train persona-faces faces/london faces/london-personas --generator persona.safetensors"
)
def persona_faces(
    data: Annotated[Path, typer.Argument(help="Prepared faces.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Folder to fill, itself prepared faces.", show_default=False)],
    generator: Annotated[Path, typer.Option(help="What visard train persona-generator made.")],
    seed: Annotated[int, typer.Option(help="Decides the personas.")] = 0,
) -> None:
    """Give every face a female and a male persona: further faces for the classifier, in which hair tells nothing."""
    n = _stage("persona_faces").make_persona_faces(data, generator, output, seed=seed)
    _say(f"{n} faces in {output}")


@app.command(
    epilog="Example: visard train pairs pairs/ --generator ffhq.pkl --classifier "
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
    stage = _stage("stylegan2_pairs")
    steps = stage.SevenSteps(
        seed=seed, samples=samples, min_certainty=min_certainty, psi=psi, layers=layers, holdout=holdout
    )
    report = stage.make_pairs(
        generator,
        classifier,
        folder,
        steps,
        tries=tries,
        batch_size=batch_size,
        device=_device(device),
        suffix=f".{image_format}",
    )
    _out.print(_survival_table("Samples for the class centres", report["samples"]))
    _out.print(_survival_table("Pairs", report["pairs"]))
    _out.print(f"Pairs ready: {folder}", highlight=False, soft_wrap=True)


@app.command(
    epilog="Example: visard train swapper pairs/to_male --direction to_male -o runs/to_male --classifier "
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
    stage = _stage("swapper")
    try:
        options = stage.SwapperOptions(
            direction=direction,
            generator=stage.Pix2PixHDArchitecture(ngf=ngf, n_downsampling=downsamplings, n_blocks=blocks),
            photo_size=photo_size,
            weights=stage.LossWeights(
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
            seed=seed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    done = stage.train_swapper(
        pairs,
        output,
        options,
        vgg=vgg,
        classifier=classifier,
        initial=initial,
        licence=licence,
        report=lambda line: _out.print(line, highlight=False, soft_wrap=True),
    )
    table = Table("pairs", "broken", "steps", "minutes", "held-out error", "unchanged photos", title_justify="left")
    errors = (f"{done.holdout_l1:.2f} levels", f"{done.unchanged_l1:.2f} levels")
    table.add_row(str(done.pairs), str(done.broken), str(done.steps), f"{done.seconds / 60:.1f}", *errors)
    _out.print(table)
    _out.print(f"Generator ready: {done.checkpoint}", highlight=False, soft_wrap=True)


def _say(line: str) -> None:
    _out.print(line, highlight=False, soft_wrap=True)


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


def _stage(name: str) -> Any:
    """Load one stage; without the extra, say which one it is."""
    try:
        return import_module(f"visard_training.{name}")
    except MissingExtra:
        raise
    except ImportError as error:
        raise MissingExtra("train", f"training ({error})") from error


def _prepared(source: Path, folder: Path) -> Path:
    """The cache itself, or the one that is made of a source."""
    data = _stage("data")
    if (source / data.FACES_FILE).is_file():
        return source
    cache = folder / source.resolve().stem
    _print_preparation(data.prepare_faces(source, cache))
    return cache


def _print_preparation(report: Any) -> None:
    skipped = ", ".join(f"{n} {reason}" for reason, n in sorted(report.skipped.items())) or "none"
    _out.print(f"{report.n_faces} faces in {report.cache}; photos skipped: {skipped}", highlight=False, soft_wrap=True)


def _classifier_table(report: ClassifierReport) -> Table:
    table = Table("faces", "group", "n", "accuracy", title="Measured through the served graph", title_justify="left")
    for name, split in report.splits.items():
        table.add_row(name, "all", str(split.n), f"{split.accuracy:.1%}")
        for gender, accuracy in split.by_gender.items():
            table.add_row("", gender, str(sum(split.confusion[gender].values())), f"{accuracy:.1%}")
        for group, values in split.by_group.items():
            for value, figures in values.items():
                table.add_row("", f"{group} {value}", str(figures["n"]), f"{figures['accuracy']:.1%}")
    return table
