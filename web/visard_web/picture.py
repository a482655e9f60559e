"""Answers that are pictures, sent piece by piece so that a caller who stops reading does not hold one for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import Response

from visard_web.problems import ClientDisconnected

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_PIECE = 256 * 1024


class Large(Response):
    """Bytes that may be many.

    Attributes:
        piece_s: how long the caller may take for each piece of 256 KiB.
    """

    piece_s = 30.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, len(body), _PIECE):
            piece = {"type": "http.response.body", "body": bytes(body[start : start + _PIECE]), "more_body": True}
            try:
                await asyncio.wait_for(send(piece), self.piece_s)
            except asyncio.TimeoutError:
                raise ClientDisconnected from None
        await send({"type": "http.response.body", "body": b""})
