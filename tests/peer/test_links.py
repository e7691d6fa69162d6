"""Requests between peers and their answers, over a network in memory and in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from potluck.codecs.base import exactly
from potluck.errors import (
    ConnectionLost,
    CorruptData,
    PotluckError,
    ProtocolError,
    Refused,
    Unreachable,
    VersionMismatch,
)
from potluck.net.memory import MemoryNetwork
from potluck.net.transport import DIAL_S, SILENCE_S, Handler, Stream, Transport
from potluck.peer.links import (
    AHEAD,
    GREETED,
    HEADER_BYTES,
    IDLE_S,
    LEAST_COMPRESSED,
    REQUEST_S,
    SLOWEST,
    Desk,
    Links,
    Reply,
)
from potluck.testing.clock import run_virtual
from potluck.wire.codec import WIRE, decode, digest, encode
from potluck.wire.messages import (
    MAX_GROUP,
    Answer,
    Fetch,
    Hello,
    Progress,
    Push,
    PushContribution,
    PushPartial,
    PushResult,
    Request,
)
from potluck.wire.records import Held, Member
from potluck.wire.result import MAX_TALLY_BYTES
from tests.net.conformance import soon

ANN, BOB = digest(b"ann"), digest(b"bob")
ABSENT = digest(b"what nobody has")
SIZES = {0: 100, 1: 70_000, 2: 3_000_000}
"""Bytes of the parts: small, worth measuring, and more than a stream has under way."""

FULL_SIZES = {part: 4 * size for part, size in SIZES.items()}
"""Bytes of a mean of several, which is not compressed."""


def now() -> float:
    return asyncio.get_running_loop().time()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Virtual time, and no task left at the end."""

    async def leaving_nothing() -> None:
        await main
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(leaving_nothing(), limit_s=3600)


def body(part: int) -> bytes:
    return bytes([part + 1]) * SIZES[part]


def contribution(part: int, weight: float = 60.5, size: int | None = None) -> PushContribution:
    return PushContribution(3, 1, part, weight, SIZES.get(part, 0) if size is None else size)


def partial(part: int, *contributors: int, size: int | None = None) -> PushPartial:
    """The mean of what some gave; member 8 abstained."""
    weights = tuple((index, 60.5) for index in contributors)
    due = FULL_SIZES.get(part, 0) if contributors else 0
    return PushPartial(3, 1, part, weights, (), (8,), due if size is None else size)


def result(part: int, name: str = "", size: int | None = None) -> PushResult:
    return PushResult(
        3, 1, Held(part, name or digest(body(part)), SIZES.get(part, 0) if size is None else size)
    )


class Bob:
    """Serves others, and remembers what came."""

    def __init__(self, network: MemoryNetwork, run_name: str = "run") -> None:
        self.transport = network.transport(BOB)
        self.answer = Answer(True)
        self.contributions: list[tuple[PushContribution, Member, bytes]] = []
        self.partials: list[tuple[PushPartial, Member, bytes]] = []
        self.results: list[tuple[PushResult, bytes]] = []
        self.contents = {digest(body(part)): body(part) for part in SIZES}
        self.order: list[Push] = []
        self.coming: list[tuple[Push, bool]] = []
        self.fails: PotluckError | None = None
        self.streams: list[Stream] = []
        self.errors: list[PotluckError] = []
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.take_on = asyncio.Event()
        self.take_on.set()
        self.left = asyncio.Event()
        self.desk = Desk(
            run_name,
            contribution_sizes=lambda round_, part: exactly(SIZES[part]) if part in SIZES else None,
            partial_sizes=lambda round_, part: exactly(FULL_SIZES[part]) if part in FULL_SIZES else None,
            take_contribution=self.take_contribution,
            take_partial=self.take_partial,
            take_result=self.take_result,
            find=self.find,
            coming=lambda push, member, begins: self._coming(push, begins),
        )
        self._came = asyncio.Event()

    def _coming(self, push: Push, begins: bool) -> None:
        self.coming.append((push, begins))
        self._came.set()

    async def came(self, what: tuple[Push, bool]) -> None:
        """Wait until a push has begun, or ended."""
        while what not in self.coming:
            self._came.clear()
            await soon(self._came.wait())

    async def _takes(self, push: Push) -> None:
        self.order.append(push)
        self.asked.set()
        await self.take_on.wait()

    async def take_contribution(self, push: PushContribution, member: Member, raw: bytes) -> Answer:
        await self._takes(push)
        self.contributions.append((push, member, raw))
        return self.answer

    async def take_partial(self, push: PushPartial, member: Member, raw: bytes) -> Answer:
        await self._takes(push)
        self.partials.append((push, member, raw))
        return self.answer

    async def take_result(self, push: PushResult, raw: bytes) -> Answer:
        await self._takes(push)
        self.results.append((push, raw))
        return self.answer

    async def find(self, name: str) -> bytes | None:
        self.asked.set()
        await self.go_on.wait()
        if self.fails is not None:
            raise self.fails
        return self.contents.get(name)

    async def serve(self, stream: Stream) -> None:
        self.streams.append(stream)
        try:
            await self.desk.serve(stream)
        except PotluckError as error:
            self.errors.append(error)
            await asyncio.Event().wait()  # the transport would close it now: the desk has to, by itself
        self.left.set()


