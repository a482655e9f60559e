"""The commands of `visard receipt`: make keys, check receipts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from visard_cli.console import coloured, err, out, say
from visard_cli.exit_codes import exit_help
from visard_errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer(
    name="receipt",
    help="Signed receipts of `visard folder` runs: make a pair of keys, check a receipt.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@app.command(epilog=f"Example: visard receipt keygen ~/keys/visard\n\n{exit_help(7, 8)}")
def keygen(
    prefix: Annotated[Path, typer.Argument(help="Where the keys go: PREFIX.key and PREFIX.pub.", show_default=False)],
) -> None:
    """Make a pair of keys: PREFIX.key signs and stays with you, PREFIX.pub goes to those who check."""
    from visard_folder.receipt import make_keys

    private, public = make_keys(prefix)
    say(f"Private key (keep it): {private}")
    say(f"Public key (give it away): {public}")


@app.command(
    epilog="Example: visard receipt verify receipt.json --key visard.pub --folder anonymised/\n\n"
    "Exit codes: 0 the receipt holds · 1 it does not · 2 wrong usage · 7 an optional part is not installed · "
    "130 interrupted."
)
def verify(
    file: Annotated[Path, typer.Argument(help="The receipt.", show_default=False)],
    key: Annotated[
        Path, typer.Option(help="Public key (.pub), from its owner and not sent with the receipt.", show_default=False)
    ],
    folder: Annotated[
        Path | None, typer.Option(help="Results whose manifests are to be those that the receipt binds.")
    ] = None,
) -> None:
    """Check that a receipt is what the owner of a key signed, to the last letter."""
    from visard_folder.receipt import verify_receipt

    try:
        receipt = verify_receipt(file, key, folder)
    except DataError as error:
        err.print(coloured("bold red", "NOT VALID", f": {error}"), soft_wrap=True)
        raise typer.Exit(1) from None
    checked = "signature and manifests" if folder else "signature; manifests were not checked, --folder does"
    out.print(coloured("bold green", "VALID", f" ({checked})"))
    out.print(_table(receipt))


def _table(receipt: Mapping[str, Any]) -> Table:
    """What a receipt says, for people."""
    table = Table("", "", show_header=False)
    table.add_row("made", f"{receipt['created']} by Visard {receipt['visard']} in {receipt['seconds']:g} s")
    table.add_row("signed with", receipt["public_key"])
    for name, counts in receipt["counts"].items():
        table.add_row(name, ", ".join(f"{key} {count}" for key, count in counts.items()) or "–")
    for name, rate in receipt["rates"].items():
        table.add_row(name.replace("_", " "), "–" if rate is None else f"{rate:.1%}")
    table.add_row("settings", ", ".join(f"{name} {value}" for name, value in receipt["settings"].items()))
    untrained = [name for name, model in receipt["models"].items() if model.get("trained") is False]
    if untrained:
        table.add_row(coloured("bold red", "untrained models"), ", ".join(untrained))
    return table
