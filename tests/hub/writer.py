"""Somebody who appends to a ledger whatever becomes of its hubs, and knows what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from potluck.errors import LedgerConflict, LedgerUnavailable
from potluck.hub.engine import end
from potluck.hub.ledger import Ledger
from potluck.wire.records import Chain, Finish

from .support import DEADLINE_S

AUTHOR = "ab" * 32


class Writer:
    """Appends records to a ledger until told, whatever becomes of its hubs."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.chain = Chain()
        self.acknowledged: dict[int, bytes] = {}
        self.news = asyncio.Event()

    async def run(self) -> None:
        while True:
            raw = self.chain.next(AUTHOR, Finish(self.chain.sequence, "x"))
            try:
                sequence = await self.ledger.append(raw, self.chain.sequence)
                self.acknowledged[sequence] = raw
            except (LedgerConflict, LedgerUnavailable):
                pass
            await self.ledger.changed(0.02)  # a pace that leaves room for others on a small machine
            with contextlib.suppress(LedgerUnavailable):
                for sequence, found in await self.ledger.read(self.chain.sequence + 1):
                    self.chain.follow(sequence, found)
                    self.news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def writing(ledger: Ledger) -> AsyncIterator[Writer]:
    writer = Writer(ledger)
    task = asyncio.create_task(writer.run())
    try:
        await writer.until(lambda: writer.chain.sequence >= 5)
        yield writer
    finally:
        await end([task])


async def whole(ledger: Ledger) -> tuple[Chain, list[bytes]]:
    chain, found = Chain(), []
    while True:
        try:
            batch = await ledger.read(chain.sequence + 1)
        except LedgerUnavailable:  # the server that was asked may have gone just now
            await ledger.changed(0.1)
            continue
        for sequence, raw in batch:
            chain.follow(sequence, raw)
            found.append(raw)
        if not batch:
            return chain, found