async def listening(transport: Transport, handler: Handler) -> Progress:
    """What Bob announces of himself."""
    return Progress(peer=BOB, session="b1", name="bob", addresses=tuple(await transport.listen(handler)))


class World:
    """Ann asks, Bob serves."""

    def __init__(self, network: MemoryNetwork, run_name: str, wire: int) -> None:
        self.network = network
        self.transport = network.transport(ANN)
        self.links = Links(self.transport, "run", "a1")
        self.links._hello = encode(Hello(wire, "run", "a1"))
        self.bob = Bob(network, run_name)
        self.to: Progress

    async def fetch(self, part: int) -> Reply:
        return await self.links.request(self.to, Fetch(digest(body(part))), None, SIZES[part])

    async def push(self, part: int) -> Reply:
        return await self.links.request(self.to, contribution(part), body(part))


@contextlib.asynccontextmanager
async def world(
    network: MemoryNetwork | None = None, *, run_name: str = "run", wire: int = WIRE
) -> AsyncIterator[World]:
    made = World(network or MemoryNetwork(1), run_name, wire)
    made.to = await listening(made.bob.transport, made.bob.serve)
    try:
        yield made
    finally:
        await made.links.close()
        await made.transport.close()
        await made.bob.transport.close()


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test in a world of its own, which is its first argument."""

    def sync(**parameters: Any) -> None:
        async def main() -> None:
            async with world() as made:
                await test(made, **parameters)

        run(main())

    signature = inspect.signature(test)
    functools.update_wrapper(sync, test)
    del sync.__wrapped__  # type: ignore[attr-defined]
    sync.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]
    return sync


@contextlib.asynccontextmanager
async def facing(handler: Callable[[Stream], Awaitable[None]]) -> AsyncIterator[World]:
    """Ann asks somebody who greets well and then does as ``handler`` does."""

    async def serve(stream: Stream) -> None:
        decode(await stream.receive(HEADER_BYTES), Hello)
        await stream.send(encode(Answer(True)))
        await handler(stream)

    async with world() as made:
        other = made.network.transport(BOB)
        made.to = await listening(other, serve)
        try:
            yield made
        finally:
            await other.close()


# -- what peers ask of each other --------------------------------------------------------------------


@pytest.mark.parametrize("part", SIZES)
@virtual
async def test_a_contribution_arrives_whole_and_from_whom(made: World, part: int) -> None:
    assert await made.push(part) == Reply(Answer(True))
    assert made.bob.contributions == [(contribution(part), Member(ANN, "a1"), body(part))]


@virtual
async def test_who_has_nothing_to_contribute_says_so_without_bytes(made: World) -> None:
    none = contribution(0, weight=0.0, size=0)
    assert (await made.links.request(made.to, none, b"")).answer.ok
    assert made.bob.contributions == [(none, Member(ANN, "a1"), b"")]


@pytest.mark.parametrize("part", SIZES)
@virtual
async def test_a_mean_of_several_arrives_whole_and_from_whom(made: World, part: int) -> None:
    push, raw = partial(part, 0, 4), bytes(FULL_SIZES[part])
    assert await made.links.request(made.to, push, raw) == Reply(Answer(True))
    assert made.bob.partials == [(push, Member(ANN, "a1"), raw)]


@virtual
async def test_that_a_whole_group_gives_nothing_is_said_without_bytes(made: World) -> None:
    assert (await made.links.request(made.to, partial(0), b"")).answer.ok
    assert made.bob.partials == [(partial(0), Member(ANN, "a1"), b"")]


@virtual
async def test_who_of_a_mean_is_counted_already_comes_back_with_the_no(made: World) -> None:
    made.bob.answer = Answer(False, "2 of 3 are counted already", known=(0, 8))
    reply = await made.links.request(made.to, partial(0, 0, 4, 8), bytes(FULL_SIZES[0]))
    assert reply == Reply(made.bob.answer)


@virtual
async def test_the_request_of_the_largest_group_fits(made: World) -> None:
    everybody = range(20_000 - MAX_GROUP, 20_000)
    weights, blocks = tuple((i, math.pi * 1e9) for i in everybody), tuple((i, 60_000) for i in everybody)
    push = PushPartial(1 << 50, 9, 2, weights, blocks, (), FULL_SIZES[2])
    made.bob.answer = Answer(False, "all are counted already", known=tuple(everybody))
    assert len(encode(push)) <= HEADER_BYTES
    assert await made.links.request(made.to, push, bytes(FULL_SIZES[2])) == Reply(made.bob.answer)
    assert [push for push, _, _ in made.bob.partials] == [push]


@pytest.mark.parametrize("part", SIZES)
@virtual
async def test_a_result_arrives_whole(made: World, part: int) -> None:
    assert await made.links.request(made.to, result(part), body(part)) == Reply(Answer(True))
    assert made.bob.results == [(result(part), body(part))]


@pytest.mark.parametrize("part", SIZES)
@virtual
async def test_content_is_fetched_by_its_digest(made: World, part: int) -> None:
    assert await made.fetch(part) == Reply(Answer(True, size=SIZES[part]), body(part))


@pytest.mark.parametrize("part", SIZES)
@virtual
async def test_content_may_travel_compressed(made: World, part: int) -> None:
    reply = await made.links.request(
        made.to, Fetch(digest(body(part)), compressed=True), None, want=SIZES[part]
    )
    assert reply.body == body(part)
    assert bool(reply.answer.compressed) == (SIZES[part] >= LEAST_COMPRESSED)
    if reply.answer.compressed:
        assert made.links.bytes_received < SIZES[part] / 10


@virtual
async def test_content_that_is_not_there_is_no_failure(made: World) -> None:
    reply = await made.links.request(made.to, Fetch(ABSENT), None, 100)
    assert reply == Reply(Answer(False, "not here"))
    assert (await made.fetch(0)).body == body(0)
    assert len(made.bob.streams) == 1


@pytest.mark.parametrize(
    "answer", [Answer(False, "round 3 is closed: late"), Answer(False, "soon", retry=True)]
)
@virtual
async def test_a_no_comes_with_its_reason_and_the_stream_goes_on(made: World, answer: Answer) -> None:
    made.bob.answer = answer
    assert await made.push(1) == Reply(answer)
    assert await made.links.request(made.to, result(1), body(1)) == Reply(answer)
    made.bob.answer = Answer(True)
    assert (await made.push(1)).answer.ok
    assert len(made.bob.streams) == 1


@virtual
async def test_what_is_large_and_pushed_goes_on_one_stream_in_its_order(made: World) -> None:
    """So that results don't take the way of the contributions that come first."""
    pushes = [contribution(2), result(1), partial(1, 0, 4), contribution(1)]
    bodies = [body(2), body(1), bytes(FULL_SIZES[1]), body(1)]
    await asyncio.gather(*(made.links.request(made.to, *one) for one in zip(pushes, bodies, strict=True)))
    assert made.bob.order == pushes
    assert len(made.bob.streams) == 1
    await made.push(0)
    await made.links.request(made.to, result(0), body(0))
    assert len(made.bob.streams) == 3


