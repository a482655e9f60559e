"""The command `visard`, put together from the commands beside it; errors become a line and an exit code."""

from __future__ import annotations

import io
import signal
import sys
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from visard_cli import check, demo, evaluate, export, folder, receipt, serve, settings, swap, train, video, web
from visard_cli.console import coloured, err, out, plain
from visard_cli.exit_codes import EXIT_CODES, exit_code, exit_help
from visard_errors import VisardError

_WrongUsage: Any = typer.BadParameter.__base__  # click's, or that of the copy in newer versions of typer


class _Commands(TyperGroup):
    """The commands, each with all ways to give its options."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        settings.configure(self)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see `plain` for what is said of wrong usage, which may quote file names."""
        try:
            return super().invoke(ctx)
        except _WrongUsage as error:
            error.message = plain(error.message)
            raise


app = typer.Typer(
    name="visard",
    cls=_Commands,
    help="Anonymise faces in photographs by swapping their apparent gender.",
    epilog=settings.HELP + exit_help(*EXIT_CODES.values()),
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,  # they print local variables, and ours hold faces
    rich_markup_mode="rich",
)
app.command(epilog=swap.EPILOG)(swap.swap)
app.command(epilog=video.EPILOG)(video.video)
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
    config: settings.ConfigOption = None,
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
        app(prog_name="visard")  # also where it runs as a module: the shell asks by this name what could come next
    except VisardError as error:
        err.print(coloured("bold red", type(error).__name__, f": {error}"), soft_wrap=True)
        sys.exit(exit_code(error))
