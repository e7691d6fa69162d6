"""What every ledger does: the one in memory and the one on NATS, over the same questions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from potluck.errors import CorruptData, LedgerConflict, ProtocolError
from potluck.hub.ledger import BATCH, MAX_RECORD_BYTES, Ledger, MemoryLedger
from potluck.wire.records import Chain, Finish

from .support import DEADLINE_S, nats_ledger, running_cluster, running_server

Pair = tuple[Ledger, Ledger]
Scenario = Callable[[Ledger, Ledger], Awaitable[None]]
AUTHOR = "ab" * 32


@contextlib.asynccontextmanager
async def in_memory(_: Path) -> AsyncIterator[Pair]:
    ledger = MemoryLedger()
    yield ledger, ledger


@contextlib.asynccontextmanager
async def on_nats(directory: Path) -> AsyncIterator[Pair]:
    async with running_server(directory) as server, nats_ledger(server) as one, nats_ledger(server) as other:
        yield one, other


@contextlib.asynccontextmanager
async def on_a_cluster(directory: Path) -> AsyncIterator[Pair]:
    """Two handles on different servers of three."""
    async with (
        running_cluster(directory) as servers,
        nats_ledger(servers[0], 3) as one,
        nats_ledger(servers[1], 3) as other,
    ):
        yield one, other


@pytest.fixture(params=[in_memory, on_nats, on_a_cluster], ids=["memory", "nats", "cluster"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scenario], None]:
    """Runs a scenario with two handles on one empty ledger."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with asyncio.timeout(2 * DEADLINE_S), request.param(tmp_path) as (one, other):
                await scenario(one, other)

        asyncio.run(main())

    return run


async def fill(ledger: Ledger, count: int) -> list[tuple[int, bytes]]:
    records = [(sequence, b"record %d" % sequence) for sequence in range(1, count + 1)]
    for sequence, raw in records:
        assert await ledger.append(raw, sequence - 1) == sequence
    return records


async def replay(ledger: Ledger, start: int, limit: int = BATCH) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while batch := await ledger.read(start, limit):
        assert len(batch) <= limit
        found += batch
        start = batch[-1][0] + 1
    return found


def test_an_empty_ledger_has_no_records(play):
    async def scenario(one, other):
        assert await one.read(1) == []
        assert await other.read(0) == []
        assert await one.read(1000) == []

    play(scenario)


def test_what_one_appends_the_other_reads(play):
    async def scenario(one, other):
        records = await fill(one, 3)
        assert await other.read(1) == records
        assert await other.read(0) == records
        assert await other.append(b"", 3) == 4
        assert await one.read(4) == [(4, b"")]

    play(scenario)


def test_a_record_must_follow_the_last(play):
    async def scenario(one, other):
        with pytest.raises(LedgerConflict):
            await one.append(b"early", 1)
        await fill(one, 2)
        for after in (0, 1, 3):
            with pytest.raises(LedgerConflict):
                await other.append(b"misplaced", after)
        assert [raw for _, raw in await one.read(1)] == [b"record 1", b"record 2"]

    play(scenario)


def test_of_racing_writers_exactly_one_takes_each_sequence(play):
    async def write(ledger: Ledger, name: bytes, wins: int) -> dict[int, bytes]:
        """Append ``wins`` records, each on top of what is there, and return them by sequence."""
        won: dict[int, bytes] = {}
        last = 0
        while len(won) < wins:
            raw = name + b" %d" % len(won)
            try:
                last = await ledger.append(raw, last)
                won[last] = raw
            except LedgerConflict:
                news = await ledger.read(last + 1)
                last = news[-1][0] if news else last
        return won

    async def scenario(one, other):
        ours, theirs = await asyncio.gather(write(one, b"one", 40), write(other, b"other", 40))
        assert not ours.keys() & theirs.keys()
        assert dict(await replay(one, 1)) == ours | theirs
        assert sorted(ours | theirs) == list(range(1, 81))

    play(scenario)


def test_replay_starts_anywhere_and_stops_at_the_end(play):
    async def scenario(one, other):
        records = await fill(one, 10)
        for start in range(1, 13):
            assert await replay(other, start) == records[start - 1 :]
            assert await replay(other, start, 3) == records[start - 1 :]

    play(scenario)


def test_a_thousand_records_take_several_batches(play):
    async def scenario(one, other):
        records = await fill(one, 1000)
        assert BATCH < 1000
        assert await replay(other, 1) == records

    play(scenario)


def test_records_of_nearly_a_mebibyte(play):
    async def scenario(one, other):
        largest = [bytes([number]) * MAX_RECORD_BYTES for number in range(6)]
        for after, raw in enumerate(largest):
            await one.append(raw, after)
        assert await replay(other, 1) == list(enumerate(largest, 1))
        with pytest.raises(ProtocolError, match="1044481 bytes is over"):
            await one.append(bytes(MAX_RECORD_BYTES + 1), 6)
        assert await one.append(b"next", 6) == 7

    play(scenario)


def test_the_tail_is_live(play):
    async def scenario(one, other):
        await fill(one, 2)
        seen: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

        async def follow() -> None:
            # So long a poll that only the news of an append can be in time.
            async for record in other.tail(2, poll_s=10 * DEADLINE_S):
                seen.put_nowait(record)

        follower = asyncio.create_task(follow())
        try:
            assert await asyncio.wait_for(seen.get(), DEADLINE_S) == (2, b"record 2")
            for sequence in range(3, 30):
                await one.append(b"live", sequence - 1)
                assert await asyncio.wait_for(seen.get(), DEADLINE_S) == (sequence, b"live")
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    play(scenario)


def test_waiting_for_a_change_ends_by_itself(play):
    async def scenario(one, other):
        await one.read(1)
        await asyncio.wait_for(one.changed(0.01), DEADLINE_S)

    play(scenario)


def test_the_chain_holds_over_any_ledger(play):
    async def scenario(one, other):
        writer, reader = Chain(), Chain()
        for number in range(5):
            raw = writer.next(AUTHOR, Finish(number, "test"))
            writer.follow(await one.append(raw, number), raw)
        for sequence, raw in await other.read(1):
            reader.follow(sequence, raw)
        assert (reader.sequence, reader.head) == (5, writer.head)

    play(scenario)


def test_a_record_that_was_altered_breaks_the_chain(play):
    async def scenario(one, other):
        honest = Chain()
        for number in range(3):
            raw = honest.next(AUTHOR, Finish(number, "test"))
            honest.follow(number + 1, raw)
            # The ledger holds another second record than the one that the third names.
            stored = raw.replace(b"test", b"tesT") if number == 1 else raw
            await one.append(stored, number)
        reader = Chain()
        (_, first), (_, second), (_, third) = await other.read(1)
        reader.follow(1, first)
        reader.follow(2, second)
        with pytest.raises(CorruptData, match="do not trust this hub"):
            reader.follow(3, third)

    play(scenario)
