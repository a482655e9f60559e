"""The command `visard serve`: the embedded Triton until Ctrl-C."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from visard import Client
from visard_cli.console import coloured, embedded, out, warn_untrained
from visard_cli.exit_codes import exit_help

EPILOG = exit_help(4, 6, 7)


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
                table.add_row(model, "yes" if ready else coloured("red", "no"))
            warn_untrained(client)
        out.print(table)
        for name, address in (
            ("gRPC", triton.grpc_url),
            ("HTTP", triton.http_url),
            ("metrics", triton.metrics_url),
        ):
            out.print(f"{name:8}{address}")
        out.print(f"Try: visard swap PHOTO -o OUT --server {triton.grpc_url}    (Ctrl-C ends the server)")
        triton.wait()
