"""Ledgers, servers and hubs for the tests of this folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections.abc import AsyncIterator
from pathlib import Path

from nats.aio.client import Client

from potluck.hub.nats_ledger import NatsLedger, create_stream
from potluck.hub.server import HUB, PEER, NatsServer
from potluck.wire.messages import Progress

DEADLINE_S = 30.0
PEER_PASSWORD = "a password of peers"
RUN = "test-run"


async def _ignore(_: Exception) -> None:
    return


@contextlib.asynccontextmanager
async def running_server(directory: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(directory, RUN, PEER_PASSWORD)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def connection(server: NatsServer, user: str = PEER) -> AsyncIterator[Client]:
    assert server.address is not None
    client = Client()
    await client.connect(
        f"nats://{server.address[0]}:{server.address[1]}",
        user=user,
        password=PEER_PASSWORD if user == PEER else server.hub_password,
        allow_reconnect=False,
        error_cb=_ignore,
    )
    own = (client._reading_task, client._ping_interval_task, client._flusher_task)
    try:
        yield client
    finally:
        await client.close()
        await asyncio.gather(*own, return_exceptions=True)


@contextlib.asynccontextmanager
async def nats_ledger(server: NatsServer) -> AsyncIterator[NatsLedger]:
    """A peer's ledger on the server, whose stream exists afterwards."""
    async with connection(server, HUB) as hub:
        await create_stream(hub, RUN)
    async with connection(server) as client:
        ledger = NatsLedger(RUN)
        await ledger.attach(client)
        yield ledger


def wait_for_end(pidfd: int, deadline_s: float = DEADLINE_S) -> bool:
    """Whether the process ends within the deadline; waits on the kernel, blocking the loop."""
    try:
        return bool(select.select([pidfd], [], [], deadline_s)[0])
    finally:
        os.close(pidfd)


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def progress(peer: str, **fields: object) -> Progress:
    return Progress(peer=peer, session="life", since=int(time.time()), **fields)  # type: ignore[arg-type]
