"""Counts the bytes that one request really takes on the wire, framing and encryption included.

A relay stands before the server for a few requests and passes every byte on. It is not there while times are taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from load_transports import Transport

_CHUNK = 1 << 16


@dataclass
class Relayed:
    """What went through a relay so far."""

    port: int = 0
    sent: int = 0
    received: int = 0


@asynccontextmanager
async def relay(host: str, port: int) -> AsyncIterator[Relayed]:
    """Listen on a free port of this machine and pass everything on to `host:port`."""
    counted = Relayed()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):  # one of the two sides is gone, or the loop ends
            there_reader, there_writer = await asyncio.open_connection(host, port)
            writers.extend((writer, there_writer))
            await asyncio.gather(pump(reader, there_writer, "sent"), pump(there_reader, writer, "received"))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        while chunk := await reader.read(_CHUNK):
            setattr(counted, name, getattr(counted, name) + len(chunk))
            writer.write(chunk)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    counted.port = server.sockets[0].getsockname()[1]
    try:
        yield counted
    finally:
        server.close()
        for writer in writers:
            writer.close()
        for writer in writers:
            with suppress(OSError):
                await writer.wait_closed()


async def bytes_per_request(transport: Transport, requests: int = 5) -> tuple[int, int]:
    """Mean bytes to the server and back for one request, on a connection that stands already."""
    host, _, port = transport.address.rpartition(":")
    async with (
        relay(host, int(port)) as counted,
        transport.at(f"127.0.0.1:{counted.port}").opened(patient=True) as send,
    ):
        await send(0)
        before = replace(counted)
        for number in range(requests):
            await send(number)
        return (counted.sent - before.sent) // requests, (counted.received - before.received) // requests
