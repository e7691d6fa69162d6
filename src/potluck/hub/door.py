"""A hub's door: strangers with an invite are let into the run, members are led to its ledger."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator

from potluck.errors import LedgerUnavailable
from potluck.hub.admission import WRONG_SECRET_S, Admitted, Attached, Denied, judge, judge_member
from potluck.hub.behind import Carry, Target, Way
from potluck.hub.book import Book
from potluck.hub.server import PEER
from potluck.net.transport import Stream
from potluck.wire.codec import encode
from potluck.wire.messages import Answer

MAX_STREAMS = 4
"""Of one peer at a time: one in use, and those of which the hub does not know yet that they are dead."""

MAX_WHY = 400
"""Characters of a reason that is passed on."""

log = logging.getLogger(__name__)


class Door:
    """Who comes to one hub, and how many are attached."""

    def __init__(self, book: Book, target: Callable[[], Target]) -> None:
        self._book, self._target = book, target
        self._attached: Counter[str] = Counter()
        self._led: set[Stream] = set()
        self._empty, self._occupied = asyncio.Event(), asyncio.Event()
        self._empty.set()

    @property
    def peers(self) -> int:
        """How many peers are attached to the ledger here."""
        return len(self._attached)

    async def admit(self, stream: Stream, raw: bytes) -> None:
        """Answer a stranger's ``Admit``."""
        book = self._book
        verdict = judge(raw, book.run, book.state.secrets, time.time())
        if isinstance(verdict, Denied):
            log.info("a stranger is not admitted: %s", verdict.reason)
            if verdict.cause == "invite":
                await asyncio.sleep(WRONG_SECRET_S)
            await stream.send(encode(verdict))
            return
        certificate = book.authority.issue(book.pem, verdict.peer)
        log.info("peer %s is admitted to %s", verdict.peer[:12], book.run)
        await stream.send(encode(Admitted(certificate, book.pem, PEER, book.state.password, book.seats)))

    async def attach(self, stream: Stream, raw: bytes) -> None:
        """Answer a member's ``Attach``, and lead it to the ledger for as long as both are there."""
        verdict = judge_member(raw, self._book.run)
        if isinstance(verdict, Answer) and verdict.ok and self._attached[stream.peer] >= MAX_STREAMS:
            verdict = Answer(False, f"you have {MAX_STREAMS} connections already", retry=True)
        if isinstance(verdict, Denied):
            await stream.send(encode(verdict))
        elif not verdict.ok:
            await self._answer(stream, verdict)
        else:
            with self._counted(stream):
                await self._lead(stream)

    async def detach_all(self) -> None:
        """Lead nobody any more; returns when nothing of them is on its way to the ledger."""
        await asyncio.gather(*(stream.close() for stream in list(self._led)))
        await self._empty.wait()

    async def idle(self, seconds: float) -> None:
        """Return once no peer has been attached for ``seconds`` in a row, from the call on."""
        while True:
            await self._empty.wait()
            try:
                async with asyncio.timeout(seconds):
                    await self._occupied.wait()
            except TimeoutError:
                if not any(told.peers for told in self._book.told.values()):
                    return

    async def _lead(self, stream: Stream) -> None:
        way, why = self._target()
        if way is None:
            await self._answer(stream, Answer(False, why, retry=True))
            return
        try:
            async with way.open() as carry:
                await self._carry(stream, way, carry)
        except LedgerUnavailable as error:
            await self._answer(stream, Answer(False, str(error)[:MAX_WHY], retry=True))

    async def _carry(self, stream: Stream, way: Way, carry: Carry) -> None:
        await self._answer(stream, Answer(True))
        if self._target()[0] != way:  # it was closed while we connected
            return
        self._led.add(stream)
        try:
            reason = await carry(stream)
        finally:
            self._led.discard(stream)
        log.info("peer %s is detached: %s", stream.peer[:12], reason)

    async def _answer(self, stream: Stream, answer: Answer) -> None:
        await stream.send(encode(Attached(answer, self._book.seats)))

    @contextlib.contextmanager
    def _counted(self, stream: Stream) -> Iterator[None]:
        peer = stream.peer
        self._attached[peer] += 1
        self._book.peers = self.peers
        self._occupied.set()
        self._empty.clear()
        try:
            yield
        finally:
            self._attached[peer] -= 1
            if not self._attached[peer]:
                del self._attached[peer]
            self._book.peers = self.peers
            if not self._attached:
                self._occupied.clear()
                self._empty.set()
