"""The command `visard`, put together from the commands beside it; errors become a line and an exit code."""

from __future__ import annotations

import io
import signal
import sys
from importlib import metadata
from typing import Annotated

import typer

from visard_cli import check, demo, evaluate, export, folder, receipt, serve, swap, train, web
from visard_cli.console import coloured, err, out
from visard_cli.exit_codes import EXIT_CODES, exit_code, exit_help
from visard_errors import VisardError

app = typer.Typer(
    name="visard",
    help="Anonymise faces in photographs by swapping their apparent gender.",
    epilog=exit_help(*EXIT_CODES.values()),
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,  # they print local variables, and ours hold faces
    add_completion=False,
    rich_markup_mode="rich",
)
app.command(epilog=swap.EPILOG)(swap.swap)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=export.EPILOG)(export.export)
app.command(epilog=folder.EPILOG)(folder.folder)
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=web.EPILOG)(web.web)
app.command(epilog=check.EPILOG)(check.check)
app.command(epilog=demo.EPILOG)(demo.demo)
app.add_typer(train.app)
app.add_typer(receipt.app)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        out.print(f"visard {metadata.version('visard')}")
        raise typer.Exit


def main() -> None:
    """Run the command line; every expected error becomes one readable line and its exit code."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # both unwind, so that servers and requests end with us
        signal.signal(signal_number, lambda number, _: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):  # not every terminal has every letter, and file names may be any bytes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except VisardError as error:
        err.print(coloured("bold red", type(error).__name__, f": {error}"), soft_wrap=True)
        sys.exit(exit_code(error))
