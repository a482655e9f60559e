"""One or more servers with the same models, used in turn; a lost server is left out until it is back.

    there ──(lost, or no answer in time)──► away ──(ready again, with the same models)──► there
                                             └───(ready with other models)──► the run ends

A server with a full queue stays where it is: its faces are offered again after a pause. Models that run in this process
take the place of one server, and are never lost.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, retry_if_result, wait_random_exponential

from visard.client import AsyncClient
from visard.local import Local
from visard.wire import ENSEMBLES, Direction, Swap
from visard_errors import DeadlineExceeded, Overloaded, ServerError, ServerRefused, ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from visard.connection import Connection
    from visard_folder.photo import SwapRequest

# What of a server's models the results depend on: name → weights and precision. None where the server does not say.
Models = dict[str, str] | None

_PAUSE_S, _PAUSE_MAX_S = 0.5, 15.0  # doubled from one look at a server to the next, or from one refusal to the next
_LOST = 8  # losses of one request for each server, until it is given up: it may be what brings them down
_WATCH_S = 15.0  # between two looks at servers that nothing is asked of


def with_cores(connections: Sequence[Connection | Local], cores: int) -> tuple[Connection | Local, ...]:
    """Give models that run in a process its share of the machine's cores."""
    return tuple(replace(each, at_once=cores) if isinstance(each, Local) else each for each in connections)


async def agreed_models(connections: Sequence[Connection | Local]) -> Models:
    """Ask what all servers serve.

    Raises:
        ServerError: one does not answer, or serves other models: results would depend on who answered.
    """
    found = {}
    for connection in connections:
        async with AsyncClient(connection, workers=1) as client:
            found[_place(connection)] = await _read_models(client)
    first, *others = found
    for url in others:
        if found[url] != found[first]:
            raise ServerRefused(f"{url} and {first} serve different models: serve the same on all")
    return found[first]


class Pool:
    """Servers with the same models. For one event loop; use it as an asynchronous context manager.

    Args:
        connections: where they are; one or more. Or one `Local`.
        direction: of the swaps that will be asked for.
        models: what they serve; one that comes back with other models is refused.
        patience_s: how long to wait while all are away; for ever where it is None.
        notice: gets a message when servers are lost and when they are back.
    """

    def __init__(
        self,
        connections: Sequence[Connection | Local],
        direction: Direction,
        models: Models,
        *,
        patience_s: float | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        alone = len(connections) == 1  # else the next attempt is at the next server
        self._servers = [
            _Server(_place(each), AsyncClient(each if alone else _once(each), workers=1))
            for each in random.sample(connections, len(connections))
        ]
        self._turn = itertools.cycle(self._servers)
        self._ensemble = ENSEMBLES[direction]
        self._models = models
        self._patience_s = patience_s
        self._notice = notice

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the connections."""
        looks = [server.look for server in self._servers if server.look is not None]
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
        for server in self._servers:
            await server.client.close()

    async def swap(self, request: SwapRequest) -> tuple[Swap, ...]:
        """Swap faces at the next server that is there; see `AsyncClient.swap`. Waits while none is.

        Asking twice is safe: whichever server answers in the end, the faces get the same personas.

        Raises:
            ServerError: the request is refused, brings server after server down, or all were away for too long.
        """
        lost = 0
        n_servers = len(self._servers)
        pauses = wait_random_exponential(multiplier=_PAUSE_S / n_servers, max=_PAUSE_MAX_S / n_servers)
        async for attempt in AsyncRetrying(retry=retry_if_exception_type(Overloaded), wait=pauses, reraise=True):
            with attempt:
                while True:
                    server = await self._next()
                    try:
                        return await server.client.swap(request.aligned, request.directions, request.personas)
                    except (ServerUnavailable, DeadlineExceeded) as error:
                        lost += 1
                        if lost == _LOST * n_servers:
                            raise
                        self._leave_out(server, error)
                    except ServerRefused as error:  # a server at its start lacks the models that it is about to have
                        if await self._is_ready(server):
                            raise
                        self._leave_out(server, error)
        raise AssertionError("it goes on until there is an answer or an error")

    async def watch(self) -> None:
        """Look at the servers now and then, until cancelled, for callers who send no requests but want the notices."""
        while True:
            for server in self._servers:
                if server.look is None:
                    try:
                        await server.client.models()
                    except ServerError as error:
                        self._leave_out(server, error)
            await asyncio.sleep(_WATCH_S)

    async def _next(self) -> _Server:
        """Wait for the next server in turn that is there."""
        started = time.monotonic()
        while True:
            for server in itertools.islice(self._turn, len(self._servers)):
                if server.is_there():
                    return server
            left = None if self._patience_s is None else self._patience_s - (time.monotonic() - started)
            looks = [server.look for server in self._servers if server.look is not None]
            back, _ = await asyncio.wait(looks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not back:
                raise self._servers[0].loss

    def _leave_out(self, server: _Server, error: ServerError) -> None:
        if server.look is None:
            server.loss = error.with_traceback(None)  # that would hold the faces of the request
            server.look = asyncio.ensure_future(self._look(server))

    async def _look(self, server: _Server) -> None:
        """Look for a server that is away until it is back."""
        told = False

        def tell(state: RetryCallState) -> None:
            nonlocal told
            if not told:
                self._notice(f"a server is away, waiting for it: {server.loss}")
            told = True

        # A server that says it is ready but loses requests must not use up a request's attempts at once.
        await asyncio.sleep(_PAUSE_S)
        pauses = wait_random_exponential(multiplier=_PAUSE_S, max=_PAUSE_MAX_S)
        is_away = retry_if_result(lambda back: not back)
        await AsyncRetrying(retry=is_away, wait=pauses, before_sleep=tell)(self._is_back, server)
        if told:
            self._notice(f"the server at {server.url} is back")
        server.look = None

    async def _is_back(self, server: _Server) -> bool:
        """Whether a server has its models again.

        Raises:
            ServerRefused: it has others, and results would depend on when they were made.
        """
        if not await self._is_ready(server):
            return False
        try:
            models = await _read_models(server.client)
        except ServerError:
            return False
        if models is None and self._models is not None:
            return False
        if models != self._models:
            raise ServerRefused(
                f"the server at {server.url} came back with other models: finish with the former, or use --force"
            )
        return True

    async def _is_ready(self, server: _Server) -> bool:
        try:
            return (await server.client.models())[self._ensemble]
        except ServerError:
            return False


@dataclass(eq=False)
class _Server:
    """One server of a pool.

    Attributes:
        url: where it is.
        client: asks it.
        look: ends when it is back, or fails where it serves other models; None as long as it is there.
        loss: how it was lost the last time.
    """

    url: str
    client: AsyncClient
    look: asyncio.Future[None] | None = None
    loss: ServerError = field(default_factory=ServerUnavailable)

    def is_there(self) -> bool:
        """Whether it may be asked.

        Raises:
            ServerRefused: it came back with other models.
        """
        if self.look is not None and self.look.done():
            self.look.result()
        return self.look is None


def _place(connection: Connection | Local) -> str:
    return os.fspath(connection.models) if isinstance(connection, Local) else connection.url


def _once(connection: Connection | Local) -> Connection | Local:
    return connection if isinstance(connection, Local) else replace(connection, max_attempts=1)


async def _read_models(client: AsyncClient) -> Models:
    try:
        provenance = await client.provenance()
    except ServerRefused:
        return None
    return {
        name: f"{str(origin.get('checkpoint_sha256'))[:16]} {origin.get('precision')}"
        for name, origin in sorted(provenance.items())
    }
