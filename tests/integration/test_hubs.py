"""Three hubs, each a process: one is killed, stopped or loses its disk, in the move or later."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from potluck.hub.client import HubClient
from potluck.identity import Identity
from potluck.wire.records import Move
from tests.hub.writer import Writer, whole, writing
from tests.integration.hubs import Hubs
from tests.integration.swarm import Swarm

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

RESUME_S = 15.0
"""Within so long commits go on after any one hub is lost."""


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[Hubs]:
    started = Hubs(tmp_path)
    try:
        started.start(1)
        yield started
    finally:
        started.end()


def play(hubs: Hubs, scenario: Callable[[HubClient, Writer], Awaitable[None]]) -> list[bytes]:
    """A member appends all the time; returns the records in the end, with all that were acknowledged."""

    async def main() -> list[bytes]:
        client = await HubClient.join(hubs.by_seat[1].invite, Identity.generate())
        try:
            async with writing(client.ledger) as writer:
                await scenario(client, writer)
                reached = writer.chain.sequence
                await writer.until(lambda: writer.chain.sequence > reached + 5)
            chain, records = await whole(client.ledger)
            assert chain.sequence >= writer.chain.sequence
            assert all(records[sequence - 1] == raw for sequence, raw in writer.acknowledged.items())
            return records
        finally:
            await client.close()

    return asyncio.run(main())


async def resumes(writer: Writer, since: float) -> float:
    """Wait until a record that was sent after ``since`` is acknowledged; returns how long it took."""
    last = max(writer.acknowledged)
    # What was under way when the hub went may have been acknowledged just now.
    await writer.until(lambda: max(writer.acknowledged) > last + 2)
    took = time.monotonic() - since
    assert took < RESUME_S
    return took


def moves(records: list[bytes]) -> int:
    return sum(msgspec.msgpack.decode(raw)["body"]["type"] == Move.__name__ for raw in records)


async def in_thread(work: Callable[[], object]) -> None:
    await asyncio.to_thread(work)


def seat_of(hubs: Hubs, client: HubClient) -> int:
    return next(seat for seat, hub in hubs.by_seat.items() if hub.invite.hub == client.hub)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_any_hub_may_go_and_come_again(hubs: Hubs, number: int, record_property: Callable[..., None]) -> None:
    async def scenario(client: HubClient, writer: Writer) -> None:
        await in_thread(hubs.grow)
        await in_thread(hubs.moved)
        for _ in range(3):
            seat = seat_of(hubs, client)  # that which the writer is at: the worst of the three
            hubs.by_seat[seat].signal(number)
            took = await resumes(writer, time.monotonic())
            record_property("resumed_s", round(took, 2))
            print(f"hub {seat}: appends resume after {took:.2f} s")
            assert seat_of(hubs, client) != seat or number == signal.SIGSTOP
            if number == signal.SIGSTOP:
                hubs.by_seat[seat].signal(signal.SIGCONT)
            hubs.by_seat[seat].kill()  # so that the new process says when its copy is whole again
            await in_thread(lambda seat=seat: hubs.start(seat))
            await in_thread(lambda seat=seat: hubs.moved([seat]))

    assert moves(play(hubs, scenario)) == 1


def test_a_hub_that_lost_its_ledger_gets_it_from_the_others(hubs: Hubs) -> None:
    async def scenario(client: HubClient, writer: Writer) -> None:
        await in_thread(hubs.grow)
        await in_thread(hubs.moved)
        for seat in (2, 1):
            hubs.by_seat[seat].kill()
            shutil.rmtree(hubs.by_seat[seat].directory / "cluster")
            await in_thread(lambda seat=seat: hubs.start(seat))
            await in_thread(lambda seat=seat: hubs.moved([seat]))
        # Both copies of the first two were made anew. The third goes for good.
        hubs.by_seat[3].kill()
        await resumes(writer, time.monotonic())

    assert moves(play(hubs, scenario)) == 1


@pytest.mark.parametrize("moment", ["a hub of", "records are there"])
def test_killed_in_the_middle_of_the_move_the_run_has_one_ledger(hubs: Hubs, moment: str) -> None:
    """The first hub dies when the third comes, or when it closes the old log; it goes on when it is back."""

    async def scenario(client: HubClient, writer: Writer) -> None:
        await in_thread(hubs.grow)
        await in_thread(lambda: hubs.by_seat[1].until(moment, 60))
        hubs.by_seat[1].kill()
        await in_thread(lambda: hubs.start(1))
        await resumes(writer, time.monotonic())
        await in_thread(lambda: hubs.moved([1]))
        for seat in (1, 2, 3):
            joiner = await HubClient.join(hubs.by_seat[seat].invite, Identity.generate())
            await joiner.close()

    assert moves(play(hubs, scenario)) == 1


def test_training_goes_on_when_any_hub_dies(
    hubs: Hubs, swarm: Callable[..., Swarm], record_property: Callable[..., None]
) -> None:
    s = swarm(1000, hub=hubs.by_seat[1].invite.text())
    s.join("p2")
    s.wait_round(2, 60)
    hubs.grow()
    hubs.moved()
    for seat in (1, 2):
        s.wait_round(s.view.round + 2, 30)
        round_ = s.view.round
        killed = hubs.by_seat[seat].kill()
        s.wait_round(round_ + 2, RESUME_S + 5)
        took = time.monotonic() - killed
        record_property("next_commits_s", round(took, 2))
        print(f"hub {seat}: two more rounds after {took:.2f} s")
        hubs.start(seat)
        hubs.moved([seat])
    s.until(lambda: {p.phase for p in s.observer.peers} == {"training", "following"}, 20, "all are there")
    rounds = {p.round for p in s.observer.peers}
    s.wait_round(max(rounds) + 1, 20)
    states = {p.state for p in s.observer.peers if p.round == s.observer.round}
    assert len(states) == 1
