"""A run's move, record by record: broken off at every step, it leaves one ledger in force, never two."""

from __future__ import annotations

import asyncio

import pytest

from potluck.errors import CorruptData, LedgerUnavailable
from potluck.hub.ledger import BATCH, Ledger, MemoryLedger
from potluck.hub.move import Mover, is_move, signed_move, until_moved
from potluck.hub.state import CLUSTER
from potluck.identity import Identity
from potluck.wire.records import Chain, Entry, Finish, Move

from .support import DEADLINE_S

RUN = "run"
AUTHORITY = Identity.generate()
PEER = "ab" * 32
HUB = AUTHORITY.peer


class Crash(Exception):
    """The mover's process ends here."""


class Steps:
    """Lets so many steps happen; the next one crashes, before or after it took effect."""

    def __init__(self, left: int, late: bool) -> None:
        self.left, self.late = left, late

    def before(self) -> None:
        self.left -= 1
        if self.left < 0 and not self.late:
            raise Crash

    def after(self) -> None:
        if self.left < 0:
            raise Crash


class Mortal(Ledger):
    """A ledger as a mover has it that may die."""

    def __init__(self, kept: MemoryLedger, steps: Steps) -> None:
        self.kept, self.steps = kept, steps

    async def append(self, raw: bytes, after: int) -> int:
        self.steps.before()
        sequence = await self.kept.append(raw, after)
        self.steps.after()
        return sequence

    async def read(self, start: int, limit: int = BATCH) -> list[tuple[int, bytes]]:
        self.steps.before()
        found = await self.kept.read(start, limit)
        self.steps.after()
        return found

    async def changed(self, timeout_s: float) -> None:
        await self.kept.changed(timeout_s)


def ours(entry: Entry) -> bool:
    return is_move(entry, RUN, CLUSTER, HUB)


def closing(chain: Chain) -> bytes:
    return chain.next(HUB, signed_move(RUN, CLUSTER, chain, AUTHORITY, "three hubs"))


def mover(old: Ledger, new: Ledger) -> Mover:
    return Mover(old, new, ours, closing)


async def follow(ledger: Ledger) -> tuple[Chain, list[bytes], list[Entry]]:
    chain, raws, entries = Chain(), [], []
    while batch := await ledger.read(chain.sequence + 1):
        for sequence, raw in batch:
            entries.append(chain.follow(sequence, raw))
            raws.append(raw)
    return chain, raws, entries


async def is_in(ledger: Ledger) -> bool:
    """Whether the move stands there."""
    return any(ours(entry) for entry in (await follow(ledger))[2])


async def grow(ledger: Ledger, count: int = 1) -> None:
    chain, _, _ = await follow(ledger)
    for _ in range(count):
        raw = chain.next(PEER, Finish(chain.sequence, "work"))
        chain.follow(await ledger.append(raw, chain.sequence), raw)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("records", [1, 3, 40])
def test_broken_off_at_any_step_it_leaves_one_ledger_in_force(records, late):
    async def broken_off_at(step: int) -> bool:
        old, new = MemoryLedger(), MemoryLedger()
        await grow(old, records)
        steps = Steps(step, late)
        first = mover(Mortal(old, steps), Mortal(new, steps))
        try:
            await first.copy()
            await grow(old)  # the run goes on meanwhile
            await first.finish()
            crashed = False
        except Crash:
            crashed = True
        closed, moved = await is_in(old), await is_in(new)
        assert closed or not moved, "the new ledger is in force, and the old one not closed"
        assert first.closing or not closed, "the mover thinks that it can still turn back"
        assert (await follow(old))[1][: len((await follow(new))[1])] == (await follow(new))[1]
        if not closed:
            await grow(old)  # still in force
        work = sum(not ours(entry) for entry in (await follow(old))[2])
        second = mover(old, new)
        await second.copy()
        await second.finish()
        chain, raws, entries = await follow(new)
        assert raws == (await follow(old))[1]
        assert [ours(entry) for entry in entries] == [False] * (chain.sequence - 1) + [True]
        assert chain.sequence == work + 1
        return crashed

    async def main():
        step = 0
        while await broken_off_at(step):
            step += 1
        assert step > 6

    asyncio.run(main())


