"""The command line: `visard swap`, `folder`, `web`, `serve`, `evaluate`, `train`, `receipt`, `export`, `check`, `demo`.

Says what happens; the work is done by what it calls.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import ExitStack, suppress
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from visard_cli import outputs, report
from visard.client import Client
from visard.connection import Connection
from visard_cli.console import (
    DetectorOption,
    DirectionOption,
    ModelsOption,
    PersonaKeyOption,
    ServerOption,
    connection_to,
    embedded,
    err,
    out,
    usage,
    warn_untrained,
)
from visard_server.embedded import SAMPLE_PHOTO, aligned_faces, neighbour
from visard_cli.evaluate import evaluate
from visard_cli.folder import folder
from visard_cli.receipt import app as receipt_app
from visard.pipeline import Options
from visard_errors import (
    CheckpointError,
    DataError,
    ExportError,
    MissingExtra,
    OutputError,
    PhotoError,
    RepositoryError,
    ServerError,
    VisardError,
)
from visard_cli.train import app as train_app
from visard_cli.web import web

if TYPE_CHECKING:
    from collections.abc import Sequence


# What a script needs to know of a failure; the first failed photo decides where there are several.
EXIT_CODES: dict[type[VisardError], int] = {
    PhotoError: 3,
    ServerError: 4,
    CheckpointError: 5,
    DataError: 5,
    ExportError: 5,
    RepositoryError: 6,
    MissingExtra: 7,
    OutputError: 8,
}
_EXIT_HELP = (
    "Exit codes: 0 done · 1 a defect in Visard · 2 wrong usage · 3 a photo could not be anonymised · 4 the server did "
    "not answer · 5 a checkpoint, an export or training data was refused · 6 the model repository cannot be used · "
    "7 an optional part is not installed · 8 results could not be written · 130 interrupted."
)

app = typer.Typer(
    name="visard",
    help="Anonymise faces in photographs by swapping their apparent gender.",
    epilog=_EXIT_HELP,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,  # they print local variables, and ours hold faces
    add_completion=False,
    rich_markup_mode="rich",
)
app.add_typer(train_app)
app.add_typer(receipt_app)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        out.print(f"visard {metadata.version('visard')}", highlight=False)
        raise typer.Exit


@app.command(epilog="Example: visard swap family.jpg -o anonymised/ --identity --side-by-side")
def swap(
    photos: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP photos.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for one photo (.jpg, .png, .webp), else a folder.")
    ],
    server: ServerOption = None,
    models: ModelsOption = None,
    direction: DirectionOption = "opposite",
    faces: Annotated[
        Literal["all", "largest"], typer.Option(help="'largest' leaves every other face visible.")
    ] = "all",
    min_confidence: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Withhold a photo whose apparent gender is less certain than this.")
    ] = 0.5,
    detector: DetectorOption = "hog",
    persona_key: PersonaKeyOption = None,
    crops: Annotated[bool, typer.Option("--crops", help="Save the generated faces alone, 512×512 each.")] = False,
    identity: Annotated[
        bool, typer.Option("--identity", help="Also measure whether a face recogniser would still match.")
    ] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Also save before and after in one picture (shows the original!).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per photo on standard output.")] = False,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt the connection to --server.")] = False,
    ca: Annotated[Path | None, typer.Option(help="PEM file of the authorities to trust.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="VISARD_TOKEN", help="Bearer token; better given in the environment.")
    ] = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one face.")] = 30.0,
    encoded: Annotated[
        bool, typer.Option("--encoded", help="Send faces to --server as JPEG, a tenth of the bytes; see `export`.")
    ] = False,
) -> None:
    """Anonymise photos: every face found is swapped, or the photo is withheld and the reason reported."""
    targets = usage(lambda: outputs.choose_targets(photos, output, crops=crops))
    options = usage(
        lambda: Options(
            faces=faces,
            direction=direction,
            min_confidence=min_confidence,
            output="crops" if crops else "photo",
            identity=identity,
            detector=detector,
            persona_key=persona_key,
        )
    )
    failures: list[Exception] = []
    with ExitStack() as stack:
        connection = connection_to(
            stack, server, models, tls=tls, root_certificates=ca, token=token, deadline_s=deadline, encoded=encoded
        )
        client = stack.enter_context(Client(connection))
        warn_untrained(client)
        table = report.scores_table()
        outcomes = stack.enter_context(report.progress_bar(err, len(photos), show=not as_json and len(photos) > 1))
        for outcome in outcomes(client.anonymize_many(photos, options)):
            source, target = photos[outcome.index], targets[outcome.index]
            error = outcome.error
            saved: list[Path] = []
            if outcome.result is not None:
                try:
                    saved = outputs.save_result(outcome.result, source, target, side_by_side=side_by_side)
                except VisardError as failure:
                    error = failure
            if error is not None:
                failures.append(error)
            if as_json:
                sys.stdout.write(report.json_line(source, saved, outcome.result, error) + "\n")
            else:
                report.add_rows(table, source, outcome.result, error)
                for path in saved:
                    err.print(f"Image saved: {path}", highlight=False, soft_wrap=True)
    if not as_json:
        out.print(table)
    if failures:
        done = len(photos) - len(failures)
        err.print(f"[bold red]{len(failures)} of {len(photos)} photos withheld[/], {done} anonymised", highlight=False)
        raise typer.Exit(_exit_code(failures[0]))


@app.command()
def serve(
    models: Annotated[
        Path | None,
        typer.Argument(
            envvar="VISARD_MODELS", help="Model repository; the demo models by default.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Triton has no login: put a gateway before any other one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC port; 0 picks a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP port (health); 0 picks a free one.")] = 0,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Prometheus port; 0 picks a free one.")] = 0,
    shared_memory: Annotated[
        bool,
        typer.Option(
            "--shared-memory",
            help="Let callers on this machine hand faces over in shared memory. Each of them can then reach the "
            "others' faces: for callers that trust each other.",
        ),
    ] = False,
) -> None:
    """Serve a model repository with the embedded Triton until Ctrl-C."""
    with embedded(
        models,
        host=host,
        grpc_port=port,
        http_port=http_port,
        metrics_port=metrics_port,
        shared_memory=shared_memory,
    ) as triton:
        table = Table("model", "ready", title="Visard is serving", title_justify="left")
        with Client(triton.grpc_url) as client:
            for model, ready in client.models().items():
                table.add_row(model, "yes" if ready else "[red]no[/]")
            warn_untrained(client)
        out.print(table)
        for name, address in (
            ("gRPC", triton.grpc_url),
            ("HTTP", triton.http_url),
            ("metrics", triton.metrics_url),
        ):
            out.print(f"{name:8}{address}", highlight=False)
        out.print(
            f"Try: visard swap PHOTO -o OUT --server {triton.grpc_url}    (Ctrl-C ends the server)", highlight=False
        )
        triton.wait()


@app.command(
    epilog="Example: visard export models/ --classifier gender.pth --to-male to_male_net_G.pth "
    "--to-female to_female_net_G.pth --precision fp16 --profile gpu"
)
def export(
    target: Annotated[Path, typer.Argument(help="Folder for the model repository.", show_default=False)],
    classifier: Annotated[Path, typer.Option(help="ResNet-18 checkpoint (.pth, .safetensors).", show_default=False)],
    to_male: Annotated[
        Path,
        typer.Option(
            help="Generator checkpoint: a persona generator, which serves both directions, or a published pix2pixHD.",
            show_default=False,
        ),
    ],
    to_female: Annotated[
        Path, typer.Option(help="The same persona generator, or the other pix2pixHD.", show_default=False)
    ],
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option(help="fp16 keeps instance norm statistics in float32.")
    ] = "fp32",
    profile: Annotated[
        Literal["cpu", "gpu", "tensorrt"],
        typer.Option(help="Where it will be served; 'tensorrt' builds engines for the GPU of this machine, now."),
    ] = "cpu",
    encoded: Annotated[
        bool,
        typer.Option("--encoded", help="Also let faces travel as JPEG; Triton's Python needs Pillow then."),
    ] = False,
    face_photos: Annotated[
        list[Path] | None,
        typer.Option("--faces", help="Photos whose faces the exports are verified on; the sample photo by default."),
    ] = None,
) -> None:
    """Turn checkpoints into a verified, servable model repository; nothing is published out of tolerance."""
    exporting = neighbour("export", "exporting models", "visard_export.export")
    verification = np.concatenate([aligned_faces(photo) for photo in face_photos or [SAMPLE_PHOTO]])
    with err.status("Exporting") as status:
        exporting.export_repository(
            target,
            classifier=classifier,
            to_male=to_male,
            to_female=to_female,
            precision=precision,
            profile=profile,
            encoded=encoded,
            faces=verification,
            report=status.update,
        )
    out.print(f"Model repository ready: {target}", highlight=False, soft_wrap=True)
    out.print(report.passports_table(_repository_passports(target)))


app.command(epilog="Example: visard folder photos/ anonymised/ --policy blur")(folder)
app.command(epilog="Example: visard evaluate photos/ --split test --report report.html")(evaluate)
app.command(epilog="Example: visard web --server gpu1:8001 --api-keys keys --rate 10/minute")(web)


@app.command()
def check(
    server: Annotated[str | None, typer.Option(envvar="VISARD_SERVER", help="host:port of a running server.")] = None,
    models: ModelsOption = None,
) -> None:
    """Show what is installed, what a server or model repository holds, and how to get what is missing."""
    table = Table("part", "state", "how to get it", title="Installed", title_justify="left")
    for part, (module, distributions, remedy) in _PARTS.items():
        found = _installed(module, distributions)
        table.add_row(part, found or "[yellow]missing[/]", "" if found else escape(remedy))
    out.print(table)
    if models is not None:
        out.print(report.passports_table(_repository_passports(models)))
    if server is not None:
        with Client(usage(lambda: Connection(url=server))) as client:
            ready = client.models()
            missing = [model for model, there in ready.items() if not there]
            out.print(f"{server}: {len(ready) - len(missing)} of {len(ready)} models ready", highlight=False)
            out.print(report.passports_table(client.passports()))
        if missing:
            raise ServerError(f"{server} lacks {', '.join(missing)}: export the models again and restart it")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("out/demo"),
    models: ModelsOption = None,
) -> None:
    """Run the whole thing on a sample photo: demo models, embedded server, before and after."""
    with embedded(models) as triton, Client(triton.grpc_url) as client:
        warn_untrained(client)
        result = client.anonymize(SAMPLE_PHOTO, Options(identity=True))
    table = report.scores_table()
    report.add_rows(table, SAMPLE_PHOTO, result, None)
    out.print(table)
    outputs.make_folder(output)
    saved = outputs.save_result(result, SAMPLE_PHOTO, output / "after.png", side_by_side=True)
    saved[-1].replace(output / "before_after.png")
    (output / "result.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    for path in (output / "before_after.png", output / "after.png"):
        out.print(f"Image saved: {path}", highlight=False, soft_wrap=True)
    out.print(f"Scores saved: {output / 'result.json'}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; every expected error becomes one readable line and its exit code."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # both unwind, so that servers and requests end with us
        signal.signal(signal_number, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except VisardError as error:
        err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(_exit_code(error))


_PARTS = {
    # what people call it: its module, the distributions that may carry it, how to get it
    "SDK": ("visard", ("visard",), ""),
    "face detector": ("dlib", ("dlib-bin", "dlib"), "pip install visard"),
    "landmark models": ("face_recognition_models", ("face_recognition_models",), "pip install visard"),
    "embedded server": ("pytriton", ("nvidia-pytriton",), "pip install 'visard[serve]'"),
    "model runtime": ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "pip install 'visard[serve]'"),
    "export": ("torch", ("torch",), "pip install 'visard[export]'"),
    "ONNX": ("onnx", ("onnx",), "pip install 'visard[export]'"),
    "web server": ("fastapi", ("fastapi",), "pip install 'visard[web]'"),
    "cluster engine": ("ray", ("ray",), "pip install 'visard[ray]'"),
    "TensorRT": ("tensorrt", ("tensorrt",), "pip install tensorrt (machines with an NVIDIA GPU)"),
}


def _installed(module: str, distributions: Sequence[str]) -> str | None:
    """Name and version of the distribution that carries a module, None where it is not installed."""
    if util.find_spec(module) is None:
        return None
    for distribution in distributions:
        with suppress(metadata.PackageNotFoundError):
            return f"{distribution} {metadata.version(distribution)}"
    return "installed"


def _exit_code(error: Exception) -> int:
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def _repository_passports(models: Path) -> dict[str, dict[str, Any]]:
    repository = neighbour("export", "reading a model repository", "visard_export.repository")
    return cast("dict[str, dict[str, Any]]", repository.read_passports(models))
