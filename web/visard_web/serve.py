"""Runs the app with uvicorn: one process, one event loop, ended in order."""

from __future__ import annotations

import gc
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from visard_errors import ServerError
from visard_web import log
from visard_web.app import create_app

if TYPE_CHECKING:
    from visard import Connection, Local
    from visard_web.settings import Settings

DRAIN_S = 30  # what requests in flight get when the server stops
_BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """Open the port, 0 for a free one.

    Raises:
        ServerError: it is taken, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there it would let two servers share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another port, or 0 for a free one"
        ) from None
    return listening


class Server(uvicorn.Server):
    """uvicorn's, for a process in which nothing may stand still for long.

    A full garbage collection walks the 80,000 objects of the libraries, which takes 70 to 130 ms and frees nothing of
    them: once all is loaded, they are left out of it.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then set aside what is there for good."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take it back and stop."""
        gc.unfreeze()
        await super().shutdown(sockets)


def make_server(connection: Connection | Local, settings: Settings, *, proxy: str | None = None) -> uvicorn.Server:
    """Make the server; see `run`."""
    return Server(
        uvicorn.Config(
            create_app(connection, settings),
            log_config=None,
            access_log=False,  # it would name kept photos and callers' addresses
            server_header=False,
            proxy_headers=proxy is not None,
            forwarded_allow_ips=proxy,
            http="h11",
            ws="none",
            backlog=_BACKLOG,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )


def run(
    connection: Connection | Local, settings: Settings, listening: socket.socket, *, proxy: str | None = None
) -> bool:
    """Serve until Ctrl-C or SIGTERM; requests in flight are then answered first.

    Args:
        connection: to the models.
        settings: the operator's.
        listening: where; see `listen`.
        proxy: address of the one whose `X-Forwarded-For` is believed.

    Returns:
        Whether it started.
    """
    log.set_up()
    server = make_server(connection, settings, proxy=proxy)
    server.run(sockets=[listening])
    return server.started
