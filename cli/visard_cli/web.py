"""The command `visard web`: the upload page and the REST API, until Ctrl-C."""

from __future__ import annotations

import ipaddress
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visard.blocking import Client
from visard_cli.console import (
    CaOption,
    EngineOption,
    ModelsOption,
    ServerOption,
    TlsOption,
    TokenOption,
    coloured,
    engine_for,
    err,
    usage,
    warn_untrained,
)
from visard_cli.derived import derived
from visard_cli.exit_codes import exit_help
from visard_errors import ServerError, ServerUnavailable
from visard_errors.extras import needs
from visard_web.settings import MEBIBYTE, Settings

if TYPE_CHECKING:
    from visard import Connection, Local

EPILOG = f"Example: visard web --server gpu1:8001 --api-keys keys --rate 10/minute\n\n{exit_help(4, 5, 6, 7)}"

_DEADLINE_S = 60.0  # for one face: a server on a CPU has a few photos of others to go through first

ApiKeysOption = Annotated[
    Path | None,
    typer.Option(
        help="File with a `SHA256 NAME` per line: programs must send such a key as X-API-Key, people type it into "
        "their browser as password. Read once at the start."
    ),
]


@derived
def web(
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but this machine's own (127.0.0.1) wants --api-keys and TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8080,
    server: ServerOption = None,
    models: ModelsOption = None,
    engine: EngineOption = "auto",
    tls: TlsOption = False,
    ca: CaOption = None,
    token: TokenOption = None,
    api_keys: ApiKeysOption = None,
    max_mb: Annotated[float, typer.Option(min=0.1, help="Largest upload, in MiB.")] = Settings.max_bytes / MEBIBYTE,
    keep_minutes: Annotated[
        float, typer.Option(min=0.1, max=60, help="How long the page's photos stay in memory.")
    ] = Settings.keep_s / 60,
    rate: Annotated[
        str, typer.Option(help="Uploads per caller: a number per second, minute or hour; 'none' for no limit.")
    ] = Settings.rate or "none",
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name under which browsers call this server (its addresses are known); repeatable."),
    ] = None,
    proxy: Annotated[
        str | None, typer.Option(help="Address of the proxy before this server, whose X-Forwarded-For is believed.")
    ] = None,
) -> None:
    """Serve a page to anonymise photos with, and a REST API for programs.

    Photos stay in memory: results for a few minutes under a name that nobody can guess, or until they are forgotten.
    Nothing is written to disk, and a restart forgets all.
    """
    with needs("web", "the web server"):
        from visard_web import serve
        from visard_web.keys import Keys

    settings = usage(
        lambda: Settings(
            max_bytes=int(max_mb * MEBIBYTE),
            keep_s=keep_minutes * 60,
            rate=None if rate == "none" else rate,
            keys=api_keys,
            hosts=tuple(name or ()) if _address(host) else (host, *(name or ())),
        )
    )
    if api_keys is not None:
        Keys(api_keys)  # one that lets nobody in must be known before the models are loaded
    with ExitStack() as stack:
        connection = engine_for(
            stack, server, models, engine, tls=tls, root_certificates=ca, token=token, deadline_s=_DEADLINE_S
        )
        _warn_of_models(connection)
        if api_keys is None and not _loopback(host):
            what = f"{host} can be reached from other machines, and nobody needs a key."
            advice = " Everybody can use it, and nothing is encrypted: give --api-keys, and put TLS in front."
            err.print(coloured("bold yellow", what, advice))
        listening = serve.listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        err.print(f"Visard's page: http://{shown}:{listening.getsockname()[1]}/    (Ctrl-C ends it)")
        if not serve.run(connection, settings, listening, proxy=proxy):
            raise ServerError("the web server did not start: see the log above")


def _warn_of_models(connection: Connection | Local) -> None:
    """Say loudly where weights are random, and where there is no server yet."""
    try:
        with Client(connection, workers=1) as client:
            warn_untrained(client)
    except ServerUnavailable as error:  # it may come later: /readyz says when
        err.print(coloured("yellow", str(error)))


def _address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _address(host) else host == "localhost"
