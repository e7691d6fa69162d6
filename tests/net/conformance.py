"""What every transport does: one suite, run against each of them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from potluck.errors import ConnectionLost, ProtocolError, Refused, Unreachable
from potluck.net.transport import DIAL_S, Stream, Transport

LIMIT = 1 << 26
SOON_S = 5.0
"""Deadline of what happens at once."""


class World(ABC):
    """Where the transports under test live."""

    @abstractmethod
    def run(self, main: Coroutine[Any, Any, None]) -> None: ...

    @abstractmethod
    def member(self, *, strangers: bool = False) -> Transport: ...

    @abstractmethod
    def outsider(self) -> Transport:
        """Shows no certificate."""

    @abstractmethod
    def foreigner(self) -> Transport:
        """Shows the certificate of another authority."""

    @abstractmethod
    def nowhere(self) -> str:
        """An address at which nobody answers."""


async def leaving_nothing(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` and see that no task is left."""
    async with asyncio.timeout(60):
        await main
    await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left


class Acceptor:
    """Listens, and hands its streams to the test."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self._over = asyncio.Event()

    async def listen(self) -> Acceptor:
        self.addresses = await self.transport.listen(self._hold)
        return self

    async def accepted(self) -> Stream:
        return await soon(self.streams.get())

    async def close(self) -> None:
        self._over.set()
        await soon(self.transport.close())

    async def _hold(self, stream: Stream) -> None:
        self.streams.put_nowait(stream)
        await self._over.wait()


async def soon(work: Coroutine[Any, Any, Any], deadline_s: float = SOON_S) -> Any:
    return await asyncio.wait_for(work, deadline_s)


@contextlib.asynccontextmanager
async def pair(world: World) -> AsyncIterator[tuple[Stream, Stream]]:
    acceptor = await Acceptor(world.member()).listen()
    dialer = world.member()
    try:
        near = await dialer.dial(acceptor.addresses, acceptor.transport.peer)
        yield near, await acceptor.accepted()
    finally:
        await soon(dialer.close())
        await acceptor.close()


def content(size: int) -> bytes:
    return hashlib.shake_128(b"%d" % size).digest(size)


class Conformance(ABC):
    """Inherited by one test class per transport, which says in what world it runs."""

    @pytest.fixture
    @abstractmethod
    def world(self) -> World: ...

    def test_both_ends_know_each_other(self, world: World) -> None:
        async def main() -> None:
            acceptor = await Acceptor(world.member()).listen()
            dialer = world.member()
            near = await dialer.dial(acceptor.addresses, acceptor.transport.peer)
            far = await acceptor.accepted()
            assert near.peer == acceptor.transport.peer
            assert far.peer == dialer.peer
            assert near.peer != far.peer
            await dialer.close()
            await acceptor.close()

        world.run(main())

    @pytest.mark.parametrize("size", [0, 1, 100, 16_379, 16_380, 65_536, 1 << 20, 20_000_000])
    def test_messages_of_all_sizes_both_ways_at_once(self, world: World, size: int) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                there, back = content(size), content(size)[::-1]
                got = await soon(
                    asyncio.gather(near.send(there), far.send(back), far.receive(size), near.receive(size)),
                    20,
                )
                assert got[2] == there
                assert got[3] == back
                assert type(got[2]) is bytes
                assert size <= far.bytes_received <= near.bytes_sent <= size + 100
                assert size <= near.bytes_received <= far.bytes_sent <= size + 100

        world.run(main())

    def test_a_view_is_sent_as_its_bytes(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                numbers = memoryview(content(400_000)).cast("I")
                await soon(asyncio.gather(near.send(numbers), far.receive(LIMIT)))
                await near.send(numbers[:2])
                assert await soon(far.receive(LIMIT)) == content(400_000)[:8]

        world.run(main())

    def test_many_messages_keep_their_order(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                sizes = [(i * 7919) % 40_000 for i in range(1000)]

                async def send() -> None:
                    for i, size in enumerate(sizes):
                        await near.send(i.to_bytes(4) + bytes(size))

                sending = asyncio.create_task(send())
                for i, size in enumerate(sizes):
                    message = await soon(far.receive(LIMIT))
                    assert (int.from_bytes(message[:4]), len(message)) == (i, size + 4)
                await sending

        world.run(main())

    def test_concurrent_senders_take_turns(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                bodies = [bytes([i]) * 700_000 for i in range(8)]
                sending = asyncio.gather(*(near.send(body) for body in bodies))
                assert sorted([await soon(far.receive(LIMIT)) for _ in bodies]) == bodies
                await sending

        world.run(main())

    def test_a_receive_can_be_given_up_and_taken_up_again(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(far.receive(LIMIT), 0.01)
                body = content(3_000_000)
                receiving = asyncio.create_task(far.receive(LIMIT))
                await near.send(body[:10])
                sending = asyncio.create_task(near.send(body))
                assert await soon(receiving) == body[:10]
                receiving = asyncio.create_task(far.receive(LIMIT))
                await asyncio.sleep(0)
                receiving.cancel()
                assert await soon(far.receive(LIMIT)) == body
                await sending

        world.run(main())

    def test_an_oversize_message_ends_the_stream(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                await near.send(bytes(1000))
                assert await soon(far.receive(1000)) == bytes(1000)
                await near.send(bytes(1001))
                with pytest.raises(ProtocolError, match="1001 bytes is announced where 1000 are allowed"):
                    await soon(far.receive(1000))
                with pytest.raises(ProtocolError):
                    await soon(far.receive(LIMIT))
                with pytest.raises(ConnectionLost):
                    await soon(near.receive(LIMIT))
                with pytest.raises(ConnectionLost):
                    await near.send(b"more")

        world.run(main())

    def test_a_close_is_seen_after_what_was_sent(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                await near.send(b"last words")
                await soon(near.close())
                await soon(near.close())
                assert await soon(far.receive(LIMIT)) == b"last words"
                with pytest.raises(ConnectionLost, match="closed"):
                    await soon(far.receive(LIMIT))
                with pytest.raises(ConnectionLost):
                    await far.send(b"anybody there?")
                for call in (near.receive(LIMIT), near.send(b"more")):
                    with pytest.raises(ConnectionLost, match="closed on this side"):
                        await call
                await soon(far.close())

        world.run(main())

    def test_a_large_last_message_is_flushed_to_a_reader(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                receiving = asyncio.create_task(far.receive(LIMIT))
                await near.send(content(5_000_000))
                await soon(near.close())
                assert await soon(receiving) == content(5_000_000)

        world.run(main())

    def test_a_close_wakes_who_waits(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                waiting = [asyncio.create_task(stream.receive(LIMIT)) for stream in (near, far)]
                # The first is on its way and nobody takes it, so the second has to wait for its turn.
                waiting += [asyncio.create_task(near.send(bytes(1 << 25))) for _ in range(2)]
                await asyncio.sleep(0)
                await soon(near.close())
                for task in waiting:
                    with pytest.raises(ConnectionLost):
                        await soon(task)

        world.run(main())

    def test_a_message_given_up_halfway_is_never_received(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):

                async def send() -> None:
                    while True:
                        await near.send(bytes(1 << 24))

                async def received() -> AsyncIterator[bytes]:
                    with contextlib.suppress(ConnectionLost):
                        while True:
                            yield await soon(far.receive(LIMIT))

                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(send(), 0.5)
                await near.close()
                assert {message async for message in received()} <= {bytes(1 << 24)}

        world.run(main())

    def test_a_full_stream_waits_for_its_reader(self, world: World) -> None:
        async def main() -> None:
            async with pair(world) as (near, far):
                sent = 0

                async def send() -> None:
                    nonlocal sent
                    while sent < 100:
                        await near.send(bytes(1 << 20))
                        sent += 1

                sending = asyncio.create_task(send())
                done, _ = await asyncio.wait([sending], timeout=0.5)
                assert not done
                assert sent < 64
                for _ in range(100):
                    await soon(far.receive(LIMIT))
                await soon(sending)

        world.run(main())

    def test_nobody_there(self, world: World) -> None:
        async def main() -> None:
            dialer, other = world.member(), world.member()
            for addresses in ([], [world.nowhere()], [world.nowhere(), "no address", "a:b:c"]):
                with pytest.raises(Unreachable, match=f"peer {other.peer[:12]}"):
                    await soon(dialer.dial(addresses, other.peer), DIAL_S + 1)
            await dialer.close()
            await other.close()

        world.run(main())

    def test_a_good_address_among_bad_ones_is_found(self, world: World) -> None:
        async def main() -> None:
            acceptor, other = await Acceptor(world.member()).listen(), await Acceptor(world.member()).listen()
            dialer = world.member()
            addresses = ["no address", world.nowhere(), *other.addresses, *acceptor.addresses]
            near = await soon(dialer.dial(addresses, acceptor.transport.peer))
            assert near.peer == acceptor.transport.peer
            await acceptor.accepted()
            assert other.streams.empty()
            for transport in (dialer, acceptor, other):
                await transport.close()

        world.run(main())

    def test_who_holds_another_key_is_not_talked_to(self, world: World) -> None:
        async def main() -> None:
            acceptor, dialer, absent = await Acceptor(world.member()).listen(), world.member(), world.member()
            with pytest.raises(Unreachable, match="another machine answers") as caught:
                await soon(dialer.dial(acceptor.addresses, absent.peer))
            assert acceptor.addresses[0] in str(caught.value)
            # A stream that comes after is the first that the handler sees.
            await dialer.dial(acceptor.addresses, acceptor.transport.peer)
            await acceptor.accepted()
            assert acceptor.streams.empty()
            for transport in (dialer, absent, acceptor):
                await transport.close()

        world.run(main())

    def test_outsiders_and_foreigners_are_refused(self, world: World) -> None:
        async def main() -> None:
            acceptor = await Acceptor(world.member()).listen()
            for dialer in (world.outsider(), world.foreigner()):
                with pytest.raises(Refused, match="does not admit us"):
                    await soon(dialer.dial(acceptor.addresses, acceptor.transport.peer))
                await dialer.close()
            assert acceptor.streams.empty()
            await acceptor.close()

        world.run(main())

    def test_strangers_are_let_in_where_asked_for(self, world: World) -> None:
        async def main() -> None:
            hub = await Acceptor(world.member(strangers=True)).listen()
            outsider, foreigner, member = world.outsider(), world.foreigner(), world.member()
            near = await outsider.dial(hub.addresses, hub.transport.peer)
            far = await hub.accepted()
            assert far.peer == ""
            await near.send(b"let me in")
            assert await soon(far.receive(100)) == b"let me in"
            with pytest.raises(Refused):
                await foreigner.dial(hub.addresses, hub.transport.peer)
            await member.dial(hub.addresses, hub.transport.peer)
            assert (await hub.accepted()).peer == member.peer
            for transport in (outsider, foreigner, member, hub):
                await transport.close()

        world.run(main())

    def test_closing_a_transport_ends_all_its_streams(self, world: World) -> None:
        async def main() -> None:
            acceptor = await Acceptor(world.member()).listen()
            dialers = [world.member() for _ in range(3)]
            nears = [
                await d.dial(acceptor.addresses, acceptor.transport.peer) for d in dialers for _ in range(2)
            ]
            fars = [await acceptor.accepted() for _ in nears]
            receiving = [asyncio.create_task(stream.receive(LIMIT)) for stream in nears + fars]
            await soon(acceptor.transport.close())
            for task in receiving:
                with pytest.raises(ConnectionLost):
                    await soon(task)
            with pytest.raises(Unreachable):
                await soon(dialers[0].dial(acceptor.addresses, acceptor.transport.peer))
            with pytest.raises(Unreachable):
                await soon(acceptor.transport.dial(acceptor.addresses, dialers[0].peer))
            for transport in (*dialers, acceptor.transport):
                await soon(transport.close())

        world.run(main())

    def test_a_handlers_error_ends_its_stream_only(self, world: World) -> None:
        async def main() -> None:
            acceptor, dialer = world.member(), world.member()

            async def handler(stream: Stream) -> None:
                while (message := await stream.receive(100)) != b"break":
                    await stream.send(message)
                raise ProtocolError("broken on request")

            addresses = await acceptor.listen(handler)
            good, bad = [await dialer.dial(addresses, acceptor.peer) for _ in range(2)]
            await bad.send(b"break")
            with pytest.raises(ConnectionLost):
                await soon(bad.receive(100))
            await good.send(b"still here")
            assert await soon(good.receive(100)) == b"still here"
            again = await dialer.dial(addresses, acceptor.peer)
            await again.send(b"me too")
            assert await soon(again.receive(100)) == b"me too"
            await dialer.close()
            await acceptor.close()

        world.run(main())