def test_done_twice_it_is_done_once():
    async def main():
        old, new = MemoryLedger(), MemoryLedger()
        await grow(old, 5)
        for _ in range(3):
            one = mover(old, new)
            await one.finish()
            assert (one.closed, one.copied) == (True, 6)
        assert (await follow(new))[1] == (await follow(old))[1]

    asyncio.run(main())


def test_what_gets_in_just_before_the_end_is_taken_along():
    class Busy(MemoryLedger):
        """Somebody else appends right before the log is closed."""

        left = 3

        async def append(self, raw: bytes, after: int) -> int:
            if b"Move" in raw and self.left:
                self.left -= 1
                await grow(self)
            return await super().append(raw, after)

    async def main():
        old, new = Busy(), MemoryLedger()
        await grow(old, 5)
        await mover(old, new).finish()
        chain, raws, entries = await follow(new)
        assert chain.sequence == 9
        assert raws == (await follow(old))[1]
        assert ours(entries[-1])

    asyncio.run(main())


def test_only_the_authority_moves_a_run_and_only_there():
    async def main():
        old, new = MemoryLedger(), MemoryLedger()
        await grow(old, 3)
        chain, _, _ = await follow(old)
        usurper = Identity.generate()
        forged = [
            signed_move(RUN, CLUSTER, chain, usurper, "mine now"),
            signed_move("another", CLUSTER, chain, AUTHORITY, "another run's"),
            signed_move(RUN, CLUSTER, chain, AUTHORITY, "good, but for the first forged one's place"),
            Move(CLUSTER, b"", "not signed"),
            signed_move(RUN, CLUSTER + 1, chain, AUTHORITY, "to somewhere else"),
        ]
        for body in forged:
            raw = chain.next(PEER, body)
            chain.follow(await old.append(raw, chain.sequence), raw)
        assert not await is_in(old)
        await mover(old, new).finish()
        chain, _, entries = await follow(new)
        assert chain.sequence == 9
        assert [ours(entry) for entry in entries].index(True) == 8

    asyncio.run(main())


def test_a_new_ledger_that_holds_something_else_is_refused():
    async def main():
        old, new = MemoryLedger(), MemoryLedger()
        await grow(old, 3)
        await new.append(b"something else", 0)
        with pytest.raises(CorruptData, match="record 1 of the new ledger is not that of the old one"):
            await mover(old, new).finish()
        assert not await is_in(old)

    asyncio.run(main())


def test_an_engine_that_is_away_is_asked_again_where_it_stopped():
    class Moody(MemoryLedger):
        """Takes a few records, then nothing for a while."""

        taken = 0

        async def append(self, raw: bytes, after: int) -> int:
            self.taken += 1
            if self.taken % 50 == 0:
                raise LedgerUnavailable("electing")
            return await super().append(raw, after)

    async def main():
        old, new = MemoryLedger(), Moody()
        await grow(old, 700)
        one = mover(old, new)
        tries = 0
        while not one.closed:
            tries += 1
            try:
                await one.finish()
            except LedgerUnavailable:
                assert (await follow(new))[0].sequence >= one.copied
        assert tries > 1
        assert (await follow(new))[1] == (await follow(old))[1]

    asyncio.run(main())


def test_the_other_hubs_see_when_the_move_is_there():
    async def main():
        old, new = MemoryLedger(), MemoryLedger()
        await grow(old, 5)
        waiting = asyncio.create_task(until_moved(new, ours))
        await mover(old, new).copy()
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        await mover(old, new).finish()
        async with asyncio.timeout(DEADLINE_S):
            assert await waiting == 6

    asyncio.run(main())