@virtual
async def test_the_next_request_comes_in_while_one_is_answered_and_answers_keep_their_order(
    made: World,
) -> None:
    made.bob.take_on.clear()
    pushing = [asyncio.create_task(made.push(part)) for part in (1, 2)]
    await soon(made.bob.asked.wait())
    await made.bob.came((contribution(2), True))
    assert made.bob.order == [contribution(1)], "one at a time"
    made.bob.take_on.set()
    assert [(await one).answer.ok for one in pushing] == [True] * 2
    assert made.bob.order == [contribution(1), contribution(2)]
    begun = [push for push, begins in made.bob.coming if begins]
    assert begun == [push for push, begins in made.bob.coming if not begins] == made.bob.order


@virtual
async def test_what_goes_wrong_in_answering_ends_the_stream_while_the_desk_waits_for_the_next(
    made: World,
) -> None:
    made.bob.fails = CorruptData("the disk gives something else")
    with pytest.raises(ConnectionLost):
        await made.fetch(0)
    assert [str(error) for error in made.bob.errors] == ["the disk gives something else"]


@virtual
async def test_requests_keep_to_the_pace_that_is_asked_for(made: World) -> None:
    paces: list[float] = []
    await made.links.request(made.to, contribution(2), body(2), pace=2e6)
    made.links._streams[BOB, "Push"].pace = paces.append  # type: ignore[method-assign]
    await made.links.request(made.to, contribution(1), body(1), pace=1e6)
    await made.push(1)
    assert paces == [1e6, 0.0]


