"""The commands of `visard train`: one for each stage, in the order of the data."""

from __future__ import annotations

import typer

from visard_cli.train import classifier, pairs, persona_faces, persona_generator, personas, prepare, swapper

app = typer.Typer(
    name="train",
    help=(
        "Train models on your own faces: [bold]prepare[/] aligns photographs, [bold]classifier[/] learns the "
        "apparent gender, [bold]personas[/] averages generated portraits into faces of nobody, "
        "[bold]persona-generator[/] learns to put them in a face's place. As published: [bold]pairs[/] generates the "
        "same face in both genders, [bold]swapper[/] learns the way from one to the other. A long stage that "
        "was stopped is resumed by the same command. Then: visard export."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.command(epilog=prepare.EPILOG)(prepare.prepare)
app.command(epilog=classifier.EPILOG)(classifier.classifier)
app.command(epilog=personas.EPILOG)(personas.personas)
app.command(epilog=persona_generator.EPILOG)(persona_generator.persona_generator)
app.command(epilog=persona_faces.EPILOG)(persona_faces.persona_faces)
app.command(epilog=pairs.EPILOG)(pairs.pairs)
app.command(epilog=swapper.EPILOG)(swapper.swapper)
