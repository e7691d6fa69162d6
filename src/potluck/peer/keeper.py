"""Keeps a peer's journal beside the ledger that it follows, and gives the hub back what the hub has lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from potluck.errors import CorruptData, LedgerConflict, LedgerUnavailable, StoreError
from potluck.hub.ledger import Ledger
from potluck.store.journal import Journal
from potluck.wire.codec import digest

MEND_S = 1.0
"""Pause after the disk refused, before the same is tried again, in seconds."""

TRIES = 5
"""So often the hub's ledger may change while it is compared; more is somebody else's refilling."""


class Keeper:
    """One journal. All but ``sync`` runs in the node's loop.

    Args:
        note: words for the log and whoever watches.
    """

    def __init__(self, journal: Journal, ledger: Ledger, note: Callable[[str], None]) -> None:
        self.journal = journal
        self._ledger, self._note = ledger, note
        self._behind = asyncio.Event()
        self._seen = 0

    # -- coming ----------------------------------------------------------------------------------

    async def meet(self) -> None:
        """Compare the hub's copy with ours; if it has less than we do, give it the rest.

        Both are chains, so if they have the same record at one place, they have the same up to there.

        Raises:
            CorruptData: the hub has another record where we have one.
            LedgerUnavailable: it went away meanwhile.
        """
        for _ in range(TRIES):
            end = self.journal.sequence
            if not end:
                return
            found = await self._ledger.read(end, 1)
            if found and digest(found[0][1]) == self.journal.head:
                return
            shared = await self._shared()
            try:
                await self._refill(shared + 1)
            except LedgerConflict:
                continue
        raise LedgerUnavailable("others are refilling the hub's ledger at the moment: try again in a minute")

    async def _shared(self) -> int:
        """How many records the hub has, all of them the same as ours."""
        theirs: list[tuple[int, bytes]] = []
        sequence = 0
        for sequence, raw in self.journal.read():
            if not theirs:
                theirs = await self._ledger.read(sequence)
                theirs.reverse()
            if not theirs:
                return sequence - 1
            if theirs.pop() != (sequence, raw):
                raise CorruptData(
                    f"this machine's copy of the ledger ({self.journal.path}) has another record {sequence} "
                    f"than the hub's: the run was resumed from a disk that lacked what this one has (up to "
                    f"record {self.journal.sequence}). Nothing is changed here. To take part in the hub's "
                    f"run, move {self.journal.path.parent} away; to go on from this disk instead: "
                    f"potluck host --resume {self.journal.path.parent}"
                )
        return sequence

    async def _refill(self, start: int) -> None:
        end = self.journal.sequence
        if start > end:
            return
        self._note(f"the hub's ledger ends at record {start - 1}: giving it ours, up to record {end}")
        for sequence, raw in self.journal.read(start):
            await self._ledger.append(raw, sequence - 1)

    # -- following -------------------------------------------------------------------------------

    def add(self, sequence: int, raw: bytes) -> None:
        """A record of the ledger, checked; what is here already is not written again.

        When the disk refuses, the run goes on all the same, and ``mend`` brings the journal up to it later.
        """
        self._seen = sequence
        if self._behind.is_set() or sequence <= self.journal.sequence:
            return
        try:
            self.journal.append([(sequence, raw)])
        except StoreError as error:
            self._note(f"{error}; this machine's copy of the ledger stays behind until then")
            self._behind.set()

    async def mend(self) -> None:
        """Bring a journal that stayed behind up to the ledger again, for ever."""
        while True:
            await self._behind.wait()
            try:
                self.journal.append(await self._ledger.read(self.journal.sequence + 1))
                if self.journal.sequence >= self._seen:
                    self._behind.clear()
            except (StoreError, LedgerUnavailable):
                await asyncio.sleep(MEND_S)

    def sync(self) -> str:
        """Return once what was added survives a crash of the machine; any thread may call.

        A disk that refuses holds nothing up, since the hub and the other peers have the records too: what is
        the matter is returned in words.
        """
        try:
            self.journal.sync()
        except StoreError as error:
            return f"{error}; this machine's copy of the ledger may lack its end after a crash"
        return ""

    def close(self) -> None:
        """Sync and close the journal. Safe to call twice."""
        if problem := self.sync():
            self._note(problem)
        self.journal.close()
