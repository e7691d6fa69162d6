"""A peer's copy of the ledger beside the hub's: kept, compared, given back, and behind on a full disk."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from potluck.errors import CorruptData, LedgerUnavailable, StoreError
from potluck.hub.ledger import MemoryLedger
from potluck.peer import keeper as keeping
from potluck.peer.keeper import Keeper
from potluck.store.journal import Journal
from potluck.wire.records import Chain, Finish
from tests.wire.examples import A, B

DEADLINE_S = 20.0


def records(count: int, author: str = A, fork_at: int = 0) -> list[tuple[int, bytes]]:
    """A ledger; from ``fork_at`` on it is another author's."""
    chain, made = Chain(), []
    for number in range(1, count + 1):
        raw = chain.next(author if number >= fork_at else A, Finish(number, "enough"))
        made.append((number, raw))
        chain.follow(number, raw)
    return made


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal")) as opened:
        yield opened


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await work

    asyncio.run(bounded())


async def ledger_of(entries: list[tuple[int, bytes]]) -> MemoryLedger:
    ledger = MemoryLedger()
    for sequence, raw in entries:
        await ledger.append(raw, sequence - 1)
    return ledger


@pytest.mark.parametrize("theirs", [0, 1, 299, 300, 301])
def test_a_hub_that_has_less_gets_the_rest_and_one_that_has_more_keeps_it(
    journal: Journal, theirs: int
) -> None:
    every = records(301)
    journal.append(every[:300])
    notes: list[str] = []

    async def check() -> None:
        ledger = await ledger_of(every[:theirs])
        await Keeper(journal, ledger, notes.append).meet()
        assert await ledger.read(1, 1000) == every[: max(theirs, 300)]

    run(check())
    told = f"the hub's ledger ends at record {theirs}: giving it ours, up to record 300"
    assert notes == ([told] if theirs < 300 else [])


@pytest.mark.parametrize(("fork_at", "theirs"), [(1, 5), (5, 5), (3, 5), (5, 9), (3, 4), (4, 4)])
def test_a_hub_that_went_another_way_is_refused_in_words_and_nothing_is_changed(
    journal: Journal, fork_at: int, theirs: int
) -> None:
    journal.append(records(5))
    before = journal.path.read_bytes()

    async def check() -> None:
        other = records(theirs, B, fork_at)
        ledger = await ledger_of(other)
        with pytest.raises(CorruptData, match=f"has another record {fork_at} than the hub's") as caught:
            await Keeper(journal, ledger, print).meet()
        assert "potluck host --resume" in str(caught.value)
        assert await ledger.read(1, 1000) == other

    run(check())
    assert journal.path.read_bytes() == before


def test_two_that_refill_the_same_hub_at_once_get_along(tmp_path: Path) -> None:
    every = records(40)

    async def check() -> None:
        ledger = MemoryLedger()
        with closing(Journal(tmp_path / "a")) as one, closing(Journal(tmp_path / "b")) as two:
            one.append(every[:30])
            two.append(every)
            keepers = [Keeper(journal, ledger, print) for journal in (one, two)]
            await asyncio.gather(*(keeper.meet() for keeper in keepers))
        assert await ledger.read(1, 1000) == every

    run(check())


def test_a_disk_that_refuses_holds_nothing_up_and_the_journal_comes_up_to_it_later(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = records(20)
    append, notes = journal.append, []
    monkeypatch.setattr(keeping, "MEND_S", 0.0)

    def full(_: object) -> None:
        raise StoreError("the disk is full")

    async def check() -> None:
        ledger = await ledger_of(every)
        keeper = Keeper(journal, ledger, notes.append)
        for record in every[:5]:
            keeper.add(*record)
        monkeypatch.setattr(journal, "append", full)
        for record in every[5:10]:
            keeper.add(*record)
        assert (journal.sequence, len(notes)) == (5, 1)
        mending = asyncio.create_task(keeper.mend())
        read, reads = ledger.read, asyncio.Semaphore(0)

        async def hub_away(*_: int) -> list[tuple[int, bytes]]:
            reads.release()
            raise LedgerUnavailable("away")

        monkeypatch.setattr(ledger, "read", hub_away)
        for _ in range(3):
            await reads.acquire()
        monkeypatch.setattr(ledger, "read", read)
        monkeypatch.setattr(journal, "append", append)
        while journal.sequence < 20:
            await asyncio.to_thread(journal.sync)
        keeper.add(*records(21)[-1])
        assert journal.sequence == 21
        mending.cancel()

    run(check())
    assert list(journal.read()) == records(21)


def test_records_that_are_here_already_are_not_written_again(journal: Journal) -> None:
    every = records(6)
    journal.append(every[:4])
    keeper = Keeper(journal, MemoryLedger(), print)
    for record in every:
        keeper.add(*record)
    assert list(journal.read()) == every
    keeper.close()
    keeper.close()


def test_a_disk_that_does_not_sync_is_told(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise StoreError("input/output error")

    keeper = Keeper(journal, MemoryLedger(), print)
    assert keeper.sync() == ""
    monkeypatch.setattr(journal, "sync", refuse)
    assert "input/output error; this machine's copy" in keeper.sync()