@virtual
async def test_there_is_one_stream_for_each_kind_and_each_gets_its_own_answer(made: World) -> None:
    replies = await asyncio.gather(*(made.fetch(part) for part in (0, 1, 2, 1, 0)))
    assert [reply.body for reply in replies] == [body(part) for part in (0, 1, 2, 1, 0)]
    await asyncio.gather(made.push(1), made.push(2))
    assert [push.part for push, _, _ in made.bob.contributions] == [1, 2]
    assert len(made.bob.streams) == 2


@virtual
async def test_no_kind_waits_for_another(made: World) -> None:
    made.bob.go_on.clear()
    fetching = asyncio.create_task(made.fetch(0))
    assert (await made.push(0)).answer.ok
    assert not fetching.done()
    made.bob.go_on.set()
    assert (await fetching).body == body(0)


def test_the_next_request_goes_while_the_last_answer_is_on_its_way() -> None:
    """Four small ones take one round trip and a bit, not four."""

    async def main() -> None:
        async with world(MemoryNetwork(1, delay_s=(0.25, 0.25))) as made:
            await made.push(0)
            began = now()
            replies = await asyncio.gather(*[made.push(0) for _ in range(AHEAD)])
            assert [reply.answer.ok for reply in replies] == [True] * AHEAD
            assert now() - began < 0.75

    run(main())


@virtual
async def test_no_more_than_some_are_under_way(made: World) -> None:
    made.bob.go_on.clear()
    parts = (0, 1, 2, 1, 0, 1, 2, 0, 1, 2)
    fetching = [asyncio.create_task(made.fetch(part)) for part in parts]
    await soon(made.bob.asked.wait())
    line = made.links._lines[BOB, "Fetch"]
    assert line.ahead.locked()
    assert line.requests == len(fetching)
    made.bob.go_on.set()
    assert [len((await one).body) for one in fetching] == [SIZES[part] for part in parts]


@virtual
async def test_who_failed_takes_those_behind_along_and_the_next_gets_a_new_stream(made: World) -> None:
    await made.fetch(0)
    made.bob.go_on.clear()
    wrong = asyncio.create_task(made.links.request(made.to, Fetch(digest(body(1))), None, SIZES[1] + 1))
    behind = asyncio.create_task(made.fetch(0))
    await soon(made.bob.asked.wait())
    made.bob.go_on.set()
    with pytest.raises(ProtocolError):
        await wrong
    with pytest.raises(ConnectionLost, match="an earlier request to bob failed"):
        await behind
    assert (await made.fetch(2)).body == body(2)
    assert len(made.bob.streams) == 2


# -- greetings ---------------------------------------------------------------------------------------


def test_another_wire_version_is_refused_in_words() -> None:
    async def main() -> None:
        async with world(wire=WIRE + 1) as made:
            for streams in (1, 2):
                said = f"bob: speaks wire version {WIRE}, you speak {WIRE + 1}: install the same release"
                with pytest.raises(VersionMismatch, match=said):
                    await made.push(0)
                assert len(made.bob.streams) == streams
            assert made.bob.contributions == []

    run(main())


@pytest.mark.parametrize(
    "run_name",
    [
        "other",
        "conversion",
    ],
)
def test_another_run_is_refused_in_words(run_name: str) -> None:
    async def main() -> None:
        async with world(run_name=run_name) as made:
            with pytest.raises(Refused, match=f"bob: takes part in run {run_name}, not run"):
                await made.push(0)
            assert made.bob.contributions == []

    run(main())


@virtual
async def test_who_was_refused_gets_nothing_on_that_stream(made: World) -> None:
    stream = await made.transport.dial(made.to.addresses, BOB)
    await stream.send(encode(Hello(WIRE, "other", "a1")))
    assert not decode(await stream.receive(HEADER_BYTES), Answer).ok
    with pytest.raises(ConnectionLost):
        await stream.receive(HEADER_BYTES)
    assert made.bob.errors == []


def label(value: Any) -> str | None:
    """A short name for bytes among a test's parameters."""
    return f"{len(value)}-bytes" if isinstance(value, bytes) else None


