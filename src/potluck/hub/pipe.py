"""Bytes carried between an authenticated stream and a socket of this machine, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from potluck.errors import PotluckError
from potluck.hub.admission import CHUNK_BYTES
from potluck.net.transport import Stream

CLOSE_S = 1.0
"""How long the last bytes may take to reach the socket, in seconds."""


async def join(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Carry bytes until one side ends; returns which, in words. The socket is closed then."""
    try:
        return await until_one_ends(_inward(stream, writer), _outward(reader, stream))
    finally:
        await close(writer)


async def until_one_ends(*ways: Coroutine[Any, Any, str]) -> str:
    """Let all of them go on until one ends, and end the others; returns what it returned."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return "; ".join(task.result() for task in done)


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
