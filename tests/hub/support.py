"""Ledgers, servers and hubs for the tests of this folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import time
from collections.abc import AsyncIterator
from pathlib import Path

from nats.aio.client import Client

from potluck.errors import LedgerUnavailable
from potluck.hub.nats_ledger import NatsLedger, create_stream, stream_name
from potluck.hub.pipe import close
from potluck.hub.server import HUB, PEER, Cluster, NatsServer
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
async def running_cluster(directory: Path) -> AsyncIterator[list[NatsServer]]:
    """Three servers with routes through sockets of ours, which keep one ledger between them."""
    servers: list[NatsServer] = []
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(_way_to(servers, index)) for index in range(3)]
        for index in range(3):
            others = tuple(port for other, port in enumerate(ports) if other != index)
            cluster = Cluster("test", f"hub-{index}", "a secret of routes", others)
            servers.append(NatsServer(directory / str(index), RUN, PEER_PASSWORD, cluster))
            stack.push_async_callback(servers[-1].stop)
        await asyncio.gather(*(server.start() for server in servers))
        async with connection(servers[0], HUB) as hub:
            await _elected(hub)
        yield servers


async def _elected(hub: Client) -> None:
    """Make the ledger, as soon as the servers have agreed on who leads them."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await create_stream(hub, RUN, 3, 1.0)
            except LedgerUnavailable:
                continue


async def leader(server: NatsServer, run: str) -> str:
    """The name of the server that leads the ledger."""
    async with connection(server, HUB) as hub:
        reply = await hub.request(f"$JS.API.STREAM.INFO.{stream_name(run)}", b"", timeout=DEADLINE_S)
    return str(json.loads(reply.data)["cluster"]["leader"])


@contextlib.asynccontextmanager
async def _way_to(servers: list[NatsServer], index: int) -> AsyncIterator[int]:
    """A port that leads to where a server listens for routes."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = servers[index].route_address if index < len(servers) else None
        try:
            if address is not None:
                back, forth = await asyncio.open_connection(*address)
                await asyncio.gather(pump(reader, forth), pump(back, writer))
        except OSError:
            pass
        finally:
            await close(writer)

    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(carry(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listener:
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def nats_ledger(server: NatsServer, replicas: int = 1) -> AsyncIterator[NatsLedger]:
    """A peer's ledger on the server, whose stream exists afterwards."""
    async with connection(server, HUB) as hub:
        await create_stream(hub, RUN, replicas)
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
