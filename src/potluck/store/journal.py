"""A peer's own copy of the ledger: one append-only file, from which the run can go on when all else is lost.

An entry is a mark, the record's length and sequence, a check over both and the record, and the record. A
crash leaves at most a torn tail, which is cut off: the hub has those records, or nobody ever built on them.
Damage before whole entries is something else, and is said.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import blake3

from potluck.errors import CorruptData
from potluck.store.store import in_words, sync_directory
from potluck.wire.records import ZERO, Chain, Entry

NAME = "journal"
"""The file's name in a peer's directory."""

MAX_RECORD_BYTES = 2 << 20
"""Upper bound of a record as it stands here: twice what any ledger takes."""

_MARK = b"\xf6PLJ"
_HEAD = struct.Struct("<4sIQ16s")
_WINDOW = 1 << 20

log = logging.getLogger(__name__)


def frame(sequence: int, raw: bytes) -> bytes:
    """One entry's bytes."""
    return _HEAD.pack(_MARK, len(raw), sequence, _check(sequence, raw)) + raw


def read_frames(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Sequence and bytes of each whole entry from here on, one in memory at a time; ends before a torn tail.

    Raises:
        CorruptData: an entry is damaged, and whole ones come after it.
    """
    while True:
        start = file.tell()
        found = _one(file)
        if found is None:
            break
        yield found
    file.seek(start)
    if _whole_after(file, start + 1):
        raise CorruptData(f"the entry at byte {start} is damaged, and whole ones come after it")
    file.seek(start)


def read_journal(path: Path) -> Iterator[tuple[Entry, bytes]]:
    """Every record of a journal, checked to be a chain, with its bytes. Changes nothing on the disk.

    Raises:
        CorruptData: damaged or altered, and where.
        StoreError: there is none, or the disk refuses.
    """
    with in_words(path, "read"), path.open("rb") as file:
        yield from chained(read_frames(file), str(path))


def chained(frames: Iterable[tuple[int, bytes]], where: str) -> Iterator[tuple[Entry, bytes]]:
    """Records in order, each checked to follow from the one before it.

    Raises:
        CorruptData: one does not, or ``frames`` raised that; the message names ``where``.
    """
    chain = Chain()
    try:
        for sequence, raw in frames:
            yield chain.follow(sequence, raw), raw
    except CorruptData as error:
        raise CorruptData(
            f"the journal {where} is good up to record {chain.sequence} and not after it: "
            f"{str(error).partition(': the hub')[0]}; go on from another peer's disk"
        ) from error


class Journal:
    """The journal of a peer that goes on writing it. One thread appends; any may ``sync``.

    Opened, a torn tail is cut off. A damaged rest is moved to ``journal.damaged`` for whoever wants to look,
    and its records come from the hub again.

    Raises:
        StoreError: the disk refuses, in any method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sequence = 0
        """Of the last record here; 0 if there is none."""
        self.head = ZERO
        """Its hash."""
        self._lock = threading.Lock()
        self._dirty = False
        with in_words(path, "open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            self._file = path.open("a+b", buffering=0)
        self._size = self._recall()
        if new:
            self._dirty = True
            with in_words(path.parent, "write to"):
                sync_directory(path.parent)

    def append(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Write records that follow the last one, all or none. ``sync`` makes them outlive a crash."""
        entries = bytearray()
        chain = Chain()
        chain.sequence, chain.head = self.sequence, self.head
        for sequence, raw in records:
            chain.follow(sequence, raw)
            entries += frame(sequence, raw)
        with self._lock, in_words(self.path, f"write {len(entries)} bytes to"):
            try:
                view = memoryview(entries)
                while view:
                    view = view[self._file.write(view) :]
            except OSError:
                self._file.truncate(self._size)
                raise
            self._size += len(entries)
            self._dirty = True
        self.sequence, self.head = chain.sequence, chain.head

    def sync(self) -> None:
        """Return once all that was appended before survives a crash of the machine."""
        with self._lock, in_words(self.path, "write to"):
            if self._dirty and not self._file.closed:
                os.fsync(self._file.fileno())
                self._dirty = False

    def read(self, start: int = 1) -> Iterator[tuple[int, bytes]]:
        """Records from sequence ``start`` on, as they are on the disk."""
        return ((entry.sequence, raw) for entry, raw in read_journal(self.path) if entry.sequence >= start)

    def close(self) -> None:
        """Close the file; ``sync`` before. Safe to call twice."""
        self._file.close()

    def _recall(self) -> int:
        """Find the end of what is good, cut the rest off, and return it in bytes."""
        good = 0
        try:
            for entry, raw in read_journal(self.path):
                self.sequence, self.head = entry.sequence, entry.hash
                good += _HEAD.size + len(raw)
        except CorruptData as error:
            aside = self.path.with_name(f"{NAME}.damaged")
            log.warning("%s (its damaged rest is in %s)", error, aside)
            with in_words(self.path, "read"), self.path.open("rb") as file, aside.open("wb") as rest:
                file.seek(good)
                while piece := file.read(_WINDOW):
                    rest.write(piece)
        with in_words(self.path, "write to"):
            if self.path.stat().st_size > good:
                self._file.truncate(good)
                os.fsync(self._file.fileno())
        return good


def _check(sequence: int, raw: bytes) -> bytes:
    hasher = blake3.blake3(sequence.to_bytes(8, "little"))
    return hasher.update(len(raw).to_bytes(4, "little")).update(raw).digest(length=16)


def _one(file: BinaryIO) -> tuple[int, bytes] | None:
    """The entry here, if it is whole."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    mark, length, sequence, check = _HEAD.unpack(head)
    if mark != _MARK or length > MAX_RECORD_BYTES:
        return None
    raw = file.read(length)
    return (sequence, raw) if len(raw) == length and _check(sequence, raw) == check else None


def _whole_after(file: BinaryIO, start: int) -> bool:
    """Whether a whole entry begins at ``start`` or later."""
    while True:
        file.seek(start)
        window = file.read(_WINDOW)
        for found in re.finditer(re.escape(_MARK), window):
            file.seek(start + found.start())
            if _one(file) is not None:
                return True
        if len(window) < _WINDOW:
            return False
        start += len(window) - len(_MARK) + 1