HELLO = encode(Hello(WIRE, "run", "a1"))
FETCH = encode(Fetch(ABSENT))
UNKNOWN = msgspec.msgpack.encode({"type": "Surrender", "digest": ABSENT})


@pytest.mark.parametrize(
    "first",
    [b"", b"garbage", HELLO[:-1], HELLO + b"\0", FETCH, bytes(HEADER_BYTES + 1), UNKNOWN],
    ids=label,
)
@virtual
async def test_a_stream_that_does_not_begin_with_hello_is_closed(made: World, first: bytes) -> None:
    await _closed_after(made, first)


@pytest.mark.parametrize(
    "second",
    [b"", b"garbage", FETCH[:-1], FETCH + b"\0", bytes(HEADER_BYTES + 1), UNKNOWN, encode(Answer(True))],
    ids=label,
)
@virtual
async def test_a_stream_with_what_is_no_request_is_closed(made: World, second: bytes) -> None:
    await _closed_after(made, HELLO, second)


@virtual
async def test_a_second_hello_closes_the_stream(made: World) -> None:
    await _closed_after(made, HELLO, HELLO)
    assert "a second Hello" in str(made.bob.errors[0])


async def _closed_after(made: World, *messages: bytes) -> None:
    """The last message ends the stream, and those before it are answered."""
    stream = await made.transport.dial(made.to.addresses, BOB)
    for message in messages[:-1]:
        await stream.send(message)
        assert decode(await stream.receive(HEADER_BYTES), Answer).ok
    await stream.send(messages[-1])
    with pytest.raises(ConnectionLost):
        await stream.receive(HEADER_BYTES)
    assert [type(error) for error in made.bob.errors] == [ProtocolError]
    assert made.bob.contributions == []
    assert (await made.fetch(0)).body == body(0), "others are still served"


# -- sizes -------------------------------------------------------------------------------------------

WITH_TALLY = f"100 to {99 + MAX_TALLY_BYTES}"


@pytest.mark.parametrize(
    ("push", "said"),
    [
        (contribution(0, size=99), "part 0 has 99 bytes, 100 are due"),
        (contribution(0, size=101), "part 0 has 101 bytes, 100 are due"),
        (contribution(0, size=1 << 40), "100 are due"),
        (contribution(0, size=0), "part 0 has 0 bytes, 100 are due"),
        (contribution(0, weight=0.0, size=100), "part 0 has 100 bytes, 0 are due"),
        (contribution(0, weight=-1.0, size=100), "0 are due"),
        (contribution(0, weight=math.nan, size=100), "0 are due"),
        (contribution(9, size=100), "before this peer had a state"),
        (partial(0, 0, 4, size=399), "part 0 has 399 bytes, 400 are due"),
        (partial(0, 0, 4, size=401), "part 0 has 401 bytes, 400 are due"),
        (partial(0, 0, 4, size=100), "part 0 has 100 bytes, 400 are due"),
        (partial(0, 0, 4, size=0), "part 0 has 0 bytes, 400 are due"),
        (partial(0, size=400), "part 0 has 400 bytes, 0 are due"),
        (partial(9, 0, 4, size=400), "before this peer had a state"),
        (result(0, ABSENT, 99), f"part 0 has 99 bytes, {WITH_TALLY} are due"),
        (result(0, ABSENT, 0), f"part 0 has 0 bytes, {WITH_TALLY} are due"),
        (result(0, ABSENT, 100 + MAX_TALLY_BYTES), f"{WITH_TALLY} are due"),
        (result(0, ABSENT, 1 << 40), f"{WITH_TALLY} are due"),
        (result(9, ABSENT, 100), "before this peer had a state"),
    ],
)
@virtual
async def test_bytes_of_another_size_than_the_parts_are_not_taken(
    made: World, push: Request, said: str
) -> None:
    with pytest.raises(ConnectionLost):
        await made.links.request(made.to, push, bytes(100))
    [error] = made.bob.errors
    assert isinstance(error, ProtocolError)
    assert said in str(error)
    assert not made.bob.contributions
    assert not made.bob.partials
    assert not made.bob.results
    assert made.bob.streams[0].bytes_received == len(HELLO) + len(encode(push)) + 2 * 5
    assert (await made.push(0)).answer.ok, "the next one is a new stream"


@virtual
async def test_who_is_in_a_result_takes_some_bytes_besides(made: World) -> None:
    raw = bytes(SIZES[0] + 300)
    push = result(0, digest(raw), len(raw))
    assert (await made.links.request(made.to, push, raw)).answer.ok
    assert made.bob.results == [(push, raw)]


