"""A run moves to another engine: the same records in the same order, and never two ledgers in force.

The rule, by which anyone can tell from the records alone: an engine is in force until a ``Move`` stands in
it, the next one from then on that this ``Move`` stands in there. The old log is copied, closed by ``Move``
(nobody appends to it afterwards: the hub leads no peer there any more), and the rest is copied. Each step
can be done again: what is there already is compared, not written, so a mover that died is followed by one
that begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable

from potluck.errors import CorruptData, LedgerConflict
from potluck.hub.ledger import Ledger
from potluck.identity import Identity
from potluck.wire.records import Chain, Entry, Move, move_said

AT_ONCE = 32
"""So many records are on their way to the new log at a time."""

READ_AGAIN_S = 0.05
"""Pause before a record is looked for again that must be there, in seconds."""


def signed_move(run: str, engine: int, chain: Chain, authority: Identity, reason: str) -> Move:
    """The record that would close a log that stands where ``chain`` does."""
    said = move_said(run, engine, chain.sequence + 1, chain.head)
    return Move(engine, authority.sign(said), reason)


def is_move(entry: Entry, run: str, engine: int, authority: str) -> bool:
    """Whether a record is the move to ``engine``, signed by the ``authority`` (a key, hex) for its place."""
    body = entry.record.body
    if not isinstance(body, Move) or body.engine != engine:
        return False
    said = move_said(run, engine, entry.sequence, entry.record.previous)
    return Identity.verify(authority, said, body.signature)


class Mover:
    """Takes one run's log from ``old`` to ``new``.

    Args:
        is_ours: tells the ``Move`` to ``new`` from what others may have written.
        close: the record that closes the old log, given where it stands.
    """

    def __init__(
        self,
        old: Ledger,
        new: Ledger,
        is_ours: Callable[[Entry], bool],
        close: Callable[[Chain], bytes],
    ) -> None:
        self.closed = False
        """Whether the old log ends with the move, and the new one has it."""
        self.closing = False
        """Whether the old log may end with the move already."""
        self._old, self._new = old, new
        self._is_ours, self._close = is_ours, close
        self._chain = Chain()

    @property
    def copied(self) -> int:
        """So many records stand in the new log."""
        return self._chain.sequence

    async def copy(self, to: int = sys.maxsize) -> None:
        """Bring the new log up to the old one, or to record ``to`` at least.

        Raises:
            CorruptData: the new log holds something else already, or the old one's chain is broken.
            LedgerUnavailable: one of the two is away; do it again when it is back.
        """
        while not self.closed and self.copied < to:
            batch = await self._old.read(self.copied + 1)
            if not batch:
                return
            there = dict(await self._new.read(batch[0][0], len(batch)))
            before = self._chain.sequence, self._chain.head
            try:
                batch, is_last = self._follow(batch)
                await self._put([record for record in batch if there.get(record[0]) != record[1]])
            except BaseException:
                self._chain.sequence, self._chain.head = before  # it only counts what is there for certain
                raise
            self.closed = is_last

    def _follow(self, batch: list[tuple[int, bytes]]) -> tuple[list[tuple[int, bytes]], bool]:
        """The batch up to the move, if that is in it, and whether it is."""
        for index, (sequence, raw) in enumerate(batch):
            if self._is_ours(self._chain.follow(sequence, raw)):
                self.closing = True
                return batch[: index + 1], True
        return batch, False

    async def finish(self) -> None:
        """Close the old log, and copy the rest. Nobody else must be able to append to it any more.

        Raises: as ``copy``.
        """
        await self.copy()
        while not self.closed:
            self.closing = True
            with contextlib.suppress(LedgerConflict):  # something came in just before
                await self._old.append(self._close(self._chain), self._chain.sequence)
            await self.copy()

    async def _put(self, records: list[tuple[int, bytes]]) -> None:
        """Have records in the new log, where they may be already."""
        for start in range(0, len(records), AT_ONCE):
            some = records[start : start + AT_ONCE]
            tries = (self._new.append(raw, sequence - 1) for sequence, raw in some)
            outcomes = await asyncio.gather(*tries, return_exceptions=True)
            if any(isinstance(outcome, BaseException) for outcome in outcomes):
                for sequence, raw in some:  # one after the other, to see which is not as it should be
                    await self._append(sequence, raw)

    async def _append(self, sequence: int, raw: bytes) -> None:
        try:
            await self._new.append(raw, sequence - 1)
        except LedgerConflict:
            async for found in self._new.tail(sequence, READ_AGAIN_S):  # a server that lags may answer first
                if found != (sequence, raw):
                    raise CorruptData(
                        f"record {sequence} of the new ledger is not that of the old one: stop the new hubs, "
                        "remove their ledgers (cluster/ in their directories), and start them again"
                    ) from None
                break


async def until_moved(ledger: Ledger, is_ours: Callable[[Entry], bool]) -> int:
    """Wait until the move stands in this ledger; returns its sequence.

    Raises:
        CorruptData: its chain is broken.
        LedgerUnavailable: it went away.
    """
    chain = Chain()
    async for sequence, raw in ledger.tail(1):
        if is_ours(chain.follow(sequence, raw)):
            return sequence
    raise AssertionError("a tail has no end")
