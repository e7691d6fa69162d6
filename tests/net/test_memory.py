"""The network in memory: conformance, and the faults that it can make."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any

import pytest

from potluck.errors import ConnectionLost, Unreachable, UsageError
from potluck.net.memory import MemoryNetwork
from potluck.net.transport import DIAL_S, SILENCE_S, Stream, Transport
from potluck.testing.clock import run_virtual
from potluck.wire.codec import digest
from tests.net.conformance import LIMIT, Acceptor, Conformance, World, leaving_nothing

A, B = digest(b"a"), digest(b"b")


class MemoryWorld(World):
    def __init__(self) -> None:
        self.network = MemoryNetwork(seed=1, loss=0.05, bytes_per_s=1e8)
        self._names = (digest(b"%d" % i) for i in count())

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        run_virtual(leaving_nothing(main), limit_s=3600)

    def member(self, *, strangers: bool = False) -> Transport:
        return self.network.transport(next(self._names), strangers=strangers)

    def outsider(self) -> Transport:
        return self.network.transport(next(self._names), authority=None)

    def foreigner(self) -> Transport:
        return self.network.transport(next(self._names), authority="another hub")

    def nowhere(self) -> str:
        return "nowhere.memory:1"


class TestMemory(Conformance):
    @pytest.fixture
    def world(self) -> World:
        return MemoryWorld()


def now() -> float:
    return asyncio.get_running_loop().time()


async def joined(network: MemoryNetwork) -> tuple[Stream, Stream]:
    """A stream between A (first) and B."""
    acceptor = await Acceptor(network.transport(B)).listen()
    near = await network.transport(A).dial(acceptor.addresses, B)
    return near, await acceptor.accepted()


async def lost_at(stream: Stream) -> tuple[float, str]:
    with pytest.raises(ConnectionLost) as caught:
        await stream.receive(LIMIT)
    return now(), str(caught.value)


def test_a_partition_is_found_by_silence_at_both_ends() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        near, far = await joined(network)
        start = now()
        network.partition(A, B)
        await near.send(b"into the void")
        for at, text in await asyncio.gather(lost_at(near), lost_at(far)):
            assert at == pytest.approx(start + SILENCE_S)
            assert "silent for 4 s" in text
        with pytest.raises(ConnectionLost):
            await near.send(b"more")

    run_virtual(main())


def test_a_short_partition_only_delays() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        near, far = await joined(network)
        network.partition(B, A)
        for i in range(10):
            await near.send(b"%d" % i)
        await asyncio.sleep(SILENCE_S - 0.5)
        network.heal(A, B)
        assert [await far.receive(10) for _ in range(10)] == [b"%d" % i for i in range(10)]
        await asyncio.sleep(60)
        await far.send(b"still here")
        assert await near.receive(10) == b"still here"

    run_virtual(main())


def test_others_do_not_feel_a_partition() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        near, far = await joined(network)
        network.partition(A, digest(b"c"))
        await asyncio.sleep(60)
        await near.send(b"hello")
        assert await far.receive(10) == b"hello"

    run_virtual(main())


def test_a_dial_over_a_partition_takes_its_time() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        acceptor = await Acceptor(network.transport(B)).listen()
        network.partition(A, B)
        start = now()
        with pytest.raises(Unreachable):
            await network.transport(A).dial(acceptor.addresses, B)
        assert now() == pytest.approx(start + DIAL_S)

    run_virtual(main())


def test_a_killed_peer_is_seen_at_once_and_can_come_back() -> None:
    async def main() -> None:
        network = MemoryNetwork(1, delay_s=(0.01, 0.02))
        acceptor, dialer = await Acceptor(network.transport(B)).listen(), network.transport(A)
        near, _ = await dialer.dial(acceptor.addresses, B), await acceptor.accepted()
        start = now()
        network.kill(B)
        at, text = await lost_at(near)
        assert 0.01 <= at - start <= 0.02
        assert "its process has ended" in text
        with pytest.raises(Unreachable, match="nobody listens"):
            await dialer.dial(acceptor.addresses, B)
        with pytest.raises(Unreachable, match="closed"):
            await acceptor.transport.dial(acceptor.addresses, B)
        heir = await Acceptor(network.transport(B)).listen()
        await dialer.dial(heir.addresses, B)
        assert (await heir.accepted()).peer == A

    run_virtual(main())


def test_a_death_behind_a_partition_is_found_by_silence() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        near, _ = await joined(network)
        start = now()
        network.partition(A, B)
        network.kill(B)
        assert (await lost_at(near))[0] == pytest.approx(start + SILENCE_S)

    run_virtual(main())


def test_a_death_is_told_when_the_partition_heals() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        near, _ = await joined(network)
        network.partition(A, B)
        network.kill(B)
        await asyncio.sleep(1)
        network.heal(A, B)
        start = now()
        at, text = await lost_at(near)
        assert at - start < 0.1
        assert "its process has ended" in text

    run_virtual(main())


def test_a_stopped_process_is_found_by_silence_and_learns_of_it() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        near, far = await joined(network)
        start = now()
        network.pause(B)
        assert (await lost_at(near))[0] == pytest.approx(start + SILENCE_S)
        receiving = asyncio.create_task(lost_at(far))
        await asyncio.sleep(100)
        assert not receiving.done()
        network.resume(B)
        at, _ = await receiving
        assert at - start < 105

    run_virtual(main())


def test_a_short_stop_only_delays() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        near, far = await joined(network)
        network.pause(B)
        await near.send(b"wake up")
        await asyncio.sleep(SILENCE_S - 0.5)
        network.resume(B)
        assert await far.receive(10) == b"wake up"

    run_virtual(main())


def test_a_blocked_sender_learns_of_the_silence() -> None:
    async def main() -> None:
        network = MemoryNetwork(1)
        near, _ = await joined(network)
        start = now()
        network.pause(B)

        async def send() -> None:
            while True:
                await near.send(bytes(100_000))

        with pytest.raises(ConnectionLost, match="silent"):
            await send()
        assert now() == pytest.approx(start + SILENCE_S)

    run_virtual(main())


def test_a_thin_link_takes_its_time_and_is_shared() -> None:
    async def main() -> None:
        network = MemoryNetwork(1, bytes_per_s=1e6)
        near, far = await joined(network)
        other_near, other_far = await joined(network)
        start = now()

        async def bulk() -> None:
            await near.send(bytes(10_000_000))

        sending = asyncio.create_task(bulk())
        await asyncio.sleep(1)
        await other_near.send(b"control")
        assert await other_far.receive(10) == b"control"
        assert now() - start < 1.5  # it did not wait for all of the bulk
        assert len(await far.receive(LIMIT)) == 10_000_000
        assert now() - start == pytest.approx(10, rel=0.05)
        await sending

    run_virtual(main())


def test_loss_delays_and_loses_nothing() -> None:
    async def arrival(loss: float) -> float:
        near, far = await joined(MemoryNetwork(1, loss=loss))
        for i in range(200):
            await near.send(b"%d" % i)
        assert [await far.receive(10) for _ in range(200)] == [b"%d" % i for i in range(200)]
        return now()

    assert run_virtual(arrival(0.5)) > run_virtual(arrival(0.0)) + 0.2


def test_the_same_seed_gives_the_same_run() -> None:
    async def times(seed: int) -> list[float]:
        network = MemoryNetwork(seed, loss=0.1, bytes_per_s=1e6)
        near, far = await joined(network)
        seen = []
        for i in range(50):
            await near.send(bytes(1000 * i))
            await far.receive(LIMIT)
            seen.append(now())
        return seen

    assert run_virtual(times(1)) == run_virtual(times(1))
    assert run_virtual(times(1)) != run_virtual(times(2))


def test_without_an_authority_nobody_can_be_listened_to() -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="authority"):
            await Acceptor(MemoryNetwork(1).transport(A, authority=None)).listen()

    run_virtual(main())
