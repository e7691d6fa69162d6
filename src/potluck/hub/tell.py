"""A hub tells peers, over the ledger's NATS, where the run's hubs are: they may soon need another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from nats.aio.client import Client

from potluck.hub.admission import Hubs, seats_subject
from potluck.hub.book import Book
from potluck.wire.codec import encode

TELL_S = 5.0
"""How often they are told when nothing has changed, in seconds."""

FLUSH_S = 3
"""How long the server may take to have heard it, in seconds."""


async def tell_on(client: Client, book: Book, holds: Callable[[], bool]) -> None:
    """Tell over this connection for as long as ``holds``."""
    while holds():
        await tell_once(client, book)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S):
                await book.next_change()


async def tell_once(client: Client, book: Book) -> None:
    """Tell them now."""
    await client.publish(seats_subject(book.run), encode(Hubs(book.seats)))
    await client.flush(FLUSH_S)
