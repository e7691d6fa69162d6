"""The ledger as an interface, and its in-memory twin.

Append-only bytes in one order, by compare-and-set on the last sequence: whoever appends names the sequence
that its record follows, so that of two writers one gets ``LedgerConflict``. Sequences start at 1.
Both implementations pass ``tests/hub/test_ledger_conformance.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator

from potluck.errors import LedgerConflict, ProtocolError
from potluck.wire.codec import MAX_MESSAGE_BYTES

MAX_RECORD_BYTES = MAX_MESSAGE_BYTES - 4096
"""So that a record and what a server adds to it fit into a mebibyte, which a NATS server takes by default."""

BATCH = 256
"""Records read at a time when replaying."""


class Ledger(ABC):
    """An ordered, replicated log of records."""

    @abstractmethod
    async def append(self, raw: bytes, after: int) -> int:
        """Append one record right after sequence ``after``; returns its sequence.

        Raises:
            LedgerConflict: ``after`` is not the last sequence.
            LedgerUnavailable: no answer; the record may or may not be in (the tail tells).
            ProtocolError: the record is over ``MAX_RECORD_BYTES``.
        """

    @abstractmethod
    async def read(self, start: int, limit: int = BATCH) -> list[tuple[int, bytes]]:
        """Up to ``limit`` records from sequence ``start`` on, in order; empty when there are none yet.

        Raises:
            LedgerUnavailable: no answer.
        """

    @abstractmethod
    async def changed(self, timeout_s: float) -> None:
        """Return when a record may have been appended, or after ``timeout_s``."""

    async def tail(self, start: int, poll_s: float = 1.0) -> AsyncIterator[tuple[int, bytes]]:
        """Every record from ``start`` on, for ever. ``LedgerUnavailable`` passes through."""
        while True:
            batch = await self.read(start)
            for sequence, raw in batch:
                yield sequence, raw
                start = sequence + 1
            if not batch:
                await self.changed(poll_s)


def check_size(raw: bytes) -> None:
    """Raise ``ProtocolError`` when a record is larger than any ledger takes."""
    if len(raw) > MAX_RECORD_BYTES:
        raise ProtocolError(f"a record of {len(raw)} bytes is over {MAX_RECORD_BYTES}")


class MemoryLedger(Ledger):
    """A ledger in this process."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._changed = asyncio.Event()

    async def append(self, raw: bytes, after: int) -> int:
        check_size(raw)
        if after != len(self._records):
            raise LedgerConflict(f"record {after + 1} exists already; the ledger is at {len(self._records)}")
        self._records.append(raw)
        self._changed.set()
        self._changed = asyncio.Event()
        return len(self._records)

    async def read(self, start: int, limit: int = BATCH) -> list[tuple[int, bytes]]:
        first = max(start, 1)
        found = self._records[first - 1 : first - 1 + limit]
        return list(enumerate(found, first))

    async def changed(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
