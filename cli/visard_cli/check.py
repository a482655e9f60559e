"""The command `visard check`: what each command lacks here, and what a server or a repository holds."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer
from packaging.requirements import Requirement
from rich.table import Table

from visard import Client, Connection, ServerError
from visard_cli import report
from visard_cli.console import ModelsOption, coloured, out, say, usage
from visard_cli.exit_codes import exit_help
from visard_errors import CheckpointError, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from rich.text import Text

_WITH_ENGINE = {  # command → the extras that it needs besides an engine
    "swap, demo": (),
    "folder": (),
    "video": ("video",),
    "web": ("web",),
    "evaluate": ("evaluate",),
}
_WITHOUT = {
    "folder: report, Parquet, receipts, --watch": ("folder",),
    "folder --engine ray": ("ray",),
    "receipt": ("folder",),
    "evaluate --naturalness": ("evaluate", "naturalness"),
    "export": ("export",),
    "train": ("train",),
    "HEIC photos": ("heic",),
}
_VERSIONS = (
    *("visard", "dlib-bin", "face_recognition_models", "onnxruntime", "onnxruntime-gpu", "nvidia-pytriton", "numpy"),
    *("onnx", "torch", "tensorrt", "ray", "fastapi"),
)
_GPU_TIMEOUT_S = 20

EPILOG = (
    "Missing parts are optional: they are shown, and the exit code is 0. It is another one where the --server or the "
    f"--models that were named cannot be used.\n\n{exit_help(4, 6)}"
)


def check(
    server: Annotated[str | None, typer.Option(envvar="VISARD_SERVER", help="host:port of a running server.")] = None,
    models: ModelsOption = None,
) -> None:
    """Show what each command lacks on this machine and the line that helps, and what a server or repository holds."""
    commands, machine = list(_commands(models)), list(_machine())
    out.print(_table("Commands", ("command", "state"), commands))
    out.print(_table("This machine", ("what", "state"), machine))
    out.print(_table("Versions", ("package", "version"), _versions()))
    for what, _, helps in (*commands, *machine):
        if helps:
            say(f"{what}: {helps}")  # beside a table, which would break the line that is to be copied
    if models is not None:
        from visard_export.repository import read_provenance

        out.print(report.provenance_table(read_provenance(models)))
    if server is not None:
        with Client(usage(lambda: Connection(url=server))) as client:
            ready = client.models()
            missing = [model for model, there in ready.items() if not there]
            out.print(f"{server}: {len(ready) - len(missing)} of {len(ready)} models ready")
            out.print(report.provenance_table(client.provenance()))
        if missing:
            raise ServerError(f"{server} lacks {', '.join(missing)}: export the models again and restart it")


def lacks(extra: str) -> list[str]:
    """Which packages of an extra are not installed, or in a version that does not do; as the package itself says."""
    missing = []
    for line in metadata.requires("visard") or ():
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            continue  # pip has seen to what every installation needs
        if not wanted.marker.evaluate({"extra": extra}):
            continue
        if (version := _version(wanted.name)) is None:
            missing.append(wanted.name)
        elif not wanted.specifier.contains(version, prereleases=True):
            missing.append(f"{wanted.name}{wanted.specifier} (here: {version})")
    return missing


def _commands(models: Path | None) -> Iterator[tuple[str, str | Text, str]]:
    engines = {
        "local": ("ready", "") if models is not None or _has_demo_models() else _state(("local",)),
        "triton": _triton(),
    }
    yield "--engine local", *engines["local"]
    yield "--engine triton, serve", *engines["triton"]
    ready = [engine for engine, (state, _) in engines.items() if state == "ready"]
    for command, extras in _WITH_ENGINE.items():
        state, help_ = _state(extras if ready else ("local", *extras))
        yield command, f"ready ({', '.join(ready)})" if state == "ready" else state, help_
    for command, extras in _WITHOUT.items():
        yield command, *_state(extras)


def _state(extras: tuple[str, ...]) -> tuple[str | Text, str]:
    """What is missing of these extras, and what helps."""
    missing = dict.fromkeys(each for extra in extras for each in lacks(extra))
    return (coloured("yellow", f"lacks {', '.join(missing)}"), _pip(extras)) if missing else ("ready", "")


def _triton() -> tuple[str | Text, str]:
    """Whether there is an embedded server, and what helps."""
    from visard_server.wheel import find_wheel

    try:
        find_wheel()
    except MissingExtra:
        return _state(("serve",))
    except ServerError as error:
        return coloured("yellow", str(error)), ""
    return _state(("local",)) if not _has_demo_models() else ("ready", "")


def _machine() -> Iterator[tuple[str, str | Text, str]]:
    from visard_preprocess.align import PREDICTOR_FILE, installed_model
    from visard_preprocess.detect import MODEL
    from visard_preprocess.recogniser import WEIGHTS
    from visard_server.embedded import demo_models_folder

    yield "system", f"{platform.system()} on {platform.machine()}, Python {platform.python_version()}", ""
    try:
        files = (MODEL, *map(installed_model, (PREDICTOR_FILE, WEIGHTS)))
        gone = [path.name for path in files if not path.is_file()]
    except CheckpointError as error:
        gone = [str(error)]
    broken = coloured("yellow", f"lacks {', '.join(gone)}") if gone else "there"
    yield "models of the detector", broken, "pip install --force-reinstall visard face_recognition_models" * bool(gone)
    folder = demo_models_folder()
    above = next(path for path in folder.parents if path.exists())
    if _has_demo_models():
        yield "demo models", str(folder), ""
    elif not os.access(above, os.W_OK):
        yield (
            "demo models",
            coloured("yellow", f"cannot be made: {above} cannot be written"),
            "visard ... --models FOLDER",
        )
    elif lacks("local"):
        yield "demo models", *_state(("local",))
    else:
        yield "demo models", f"are made at the first use, in {folder}", ""
    gpu = _gpu()
    yield "NVIDIA GPU", gpu or "not seen: models run on the CPU", _state(("serve-gpu",))[1] if gpu else ""


def _has_demo_models() -> bool:
    from visard_server.embedded import demo_models_folder

    return demo_models_folder().is_dir()


def _gpu() -> str | None:
    """What NVIDIA's own tool says; None where there is none, or it finds nothing."""
    tool = shutil.which("nvidia-smi")
    with suppress(OSError, subprocess.SubprocessError):
        if tool is not None:
            command = [tool, "--query-gpu=name", "--format=csv,noheader"]
            found = subprocess.run(command, capture_output=True, timeout=_GPU_TIMEOUT_S, check=True)  # noqa: S603
            return ", ".join(found.stdout.decode("utf-8", "replace").split("\n")).strip(", ") or None
    return None


def _versions() -> Iterator[tuple[str, str]]:
    for package in _VERSIONS:
        if version := _version(package):
            yield package, version


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _pip(extras: Iterable[str]) -> str:
    quote = '"' if os.name == "nt" else "'"  # Windows' own shell knows one kind of quotes
    return f"pip install {quote}visard[{','.join(extras)}]{quote}"


def _table(title: str, columns: tuple[str, str], rows: Iterable[tuple[str | Text, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row[: len(columns)])
    return table