@pytest.mark.parametrize("size", [99, 100, 130, 131])
@virtual
async def test_a_part_may_have_any_of_several_sizes(made: World, size: int) -> None:
    """Where they depend on the values, what is taken is bounded all the same."""
    made.bob.desk._sizes = lambda round_, part: range(100, 131)
    push, raw = contribution(0, size=size), bytes(size)
    if size in range(100, 131):
        assert (await made.links.request(made.to, push, raw)).answer.ok
        assert made.bob.contributions == [(push, Member(ANN, "a1"), raw)]
        return
    with pytest.raises(ConnectionLost):
        await made.links.request(made.to, push, raw)
    assert f"part 0 has {size} bytes, 100 to 130 are due" in str(made.bob.errors[0])
    assert made.bob.contributions == []


async def _pushed(made: World, size: int) -> None:
    """A contribution of part 0 that says it has the right size and has another."""
    with pytest.raises(ConnectionLost):
        await made.links.request(made.to, contribution(0), bytes(size))
    assert [type(error) for error in made.bob.errors] == [ProtocolError]
    assert made.bob.contributions == []


@virtual
async def test_bytes_beyond_what_was_announced_are_not_taken(made: World) -> None:
    await _pushed(made, 101)


@pytest.mark.parametrize("size", [1, 99])
@virtual
async def test_bytes_short_of_what_was_announced_are_not_taken(made: World, size: int) -> None:
    await _pushed(made, size)


@virtual
async def test_what_came_whole_before_a_malformed_request_is_kept(made: World) -> None:
    made.bob.take_on.clear()
    pushing = asyncio.create_task(made.push(1))
    await soon(made.bob.asked.wait())
    malformed = asyncio.create_task(made.links.request(made.to, result(1), body(2)))
    await made.bob.came((result(1), False))
    assert made.bob.contributions == [], "it is still being taken"
    made.bob.take_on.set()
    ended = await asyncio.gather(pushing, malformed, return_exceptions=True)
    assert isinstance(ended[-1], ConnectionLost)
    assert [push for push, _, _ in made.bob.contributions] == [contribution(1)]
    assert (contribution(1), False) in made.bob.coming


def _sends(answer: Answer, *messages: bytes) -> Callable[[Stream], Awaitable[None]]:
    async def handler(stream: Stream) -> None:
        await stream.receive(HEADER_BYTES)
        await stream.send(encode(answer))
        for message in messages:
            await stream.send(message)
        await stream.receive(HEADER_BYTES)

    return handler


@pytest.mark.parametrize(
    ("answer", "sent", "said"),
    [
        (Answer(True, size=101), b"x" * 101, "bob sent 101 bytes where 100 were due"),
        (Answer(True, size=99), b"x" * 99, "bob sent 99 bytes where 100 were due"),
        (Answer(True), b"", "bob sent 0 bytes where 100 were due"),
        (Answer(True, size=1 << 40), b"x", "where 100 were due"),
        (Answer(True, size=100), b"x" * 101, "101 bytes is announced where 100 are allowed"),
        (Answer(True, size=100), b"x" * 99, "99 bytes"),
        (Answer(True, size=100, compressed=100), b"x" * 100, "100 bytes as 100 compressed ones"),
        (Answer(True, size=100, compressed=1 << 40), b"x", "100 bytes as 1099511627776 compressed ones"),
        (Answer(True, size=100, compressed=20), b"x" * 21, "21 bytes is announced where 20 are allowed"),
    ],
    ids=label,
)
def test_content_of_another_size_is_refused(answer: Answer, sent: bytes, said: str) -> None:
    async def main() -> None:
        async with facing(_sends(answer, sent)) as made:
            with pytest.raises(ProtocolError, match=said):
                await made.fetch(0)
            assert made.links._streams == {}

    run(main())


def test_content_that_is_not_what_it_was_compressed_from_is_refused() -> None:
    async def main() -> None:
        async with facing(_sends(Answer(True, size=100, compressed=20), b"x" * 20)) as made:
            with pytest.raises(CorruptData, match="compressed content"):
                await made.fetch(0)

    run(main())


@pytest.mark.parametrize("sent", [b"", b"garbage", bytes(HEADER_BYTES + 1), HELLO], ids=label)
def test_what_is_no_answer_is_refused(sent: bytes) -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive(HEADER_BYTES)
        await stream.send(sent)
        await stream.receive(HEADER_BYTES)

    async def main() -> None:
        async with facing(handler) as made:
            with pytest.raises(ProtocolError):
                await made.fetch(0)
            assert made.links._streams == {}

    run(main())


