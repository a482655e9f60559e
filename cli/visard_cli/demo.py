"""The command `visard demo`: the complete system on a sample photo."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from visard import Client, Options
from visard_cli import outputs, report
from visard_cli.console import EngineOption, ModelsOption, engine_for, out, say, warn_untrained
from visard_cli.exit_codes import exit_help

EPILOG = exit_help(3, 4, 6, 7, 8)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("out/demo"),
    models: ModelsOption = None,
    engine: EngineOption = "auto",
) -> None:
    """Run the complete system on a sample photo: demo models, embedded server, before and after."""
    from visard_server.embedded import SAMPLE_PHOTO

    outputs.make_folder(output)
    with ExitStack() as stack:
        client = stack.enter_context(Client(engine_for(stack, None, models, engine)))
        warn_untrained(client)
        result = client.anonymize(SAMPLE_PHOTO, Options())
    table = report.scores_table()
    report.add_rows(table, SAMPLE_PHOTO, result)
    out.print(table)
    saved = outputs.save_result(result, SAMPLE_PHOTO, output / "after.png", side_by_side=True)
    saved[-1].replace(output / "before_after.png")
    outputs.write_text(output / "result.json", json.dumps(result.to_dict(), indent=2) + "\n")
    for path in (output / "before_after.png", output / "after.png"):
        say(f"Image saved: {path}")
    say(f"Scores saved: {output / 'result.json'}")
