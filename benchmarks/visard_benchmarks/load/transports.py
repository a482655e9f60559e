"""The transports to the models: what one request is, and how its answer is judged.

    gRPC            one aligned face, its pixels inside the message
    shared memory   one aligned face, its pixels in memory that server and caller both map
    gateway         one aligned face through nginx as it ships: TLS, a key and limits
    SDK             one photo through the SDK, which decodes it, finds its faces, aligns, scores and blends them
    REST            the same photo as a file through the REST API, the picture and its scores back

A transport is a value that can be handed to another process; `opened` connects and gives a function that sends. Where
it is `patient`, what was refused is tried again, as the SDK does by default. In an open loop every request is sent
once: what is sent again would not be in the offered rate.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from visard import AsyncClient, Connection, Options, Swap
from visard.wire import Direction

Send = Callable[[int], Awaitable[bool]]  # the number of a request → whether its faces came back flipped

_TARGETS: dict[Direction, int] = {"to_female": 0, "to_male": 1}  # positions in the gender tensors
_UNBOUNDED = 1024  # requests under way: more than any server here takes before it refuses


@dataclass(frozen=True, kw_only=True, eq=False)
class FaceTransport:
    """Aligned faces, one per request.

    Attributes:
        name: how reports call it.
        connection: the way there. Its deadline is the callers'.
        faces: (N, 512, 512, 3) uint8 RGB; requests take them in turn.
        direction: as for the SDK.
    """

    name: str
    connection: Connection
    faces: NDArray[np.uint8] = field(repr=False)
    direction: Direction = "opposite"

    @asynccontextmanager
    async def opened(self, *, patient: bool) -> AsyncIterator[Send]:
        """Connect."""
        async with AsyncClient(_connection(self.connection, patient), workers=1) as client:

            async def send(number: int) -> bool:
                (swap,) = await client.swap(self.faces[number % len(self.faces)], self.direction)
                return flipped(swap, self.direction)

            yield send


@dataclass(frozen=True, kw_only=True, eq=False)
class PhotoTransport:
    """Whole photos through the SDK."""

    name: str
    connection: Connection
    photo: bytes = field(repr=False)

    @asynccontextmanager
    async def opened(self, *, patient: bool) -> AsyncIterator[Send]:
        """Connect."""
        async with AsyncClient(_connection(self.connection, patient)) as client:

            async def send(_: int) -> bool:
                result = await client.anonymize(self.photo, Options(identity=False))
                return result.count("swapped") == result.faces_found

            yield send


@dataclass(frozen=True, kw_only=True, eq=False)
class RestTransport:
    """Photos as files through the REST API; the answer is JSON, because only that says whether the faces flipped."""

    name: str
    url: str
    photo: bytes = field(repr=False)
    deadline_s: float

    @asynccontextmanager
    async def opened(self, *, patient: bool) -> AsyncIterator[Send]:
        """Connect. A server that is full says so to everybody: nothing is sent twice."""
        import httpx

        del patient
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"Content-Type": "image/jpeg", "Accept": "application/json"}
        async with httpx.AsyncClient(
            base_url=self.url, timeout=self.deadline_s, limits=limits, trust_env=False
        ) as http:

            async def send(_: int) -> bool:
                try:
                    answer = await http.post("/v1/anonymize?identity=false", content=self.photo, headers=headers)
                except httpx.TimeoutException:
                    raise RequestFailed("DeadlineExceeded") from None
                except httpx.TransportError as error:
                    raise RequestFailed(type(error).__name__) from None
                if answer.is_error:
                    raise RequestFailed(answer.json()["error"])
                return not answer.json()["others"]

            yield send


Transport = FaceTransport | PhotoTransport | RestTransport


class RequestFailed(Exception):
    """A request over HTTP failed; its text is the error's name."""


def flipped(swap: Swap, direction: Direction) -> bool:
    """Whether the classifier calls the generated face what it was meant to become."""
    target = _TARGETS.get(direction)
    if target is None:
        assert swap.gender is not None  # the direction `opposite` asks for it
        target = 1 - int(swap.gender.argmax())
    return int(swap.swapped_gender.argmax()) == target


def _connection(connection: Connection, patient: bool) -> Connection:
    attempts = connection.max_attempts if patient else 1
    return replace(connection, max_in_flight=_UNBOUNDED, max_attempts=attempts)