def test_messages_after_an_answer_end_the_stream_at_the_next_request() -> None:
    async def main() -> None:
        async with facing(_sends(Answer(False, "not here"), b"unasked")) as made:
            assert not (await made.fetch(0)).answer.ok
            with pytest.raises(ProtocolError):
                await made.fetch(0)

    run(main())


# -- peers that go away ------------------------------------------------------------------------------


@pytest.mark.parametrize("part", SIZES)
@virtual
async def test_who_does_not_answer_is_given_up_in_time(made: World, part: int) -> None:
    made.bob.go_on.clear()
    began, allowed_s = now(), REQUEST_S + SIZES[part] / SLOWEST
    with pytest.raises(ConnectionLost, match=f"bob did not answer within {allowed_s:.0f} s"):
        await made.fetch(part)
    assert now() - began == pytest.approx(allowed_s)
    made.bob.go_on.set()
    assert (await made.fetch(part)).body == body(part)
    assert len(made.bob.streams) == 2


def test_content_that_never_follows_its_answer_is_given_up_in_time() -> None:
    async def main() -> None:
        async with facing(_sends(Answer(True, size=100))) as made:
            began = now()
            with pytest.raises(ConnectionLost, match="did not answer"):
                await made.fetch(0)
            assert now() - began == pytest.approx(REQUEST_S + 100 / SLOWEST)

    run(main())


def test_a_link_that_is_too_slow_is_given_up() -> None:
    async def main() -> None:
        async with world(MemoryNetwork(1, bytes_per_s=SLOWEST / 2)) as made:
            began, allowed_s = now(), REQUEST_S + SIZES[2] / SLOWEST
            with pytest.raises(ConnectionLost, match="did not answer"):
                await made.push(2)
            # Closing waits for what is under way, no longer.
            assert allowed_s <= now() - began < allowed_s + 10
            assert made.bob.contributions == []

    run(main())


@virtual
async def test_who_dies_while_serving_is_noticed_and_dialled_anew_when_back(made: World) -> None:
    made.bob.go_on.clear()
    fetching = asyncio.create_task(made.fetch(0))
    await soon(made.bob.asked.wait())
    assert len(made.bob.streams) == 1
    made.network.kill(BOB)
    with pytest.raises(ConnectionLost):
        await fetching
    with pytest.raises(Unreachable):
        await made.fetch(0)
    again = Bob(made.network)
    made.to = await listening(again.transport, again.serve)
    assert (await made.fetch(0)).body == body(0)
    await again.transport.close()


@virtual
async def test_who_died_since_the_last_request_costs_one_failure_at_most(made: World) -> None:
    await made.fetch(0)
    made.network.kill(BOB)
    again = Bob(made.network)
    made.to = await listening(again.transport, again.serve)
    with pytest.raises(ConnectionLost):
        await made.fetch(0)
    assert (await made.fetch(0)).body == body(0)
    await again.transport.close()


@virtual
async def test_a_partition_ends_requests_and_they_work_again_once_it_heals(made: World) -> None:
    made.bob.go_on.clear()
    fetching = asyncio.create_task(made.fetch(0))
    await soon(made.bob.asked.wait())
    made.network.partition(ANN, BOB)
    began = now()
    with pytest.raises(ConnectionLost, match="silent"):
        await fetching
    assert now() - began == pytest.approx(SILENCE_S)
    with pytest.raises(Unreachable):
        await made.fetch(0)
    assert now() - began == pytest.approx(SILENCE_S + DIAL_S)
    made.network.heal(ANN, BOB)
    made.bob.go_on.set()
    assert (await made.fetch(0)).body == body(0)


@virtual
async def test_an_asker_who_goes_is_no_error_at_the_desk(made: World) -> None:
    await made.fetch(0)
    made.network.kill(ANN)
    await soon(made.bob.left.wait())
    assert made.bob.errors == []
    with pytest.raises(ConnectionLost):
        await made.bob.streams[0].send(b"anybody?")


def test_an_asker_who_dies_halfway_through_a_push_leaves_nothing() -> None:
    async def main() -> None:
        async with world(MemoryNetwork(1, bytes_per_s=1e6)) as made:
            pushing = asyncio.create_task(made.push(2))
            asyncio.get_running_loop().call_later(1.5, made.network.kill, ANN)
            with pytest.raises(ConnectionLost):
                await pushing
            await soon(made.bob.left.wait())
            assert made.bob.contributions == []
            assert made.bob.errors == []

    run(main())


