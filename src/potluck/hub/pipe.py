"""Bytes carried between an authenticated stream and a socket of this machine, both ways."""

from __future__ import annotations

import asyncio

from potluck.errors import PotluckError
from potluck.hub.admission import CHUNK_BYTES
from potluck.net.transport import Stream

CLOSE_S = 1.0
"""How long the last bytes may take to reach the socket, in seconds."""


async def join(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Carry bytes until one side ends; returns which, in words. The socket is closed then."""
    ways = [asyncio.create_task(_inward(stream, writer)), asyncio.create_task(_outward(reader, stream))]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        await close(writer)
    return "; ".join(way.result() for way in done)


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a socket, by force if its last bytes find no reader."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()


async def _inward(stream: Stream, writer: asyncio.StreamWriter) -> str:
    try:
        while True:
            writer.write(await stream.receive(CHUNK_BYTES))
            await writer.drain()
    except (PotluckError, OSError) as error:
        return str(error)


async def _outward(reader: asyncio.StreamReader, stream: Stream) -> str:
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            await stream.send(chunk)
    except (PotluckError, OSError) as error:
        return str(error)
    return "nats-server closed the connection"
