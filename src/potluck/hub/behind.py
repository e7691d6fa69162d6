"""What stands behind a hub's door, whichever it is: a ledger, and a way to it for each peer."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from potluck.errors import LedgerUnavailable
from potluck.hub.pipe import close, join
from potluck.net.transport import Stream, Transport

if TYPE_CHECKING:
    from potluck.hub.seats import Seat
    from potluck.hub.server import NatsServer

Carry = Callable[[Stream], Awaitable[str]]
"""Carries a peer's bytes to the ledger and back until one side ends; returns which, in words."""


class Way(ABC):
    """How peers get to a ledger."""

    @abstractmethod
    def open(self) -> AbstractAsyncContextManager[Carry]:
        """A way for one peer, open inside the block.

        Raises:
            LedgerUnavailable: not now, and why.
        """


@dataclass(frozen=True)
class Here(Way):
    """To a nats-server of our own on this machine, which knows by itself what peers may do."""

    address: tuple[str, int]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Carry]:
        try:
            reader, writer = await asyncio.open_connection(*self.address)
        except OSError as error:
            raise LedgerUnavailable("the ledger is being started again") from error
        try:
            yield lambda stream: join(stream, reader, writer)
        finally:
            await close(writer)


Target = tuple[Way | None, str]
"""The way to the ledger in force, or why there is none."""


class Behind(ABC):
    """What one hub keeps behind its door, or leads to."""

    @property
    @abstractmethod
    def target(self) -> Target:
        """Where peers are led at the moment."""

    @property
    def server(self) -> NatsServer | None:
        """The nats-server of our own behind ``target``."""
        return None

    @property
    @abstractmethod
    def reached(self) -> frozenset[int]:
        """The seats of the other hubs that are there, as far as is known."""

    @abstractmethod
    async def prepare(self) -> None:
        """See to the ledger, before anybody can come.

        Raises:
            PotluckError: there is none, and why.
        """

    @abstractmethod
    async def start(self, transport: Transport) -> None:
        """Begin what other hubs or peers are needed for."""

    @abstractmethod
    async def stop(self) -> None:
        """End it. Safe to call twice."""

    async def route(self, stream: Stream, seat: Seat) -> None:
        """Lead another hub's nats-server to ours, if there is one."""
        await stream.close()
