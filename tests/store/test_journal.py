"""A peer's copy of the ledger: what was written is read back, a torn tail is cut off, damage is said."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from potluck.errors import CorruptData, StoreError
from potluck.store.journal import Journal, frame, read_journal
from potluck.wire.codec import digest
from potluck.wire.records import ZERO, Chain, Finish
from tests.wire.examples import A, B


def ledger(count: int, author: str = A) -> list[tuple[int, bytes]]:
    chain, records = Chain(), []
    for number in range(count):
        raw = chain.next(author, Finish(number, f"record {number} " + "x" * (37 * number % 300)))
        records.append((chain.sequence + 1, raw))
        chain.follow(*records[-1])
    return records


RECORDS = ledger(12)


def write(path: Path, records: list[tuple[int, bytes]] = RECORDS) -> Path:
    journal = Journal(path)
    journal.append(records)
    journal.close()
    return path


def read(path: Path) -> list[tuple[int, bytes]]:
    return [(entry.sequence, raw) for entry, raw in read_journal(path)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal")) as opened:
        yield opened


def test_what_was_written_is_read_back_by_every_later_life(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal"
    for start in range(0, 12, 4):
        journal = Journal(path)
        assert journal.sequence == start
        assert journal.head == (digest(RECORDS[start - 1][1]) if start else ZERO)
        for record in RECORDS[start : start + 4]:
            journal.append([record])
        journal.sync()
        journal.close()
    assert read(path) == RECORDS
    with closing(Journal(path)) as journal:
        assert list(journal.read(11)) == RECORDS[10:]


def test_a_torn_tail_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = write(tmp_path / "journal")
    whole = path.read_bytes()
    before = len(whole) - len(frame(*RECORDS[-1]))
    for end in range(before, len(whole)):
        path.write_bytes(whole[:end])
        assert read(path) == RECORDS[:-1], "reading alone changes nothing"
        assert path.stat().st_size == end
        journal = Journal(path)
        assert (journal.sequence, path.stat().st_size) == (11, before)
        journal.append(RECORDS[-1:])
        journal.close()
        assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [b"\0" * 500, b"\xf6PLJ" * 100, frame(13, b"record")[:-1] + b"?"])
def test_what_a_crash_leaves_behind_the_last_whole_entry_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = write(tmp_path / "journal")
    with path.open("ab") as file:
        file.write(torn)
    with closing(Journal(path)) as journal:
        assert journal.sequence == 12
    assert read(path) == RECORDS
    assert not path.with_name("journal.damaged").exists()


def test_a_flipped_byte_before_the_tail_is_said_and_its_records_come_again(tmp_path: Path) -> None:
    whole = write(tmp_path / "journal").read_bytes()
    good = len(b"".join(frame(*record) for record in RECORDS[:5]))
    for place in range(good, good + len(frame(*RECORDS[5]))):
        path = tmp_path / "journal"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CorruptData, match=r"journal is good up to record 5 and not after it: .* byte"):
            read(path)
        journal = Journal(path)
        assert journal.sequence == 5
        assert len(path.with_name("journal.damaged").read_bytes()) == len(whole) - good
        journal.append(RECORDS[5:])
        journal.close()
        assert path.read_bytes() == whole


def test_a_record_that_was_altered_with_its_check_breaks_the_chain(tmp_path: Path) -> None:
    other = ledger(12, B)
    path = tmp_path / "journal"
    path.write_bytes(b"".join(frame(*record) for record in [*RECORDS[:5], other[5], *RECORDS[6:]]))
    with pytest.raises(CorruptData, match=r"good up to record 5 .* go on from another peer's disk") as caught:
        read(path)
    assert "hub" not in str(caught.value)
    path.write_bytes(b"".join(frame(*record) for record in [*RECORDS[:5], *RECORDS[6:]]))
    with pytest.raises(CorruptData, match="record 7 came where 6 was due"):
        read(path)


def test_only_what_follows_is_appended(journal: Journal) -> None:
    journal.append(RECORDS[:3])
    for wrong in (RECORDS[2:4], RECORDS[4:], ledger(12, B)[3:]):
        with pytest.raises(CorruptData):
            journal.append(wrong)
    journal.append(RECORDS[3:])
    assert read(journal.path) == RECORDS


def test_a_full_disk_takes_all_of_a_batch_or_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(RECORDS[:3])
    file = journal._file

    class Full:
        """Takes ten bytes, and then no more."""

        def write(self, view: memoryview) -> int:
            if len(view) != total:
                raise OSError(errno.ENOSPC, "no space")
            return file.write(view[:10]) or 0

        def truncate(self, size: int) -> None:
            file.truncate(size)

    total = len(b"".join(frame(*record) for record in RECORDS[3:]))
    monkeypatch.setattr(journal, "_file", Full())
    with pytest.raises(StoreError, match="the disk is full"):
        journal.append(RECORDS[3:])
    assert read(journal.path) == RECORDS[:3]
    monkeypatch.setattr(journal, "_file", file)
    journal.append(RECORDS[3:])
    assert read(journal.path) == RECORDS


def test_it_is_synced_once_for_many_appends(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.sync()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    for record in RECORDS:
        journal.append([record])
    assert not synced
    journal.sync()
    journal.sync()
    assert len(synced) == 1


def test_reading_holds_one_record_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    chain, path = Chain(), tmp_path / "journal"
    journal = Journal(path)
    for number in range(64):
        raw = chain.next(A, Finish(number, "x"))
        large = (chain.sequence + 1, raw + b"\xc1" * 500_000)  # no record, but it has its place in the chain
        chain.follow(*large)
        journal.append([large])
    journal.close()
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_journal(path)) == 64
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_no_journal_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't read"):
        read(tmp_path / "journal")