@virtual
async def test_nobody_gets_the_answer_to_a_request_that_was_cancelled(made: World) -> None:
    made.bob.go_on.clear()
    fetching = asyncio.create_task(made.fetch(1))
    await soon(made.bob.asked.wait())
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    made.bob.go_on.set()
    assert (await made.fetch(0)).body == body(0)
    assert len(made.bob.streams) == 2


@virtual
async def test_who_gives_up_waiting_for_a_turn_disturbs_nobody(made: World) -> None:
    made.bob.go_on.clear()
    first, second = asyncio.create_task(made.fetch(0)), asyncio.create_task(made.fetch(1))
    await soon(made.bob.asked.wait())
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    made.bob.go_on.set()
    assert (await first).body == body(0)
    assert len(made.bob.streams) == 1


@virtual
async def test_closing_closes_every_stream(made: World) -> None:
    await made.fetch(0)
    await made.push(0)
    await made.links.close()
    for stream in made.bob.streams:
        with pytest.raises(ConnectionLost, match="closed"):
            await soon(stream.receive(1))
    await made.links.close()


# -- accounts ----------------------------------------------------------------------------------------


@virtual
async def test_both_sides_count_the_same_bytes_also_of_closed_streams(made: World) -> None:
    await made.fetch(1)
    await made.push(0)
    links, desk = made.links, made.bob.desk
    sent, received = links.bytes_sent, links.bytes_received
    assert received > SIZES[1] > sent > SIZES[0]
    assert (desk.bytes_received, desk.bytes_sent) == (sent, received)
    await links.close()
    assert (links.bytes_sent, links.bytes_received) == (sent, received)
    await made.push(0)
    assert links.bytes_sent > sent + SIZES[0]
    assert (desk.bytes_received, desk.bytes_sent) == (links.bytes_sent, links.bytes_received)


def test_both_ways_are_measured_by_what_many_streams_carry_together() -> None:
    async def main() -> None:
        async with world(MemoryNetwork(1, delay_s=(0.0, 0.0), bytes_per_s=1e6)) as made:
            for _ in range(30):
                await made.push(0)
            links, desk = made.links, made.bob.desk
            assert (links.up.rate, links.down.rate, desk.down.rate) == (0.0, 0.0, 0.0)
            await made.fetch(2)
            assert links.up.rate == 0.0
            assert links.down.rate == pytest.approx(1e6, rel=0.05)
            pushes = [links.request(made.to, partial(0, 0, size=None), bytes(FULL_SIZES[0]))]
            await asyncio.gather(made.push(2), links.request(made.to, result(2), body(2)), *pushes)
            assert links.up.rate == pytest.approx(1e6, rel=0.1)
            assert desk.down.rate == pytest.approx(1e6, rel=0.1)

    run(main())


def test_the_round_trip_is_that_of_greetings() -> None:
    async def main() -> None:
        async with world(MemoryNetwork(1, delay_s=(0.1, 0.1))) as made:
            assert made.links.rtt_s == 0.0
            await made.push(0)
            assert made.links.rtt_s == pytest.approx(0.2, rel=0.05)
            for number in range(GREETED + 3):
                made.links._greeted(f"peer{number}", 0.5)
            made.links._greeted("peer66", 90.0)
            assert len(made.links._greetings) == GREETED
            assert made.links.rtt_s == 0.5

    run(main())


@virtual
async def test_a_stream_that_was_not_used_for_long_is_closed_and_comes_back(made: World) -> None:
    await made.fetch(0)
    await asyncio.sleep(IDLE_S + 1)
    await made.push(1)
    await made.bob.left.wait()
    assert [kind for _, kind in made.links._streams] == ["Push"]
    assert (await made.fetch(0)).body == body(0)
    assert len(made.bob.streams) == 3


@virtual
async def test_requests_that_come_together_close_idle_streams_once(made: World) -> None:
    """Found by the soak: what one was closing another had closed."""
    await made.fetch(0)
    await made.push(1)
    await asyncio.sleep(IDLE_S + 1)
    for stream in made.links._streams.values():
        takes_time(stream)
    replies = await asyncio.gather(*(made.fetch(0) for _ in range(3)), *(made.push(1) for _ in range(3)))
    assert [reply.body for reply in replies[:3]] == [body(0)] * 3
    assert len(made.links._streams) == 2


def takes_time(stream: Stream) -> None:
    """To close it, as it does to say goodbye over a real one."""
    close = stream.close

    async def slowly() -> None:
        await asyncio.sleep(0.1)
        await close()

    stream.close = slowly  # type: ignore[method-assign]
