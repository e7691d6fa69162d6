"""Keeps a peer's journal beside the ledger that it follows, and gives the hub back what the hub has lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice

from potluck.errors import CorruptData, LedgerConflict, LedgerUnavailable, StoreError
from potluck.hub.ledger import Ledger
from potluck.store.journal import Journal, read_journal
from potluck.wire.codec import digest
from potluck.wire.records import Commit

MEND_S = 1.0
"""Pause after the disk refused, before the same is tried again, in seconds."""

WINDOW = 8
"""Records on their way to a hub at a time that gets its ledger back."""

TRIES = 5
"""So often a hub may refuse what follows from what it has, and have nothing new either."""


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

        Both are chains, so if they have the same record at one place, they have the same up to there. If the
        run was resumed from a disk with a little less than ours, our end is cut off, provided that no round
        was committed in it: nothing is lost then.

        Raises:
            CorruptData: the hub has another record where we have one, and rounds are committed here since.
            LedgerUnavailable: it went away meanwhile.
        """
        window, before, tries = WINDOW, 0, TRIES
        while tries:
            end = self.journal.sequence
            if not end:
                return
            found = await self._ledger.read(end, 1)
            if found and digest(found[0][1]) == self.journal.head:
                return
            shared = await self._shared()
            tries, before = (tries - 1, before) if shared <= before else (TRIES, shared)
            try:
                await self._refill(shared + 1, window)
            except LedgerConflict:
                window = 1  # somebody else does the same
        raise LedgerUnavailable(
            f"the hub has records up to {before} and takes no more of the {self.journal.sequence} of this "
            "machine: try again in a minute"
        )

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
                self._give_up(sequence)
                return sequence - 1
        return sequence

    def _give_up(self, start: int) -> None:
        """The hub's run went another way from record ``start`` on: follow it, unless that loses a round."""
        rest = (entry.record.body for entry, _ in read_journal(self.journal.path) if entry.sequence >= start)
        lost = [body.round for body in rest if isinstance(body, Commit)]
        path = self.journal.path
        if lost:
            raise CorruptData(
                f"this machine's copy of the ledger ({path}) has another record {start} than the hub's: the "
                f"run was resumed from a disk without rounds {lost[0]} to {lost[-1]}, committed here. "
                f"Nothing is changed. To take part in the hub's run without them, move {path.parent} away; "
                f"to go on with them instead: potluck host --resume {path.parent}"
            )
        aside = self.journal.cut(start - 1)
        self._note(
            f"the run was resumed from a disk that had records up to {start - 1}: what this machine has "
            f"after them commits no round, and is moved to {aside}"
        )

    async def _refill(self, start: int, window: int) -> None:
        end = self.journal.sequence
        if start > end:
            return
        self._note(f"the hub's ledger ends at record {start - 1}: giving it ours, up to record {end}")
        records = self.journal.read(start)
        while batch := list(islice(records, window)):
            # Sent one after another over one connection, so each finds the one before it in its place.
            answers = await asyncio.gather(
                *(self._ledger.append(raw, sequence - 1) for sequence, raw in batch), return_exceptions=True
            )
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise answer

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
