"""Hubs of one run tell each other what they have in common, for as long as they are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from potluck.errors import ConnectionLost, PotluckError
from potluck.hub.between import MAX_TIDINGS_BYTES, Meet, Tidings, seek_hub
from potluck.hub.book import Book
from potluck.hub.seats import SEATS, Seat
from potluck.net.transport import Stream, Transport
from potluck.wire.codec import WIRE, decode, encode

TELL_S = 2.0
"""How often a hub with no news tells how things stand, in seconds."""

AGAIN_S = 1.0
"""Pause before a hub that is away is tried again, in seconds."""

log = logging.getLogger(__name__)


class Gossip:
    """One hub's exchange with the others."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, transport: Transport) -> None:
        """Seek the others, whoever they are at the moment."""
        for number in range(1, SEATS + 1):
            if number != self._book.state.seat:
                self._tasks.append(asyncio.create_task(self._seek(number, transport)))

    async def stop(self) -> None:
        """Tell nobody any more. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, stream: Stream, seat: Seat) -> None:
        """Exchange tidings with a hub that has asked to."""
        while True:
            await self._hear(stream, seat.hub)
            await self._tell(stream)

    async def _seek(self, number: int, transport: Transport) -> None:
        told = ""
        while True:
            await self._book.wait(lambda: self._seat(number) is not None)
            seat = self._seat(number)
            assert seat is not None
            try:
                await self._meet(seat, transport)
            except PotluckError as error:
                if str(error) != told:
                    told = str(error)
                    log.info("the hub on seat %d is away: %s", number, told)
            await asyncio.sleep(AGAIN_S)

    async def _meet(self, seat: Seat, transport: Transport) -> None:
        stream = await transport.dial(seat.addresses, seat.hub)
        try:
            await seek_hub(stream, Meet(WIRE, self._book.run), self._book.heed)
            while self._seat(seat.number) == seat:
                await self._tell(stream)
                await self._hear(stream, seat.hub)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TELL_S):
                        await self._book.next_change()
        finally:
            self._book.lose(seat.hub)
            await stream.close()

    def _seat(self, number: int) -> Seat | None:
        return next((seat for seat in self._book.others if seat.number == number and seat.addresses), None)

    async def _tell(self, stream: Stream) -> None:
        await stream.send(encode(self._book.tidings()))

    async def _hear(self, stream: Stream, hub: str) -> None:
        raw = await stream.receive(MAX_TIDINGS_BYTES)
        self._book.learn(hub, decode(raw, Tidings, MAX_TIDINGS_BYTES))
        if self._book.replaced:
            raise ConnectionLost("another hub has our seat")
