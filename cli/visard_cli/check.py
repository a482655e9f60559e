"""The command `visard check`: what is installed, what a server or a repository holds, how to get what is missing."""

from __future__ import annotations

from contextlib import suppress
from importlib import metadata, util
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from visard import Client, Connection, ServerError
from visard_cli import report
from visard_cli.console import ModelsOption, coloured, out, usage
from visard_cli.exit_codes import exit_help

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARTS = {
    # what people call it: its module, the distributions that may carry it, how to get it
    "SDK": ("visard", ("visard",), ""),
    "face detector": ("dlib", ("dlib-bin", "dlib"), "pip install visard"),
    "landmark models": ("face_recognition_models", ("face_recognition_models",), "pip install visard"),
    "embedded server": ("pytriton", ("nvidia-pytriton",), "pip install 'visard[serve]'"),
    "model runtime": ("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "pip install 'visard[serve]'"),
    "export": ("torch", ("torch",), "pip install 'visard[export]'"),
    "ONNX": ("onnx", ("onnx",), "pip install 'visard[local]'"),
    "web server": ("fastapi", ("fastapi",), "pip install 'visard[web]'"),
    "cluster engine": ("ray", ("ray",), "pip install 'visard[ray]'"),
    "TensorRT": ("tensorrt", ("tensorrt",), "pip install tensorrt (machines with an NVIDIA GPU)"),
}

EPILOG = exit_help(4, 6, 7)


def check(
    server: Annotated[str | None, typer.Option(envvar="VISARD_SERVER", help="host:port of a running server.")] = None,
    models: ModelsOption = None,
) -> None:
    """Show what is installed, what a server or model repository holds, and how to get what is missing."""
    table = Table("part", "state", "how to get it", title="Installed", title_justify="left")
    for part, (module, distributions, remedy) in _PARTS.items():
        found = _installed(module, distributions)
        table.add_row(part, found or coloured("yellow", "missing"), "" if found else remedy)
    out.print(table)
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


def _installed(module: str, distributions: Sequence[str]) -> str | None:
    """Name and version of the distribution that carries a module, None where it is not installed."""
    if util.find_spec(module) is None:
        return None
    for distribution in distributions:
        with suppress(metadata.PackageNotFoundError):
            return f"{distribution} {metadata.version(distribution)}"
    return "installed"
