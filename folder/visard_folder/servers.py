"""Several servers with the same models, asked by turns; one that goes away is left out until it is back.

For callers without an event loop: the actors of `visard_folder.ray_engine`, and their driver, who looks after the
servers for the user. It knows nothing about photos.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from visard.client import Client
from visard.connection import Connection
from visard.wire import ENSEMBLES, Direction, Swap
from visard_errors import DeadlineExceeded, Overloaded, ServerError, ServerRefused, ServerUnavailable
from visard_folder.run import model_versions, same_models

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

_PAUSE_S, _PAUSE_MAX_S = 0.5, 15.0  # between two looks for servers that are away
_LOST = 5  # deadlines of one request, or servers lost over it, until it is given up: it may be what kills them


def versions(client: Client) -> dict[str, str] | None:
    """What a server serves, see `model_versions`; None where it does not say."""
    try:
        return model_versions(client.provenance())
    except ServerRefused:
        return None


def agreed_versions(connections: Sequence[Connection]) -> dict[str, str] | None:
    """What all servers serve.

    Raises:
        ServerError: one does not answer, or serves other models: results would depend on who answered.
    """
    found = {}
    for connection in connections:
        with Client(connection, workers=1) as client:
            found[connection.url] = versions(client)
    first, *others = found
    for url in others:
        if found[url] != found[first]:
            raise ServerRefused(f"{url} and {first} serve different models: serve the same on all")
    return found[first]


class Servers:
    """Servers with the same models. May be shared by threads. Close it, or use it as a context manager.

    Args:
        connections: where they are.
        direction: of the swaps that will be asked for.
        models: what they serve; one that comes back with other models is refused.
        patience_s: how long to wait while all are away; for ever where it is None.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        direction: Direction,
        models: dict[str, str] | None,
        patience_s: float | None = None,
    ) -> None:
        self._stack = ExitStack()
        attempts = 1 if len(connections) > 1 else connections[0].max_attempts  # the next attempt is at the next server
        self._clients = [
            self._stack.enter_context(Client(replace(connection, max_attempts=attempts), workers=1))
            for connection in connections
        ]
        self._ensemble = ENSEMBLES[direction]
        self._models = models
        self._patience_s = patience_s
        self._turn = itertools.count(random.randrange(len(connections)))  # noqa: S311 - so that not all begin alike
        self._locks = [threading.Lock() for _ in connections]
        self._next_look: list[float | None] = [None] * len(connections)  # None: it is there
        self._pauses = [_PAUSE_S] * len(connections)

    def __enter__(self) -> Servers:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._stack.close()

    def swap(self, aligned: NDArray[np.uint8], direction: Direction, personas: Sequence[int]) -> tuple[Swap, ...]:
        """Swap faces at the next server that is there; see `Client.swap`. Waits while none is.

        Whichever server answers in the end, the faces get the same personas.

        Raises:
            ServerError: the request is refused, brings server after server down, or they were away for too long.
        """
        lost = 0
        pause = _PAUSE_S
        while True:
            index = self._next()
            try:
                return self._clients[index].swap(aligned, direction, personas)
            except Overloaded:
                time.sleep(random.uniform(0.5, 1.0) * pause / len(self._clients))  # noqa: S311
                pause = min(2 * pause, _PAUSE_MAX_S)
            except (ServerUnavailable, DeadlineExceeded):
                lost += 1
                if lost == _LOST * len(self._clients):
                    raise
                self._leave_out(index)
            except ServerRefused:  # a server at its start lacks the models that it is about to have
                if self._ready(index):
                    raise
                self._leave_out(index)

    def _next(self) -> int:
        """The next server in turn that is there."""
        started = time.monotonic()
        while True:
            for _ in self._clients:
                index = next(self._turn) % len(self._clients)
                if self._is_there(index):
                    return index
            if self._patience_s is not None and time.monotonic() - started > self._patience_s:
                raise ServerUnavailable("all servers have been away for too long: restart them, then run this again")
            time.sleep(_PAUSE_S)

    def _is_there(self, index: int) -> bool:
        due = self._next_look[index]
        if due is None:
            return True
        if time.monotonic() < due or not self._locks[index].acquire(blocking=False):
            return False
        try:
            there = self._ready(index) and self._same_models(index)
            if there:
                self._next_look[index], self._pauses[index] = None, _PAUSE_S
            else:
                self._pauses[index] = min(1.5 * self._pauses[index], _PAUSE_MAX_S)
                self._leave_out(index)
            return there
        finally:
            self._locks[index].release()

    def _leave_out(self, index: int) -> None:
        self._next_look[index] = time.monotonic() + random.uniform(0.5, 1.0) * self._pauses[index]  # noqa: S311

    def _ready(self, index: int) -> bool:
        try:
            return self._clients[index].models()[self._ensemble]
        except ServerError:
            return False

    def _same_models(self, index: int) -> bool:
        try:
            models = versions(self._clients[index])
        except ServerError:
            return False
        return same_models(models, self._models, "a server")
