"""A peer's way to a site's NATS: a connection of its own, made by the hub, with a gate in it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from nats.aio.client import Client

from potluck.errors import LedgerUnavailable, PotluckError
from potluck.hub.admission import CHUNK_BYTES
from potluck.hub.behind import Carry, Way
from potluck.hub.gate import Gate
from potluck.hub.pipe import CLOSE_S, until_one_ends
from potluck.hub.site import Nats, connect, version_of
from potluck.net.transport import Stream

READ_BYTES = 1 << 16
"""Of what the site's server says, at a time."""

GATE_BYTES = 1 << 13
"""Of what a peer says, before somebody else has a turn: so many short lines take milliseconds to read."""

MAX_PASSAGES = 256
"""Through one hub at a time: each is a connection at the site's NATS, which has others to serve."""

PATIENCE_S = 8.0
"""How long a peer's connection may take to be made, in seconds: less than the peer waits for our word."""

log = logging.getLogger(__name__)


class Gated(Way):
    """To the run's ledger at a site's NATS, and to nothing else there."""

    def __init__(self, site: Nats, run: str) -> None:
        self._site, self._run = site, run
        self._told = ""
        self._open = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Carry]:
        if self._open >= MAX_PASSAGES:
            raise LedgerUnavailable(f"{MAX_PASSAGES} connections lead through this hub already")
        self._open += 1
        try:
            async with self._opened() as carry:
                yield carry
        finally:
            self._open -= 1

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Carry]:
        try:
            async with asyncio.timeout(PATIENCE_S):
                client = await connect(self._site)
        except (PotluckError, TimeoutError) as error:
            self._tell(str(error) or f"none of NATS at {self._site} answers in time")
            # The site's addresses are no peer's business.
            raise LedgerUnavailable(
                "the site's NATS can't be reached at the moment; the hub's log says why"
            ) from error
        socket = _taken_over(client)
        self._tell("")
        gate = Gate(self._run, f"potluck-{self._run}-{secrets.token_hex(8)}", client.max_payload)
        try:
            yield _Passage(gate, socket, version_of(client)).carry
        finally:
            await _close(socket)

    def _tell(self, problem: str) -> None:
        """Once, however many peers want to get there."""
        if problem and problem != self._told:
            log.warning("peers can't be led to the ledger: %s", problem)
        self._told = problem


class _Passage:
    """Bytes of one peer through one gate."""

    def __init__(self, gate: Gate, site: Any, version: str) -> None:
        self._gate, self._site, self._version = gate, site, version
        self._turn = asyncio.Lock()

    async def carry(self, stream: Stream) -> str:
        """Until one side ends or the gate is over; returns why."""
        await stream.send(self._gate.greeting(self._version))
        return await until_one_ends(self._inward(stream), self._outward(stream))

    async def _inward(self, stream: Stream) -> str:
        gate = self._gate
        try:
            while not gate.over:
                data = await stream.receive(CHUNK_BYTES)
                for start in range(0, len(data), GATE_BYTES):
                    await self._pass(stream, data[start : start + GATE_BYTES])
        except (PotluckError, OSError) as error:
            return str(error)
        return gate.over

    async def _pass(self, stream: Stream, data: bytes) -> None:
        passed = self._gate.from_peer(data)
        if passed:
            self._site.write(passed)
            await self._site.drain()
        await self._say(stream, self._gate.complaints)
        await asyncio.sleep(0)

    async def _outward(self, stream: Stream) -> str:
        gate = self._gate
        try:
            while not gate.over:
                heard = await self._site.read(READ_BYTES)
                if not heard:
                    return "the site's NATS closed the connection"
                await self._say(stream, lambda heard=heard: gate.from_site(heard))  # type: ignore[misc]
        except (PotluckError, OSError) as error:
            return str(error)
        return gate.over

    async def _say(self, stream: Stream, words: Callable[[], bytes]) -> None:
        """In the order in which the gate gives them out: both ways have something to say."""
        async with self._turn:
            data = memoryview(words())
            for start in range(0, len(data), CHUNK_BYTES):
                await stream.send(data[start : start + CHUNK_BYTES])


def _taken_over(client: Client) -> Any:
    """The socket of a client that has logged in a moment ago and not begun to listen."""
    for task in (client._reading_task, client._ping_interval_task, client._flusher_task):
        assert task is not None
        task.cancel()
    return client._transport


async def _close(socket: Any) -> None:
    socket.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await socket.wait_closed()
    except (OSError, TimeoutError):
        socket.abort()
