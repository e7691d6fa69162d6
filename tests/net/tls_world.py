"""TLS transports on this machine, for tests."""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

from potluck.identity import Identity
from potluck.net.addresses import parse_address
from potluck.net.tls import TlsTransport
from potluck.net.transport import Transport
from tests.net.conformance import Acceptor, World, leaving_nothing, soon

HERE = "127.0.0.1"


class TlsWorld(World):
    def __init__(self) -> None:
        self.hub = Identity.generate()
        self.authority = self.hub.authority()
        with socket.create_server((HERE, 0)) as closed:
            self._nowhere = f"{HERE}:{closed.getsockname()[1]}"

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        asyncio.run(leaving_nothing(main))

    def member(self, *, strangers: bool = False) -> Transport:
        identity = Identity.generate()
        certificate = self.hub.issue(self.authority, identity.peer)
        return TlsTransport(
            identity, certificate=certificate, authority=self.authority, strangers=strangers, host=HERE
        )

    def outsider(self) -> Transport:
        return TlsTransport(Identity.generate(), host=HERE)

    def foreigner(self) -> Transport:
        return TlsWorld().member()

    def nowhere(self) -> str:
        return self._nowhere


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare TCP connection."""
    return await soon(asyncio.open_connection(*parse_address(address)))


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other side ends the connection."""
    try:
        raw = await soon(reader.read())
    except ConnectionResetError:
        return b""
    assert isinstance(raw, bytes)
    return raw


async def still_works(acceptor: Acceptor, dialer: Transport) -> None:
    near = await soon(dialer.dial(acceptor.addresses, acceptor.transport.peer))
    far = await acceptor.accepted()
    await near.send(b"hello")
    assert await soon(far.receive(10)) == b"hello"
    await near.close()
