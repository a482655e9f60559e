"""Shared by the commands: where they write, how they reach a server, and the warning about untrained models.

Standard output is for results, standard error for progress, warnings and errors. Strings are shown as they are, because
file names may hold what rich would read as markup or as an emoji, but nothing that a terminal would act on. What is to
be coloured is a `Text` (`coloured`).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from visard.connection import Connection
from visard.declared import words
from visard.local import Local
from visard.options import PersonaKey
from visard_errors import MissingExtra, ServerError, ServerRefused
from visard_preprocess.files import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.status import Status

    from visard.blocking import Client
    from visard_server.triton import TritonServer

T = TypeVar("T")

_EMBEDDED_ATTEMPTS = 10  # several seconds, where starting a crashed server anew takes two


class _Console(Console):
    def render_str(self, text: str, **how: Any) -> Text:  # also for what stands in tables and panels
        return super().render_str(shown(text), **how)


def shown(text: str) -> str:
    """Escape all that a terminal would act on but ends of lines; names have `one_line` for these too."""
    return "\n".join(map(one_line, text.split("\n")))


out = _Console(markup=False, emoji=False, highlight=False)
err = _Console(stderr=True, markup=False, emoji=False, highlight=False)

ModelsOption = Annotated[
    Path | None,
    typer.Option(
        "--models", envvar="VISARD_MODELS", help="Model repository to serve for this run; the demo models by default."
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server", envvar="VISARD_SERVER", help="host:port of a running server; without it one is started here."
    ),
]
Engine = Literal["auto", "triton", "local"]
ENGINE_WORDS = (
    "What runs the models where no --server is named: triton (an embedded server), local (this process), or auto "
    "(triton where it is installed)."
)
EngineOption = Annotated[
    Engine,
    typer.Option(envvar="VISARD_ENGINE", help=ENGINE_WORDS),
]
PersonaKeyOption = Annotated[
    str | None,
    typer.Option(
        "--persona-key",
        envvar="VISARD_PERSONA_KEY",
        help=f"{words(PersonaKey)} Better given in the environment: others see the list of processes.",
    ),
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Encrypt the connection to --server.")]
CaOption = Annotated[Path | None, typer.Option("--ca", help="PEM file of the authorities to trust.")]
TokenOption = Annotated[
    str | None, typer.Option("--token", envvar="VISARD_TOKEN", help="Bearer token; better given in the environment.")
]
SECRETS = {"token": "VISARD_TOKEN", "persona_key": "VISARD_PERSONA_KEY"}  # options that no file of options may have


def say(line: str) -> None:
    """Print a line, however long it is."""
    out.print(line, soft_wrap=True)


def coloured(style: str, words: str, rest: str = "") -> Text:
    """Put words that stand out before others."""
    return Text.assemble((shown(words), style), shown(rest))


def progress_line(status: Status) -> Callable[[str], None]:
    """Give what shows a line beside a spinner; rich itself would look for markup in it."""
    return lambda line: status.update(Text(shown(line)))


def plain(message: str) -> str:
    """Say what is wrong in our words alone: typer reads values with pydantic, which puts its own before them."""
    return shown(message.removeprefix("Value error, "))


def usage(make: Callable[[], T]) -> T:
    """Turn a value that a dataclass or a parser refused with ValueError into a usage error."""
    try:
        return make()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@contextmanager
def embedded(models: Path | None, **settings: Any) -> Iterator[TritonServer]:
    """Run an embedded server, saying so while it starts; see `visard_server.embedded.embedded_server`."""
    from visard_server.embedded import embedded_server

    with ExitStack() as stack:
        with err.status("Starting the embedded server") as status:
            server = stack.enter_context(embedded_server(models, progress_line(status), **settings))
        yield server


def connection_to(
    stack: ExitStack,
    server: str | None,
    models: Path | None,
    *,
    started: Callable[[TritonServer], None] = lambda server: None,
    **options: Any,
) -> Connection:
    """Say how to reach the server that was named or, where none was, one that is embedded and ends with `stack`.

    Args:
        stack: keeps the embedded server.
        server: host:port.
        models: for the embedded server; see `embedded`.
        started: is given the embedded server.
        options: of `Connection`; an embedded server is on this machine and takes its deadline alone. It is asked until
            it is back where it crashed: see `visard_server`.
    """
    if server is None:
        triton = stack.enter_context(embedded(models))
        started(triton)
        url = triton.grpc_url
        deadline = {name: value for name, value in options.items() if name == "deadline_s"}
        options = {**deadline, "max_attempts": _EMBEDDED_ATTEMPTS}
    else:
        url = server
    return usage(lambda: Connection(url=url, **options))


def engine_for(
    stack: ExitStack, server: str | None, models: Path | None, engine: Engine, **options: Any
) -> Connection | Local:
    """Say what runs the models: what `connection_to` says, or this process, see `EngineOption`."""
    if server is not None and engine == "local":
        raise typer.BadParameter("--server and --engine local exclude each other")
    if server is not None or engine == "triton" or (engine == "auto" and _has_triton()):
        return connection_to(stack, server, models, **options)
    from visard_server.embedded import demo_models

    with err.status("Loading the models") as status:
        return Local(models=models or demo_models(progress_line(status)))


def _has_triton() -> bool:
    from visard_server.wheel import find_wheel

    try:
        find_wheel()
    except (MissingExtra, ServerError) as error:
        err.print(f"No embedded server here, so the models run in this process: {error}", soft_wrap=True)
        return False
    return True


def warn_untrained(client: Client) -> dict[str, dict[str, Any]]:
    """Say loudly where a server's models have random weights.

    Returns:
        The models' provenance, see `Client.provenance`; none where the server does not tell.
    """
    try:
        provenance = client.provenance()
    except ServerRefused:
        err.print(coloured("yellow", "This server does not say where its models come from."))
        return {}
    untrained = [model for model, origin in provenance.items() if origin.get("trained") is False]
    if untrained:
        err.print(
            Panel(
                f"{', '.join(sorted(untrained))}: weights are RANDOM, nobody trained them. The pictures show that the "
                "parts work together and hide nobody. Export trained weights with `visard export`.",
                title=coloured("bold", "UNTRAINED MODELS"),
                border_style="bold red",
            )
        )
    return provenance
