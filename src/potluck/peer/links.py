"""Requests to other peers, over streams that are kept open, and the answers to theirs."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from potluck.codecs.base import said
from potluck.errors import ConnectionLost, PotluckError, ProtocolError, Refused, VersionMismatch
from potluck.net.transport import Stream, Transport
from potluck.peer.meter import Meter
from potluck.wire.codec import WIRE, decode, encode
from potluck.wire.compress import compress, decompress
from potluck.wire.messages import (
    MAX_RTT_S,
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
from potluck.wire.records import Member
from potluck.wire.result import MAX_TALLY_BYTES

HEADER_BYTES = 1 << 16
"""Upper bound of a request or answer, without what follows it."""

REQUEST_S = 20.0
"""How long one request may take besides its bytes, in seconds."""

IDLE_S = 120.0
"""A stream that was not used for so long is closed, in seconds."""

MUCH = 1 << 16
"""Bodies of so many bytes tell how fast a link is, and those that are pushed share a stream."""

GREETINGS = 4
GREETED = 64
"""A peer's round trip is the least of its last greetings; those of so many peers are remembered."""

AHEAD = 8
"""So many requests may be under way on one stream."""

LEAST_COMPRESSED = 1 << 16
"""Content of fewer bytes travels as it is."""

SLOWEST = 20_000.0
"""A link slower than so many bytes/s is given up."""


@dataclass(frozen=True)
class Reply:
    """An answer, and the content that came with it."""

    answer: Answer
    body: bytes = b""


Passed = tuple[int, ...]
"""Sizes of the contents that were asked for by requests given up while they waited for their answers."""


@dataclass
class _Pipe:
    """One stream, and the last request on it: answers come in the order in which requests went."""

    stream: Stream
    last: asyncio.Future[Passed] | None = None
    answered_at: float = 0.0
    broken: bool = False

    def queue(self, now: float) -> _Place:
        """A place behind the last request."""
        before, self.last = self.last, asyncio.get_running_loop().create_future()
        if before is None:
            before = asyncio.get_running_loop().create_future()
            before.set_result(())
        return _Place(self, before, self.last, now)


class _Place(NamedTuple):
    """Among the requests on a stream: done when the one before is answered, and what we are to finish."""

    pipe: _Pipe
    before: asyncio.Future[Passed]
    done: asyncio.Future[Passed]
    started: float


class _Line:
    """What goes to one peer on one stream: a few requests at a time, sent one after the other."""

    def __init__(self) -> None:
        self.pipe: _Pipe | None = None
        self.ahead = asyncio.Semaphore(AHEAD)
        self.sending = asyncio.Lock()
        self.requests = 0
        self.used = 0.0


class Links:
    """Streams to other peers: one to each for what is large and pushed, in its order, and else one for each
    kind of request. The next request goes while the last one's answer is on its way.

    A stream that was not used for a while is closed: in a large round others act for a group each time.
    """

    def __init__(self, transport: Transport, run: str, session: str) -> None:
        self._transport = transport
        self._hello = encode(Hello(WIRE, run, session))
        self._lines: dict[tuple[str, str], _Line] = {}
        self.up, self.down = Meter(), Meter()
        """What this peer's link carries: here in requests and their answers, at the desk in pushes."""
        self._greetings: dict[str, deque[float]] = {}
        self._closed_sent = 0
        self._closed_received = 0

    @property
    def bytes_sent(self) -> int:
        """Payload and framing, over all streams so far."""
        return self._closed_sent + sum(s.bytes_sent for s in self._streams.values())

    @property
    def bytes_received(self) -> int:
        """As ``bytes_sent``."""
        return self._closed_received + sum(s.bytes_received for s in self._streams.values())

    @property
    def rtt_s(self) -> float:
        """The round trip to others, in seconds, as greetings took it when streams were made: the middle of
        all peers; 0 while unknown.
        """
        least = [min(took) for took in self._greetings.values()]
        return min(MAX_RTT_S, statistics.median(least)) if least else 0.0

    @property
    def _streams(self) -> dict[tuple[str, str], Stream]:
        return {key: line.pipe.stream for key, line in self._lines.items() if line.pipe is not None}

    async def request(
        self, to: Progress, message: Request, body: bytes | None, want: int = 0, pace: float = 0.0
    ) -> Reply:
        """One request and its answer; ``want`` is the size of the content asked for. With ``pace`` it goes
        with at most so many bytes/s.

        Raises:
            PotluckError: the peer can't be reached, refuses, went away, or sent what it must not. What goes
                wrong with one request ends its stream, and with it those behind it.
        """
        await self._close_idle()
        line = self._lines.setdefault((to.peer, _kind(message, body)), _Line())
        line.requests += 1
        try:
            async with line.ahead:
                reply = await self._ask(line, to, message, body, want, pace)
        finally:
            line.requests -= 1
            line.used = _now()
        if reply.answer.ok and reply.answer.compressed:
            return Reply(reply.answer, await asyncio.to_thread(decompress, reply.body, want))
        return reply

    async def _close_idle(self) -> None:
        now = _now()
        for key, line in list(self._lines.items()):
            # While one is being closed, others may be closed or used again by other requests.
            if not line.requests and now - line.used > IDLE_S and self._lines.get(key) is line:
                del self._lines[key]
                if line.pipe is not None:
                    await self._end(line, line.pipe)

    async def _ask(
        self, line: _Line, to: Progress, message: Request, body: bytes | None, want: int, pace: float
    ) -> Reply:
        """One request, sent when it is our turn to send, and its answer, when it is our turn to hear."""
        limit_s = REQUEST_S + (len(body or b"") + want) / SLOWEST
        try:
            async with asyncio.timeout(None) as limit:
                async with line.sending:
                    limit.reschedule(_now() + limit_s)
                    place = await self._send(line, to, message, body, pace)
                if not place.before.done():
                    limit.reschedule(None)  # each has a time limit of its own
                    await _turn(place, want)
                    limit.reschedule(_now() + limit_s)
                async with self._breaking(line, place):
                    await self._pass(place, to)
                    reply = await self._answered(place, to, len(body or b""), want)
                    place.done.set_result(())
                    return reply
        except TimeoutError:
            raise ConnectionLost(f"{to.name} did not answer within {limit_s:.0f} s") from None

    async def _send(
        self, line: _Line, to: Progress, message: Request, body: bytes | None, pace: float
    ) -> _Place:
        """A request goes out, and gets its place among those that wait for answers."""
        place = (await self._pipe(line, to)).queue(_now())
        async with self._breaking(line, place):
            place.pipe.stream.pace(pace)
            await place.pipe.stream.send(encode(message))
            if body:
                await place.pipe.stream.send(body)
        return place

    @contextlib.asynccontextmanager
    async def _breaking(self, line: _Line, place: _Place) -> AsyncIterator[None]:
        """What goes wrong inside ends the stream, and all that wait for answers on it."""
        try:
            yield
        except BaseException:
            place.pipe.broken = True
            place.done.set_result(())
            await self._end(line, place.pipe)
            raise

    async def _pipe(self, line: _Line, to: Progress) -> _Pipe:
        """The line's stream, made if there is none."""
        if line.pipe is None:
            pipe = _Pipe(await self._transport.dial(to.addresses, to.peer))
            line.pipe = pipe
            try:
                asked_at = _now()
                await pipe.stream.send(self._hello)
                _accepted(await _answer(pipe.stream), to)
                self._greeted(to.peer, _now() - asked_at)
            except BaseException:
                pipe.broken = True
                await self._end(line, pipe)
                raise
        return line.pipe

    async def _pass(self, place: _Place, to: Progress) -> None:
        """Let answers go by that nobody waits for any more."""
        if place.pipe.broken:
            raise ConnectionLost(f"an earlier request to {to.name} failed, and its stream with it")
        for want in place.before.result():
            await self._content(await _answer(place.pipe.stream), place.pipe, to, want)

    async def _answered(self, place: _Place, to: Progress, sent: int, want: int) -> Reply:
        """The answer to a request of ``sent`` bytes, the oldest on its stream."""
        pipe = place.pipe
        answer = await _answer(pipe.stream)
        if sent >= MUCH:
            self.up.moved(sent, max(place.started, pipe.answered_at), _now())
        pipe.answered_at = _now()
        return await self._content(answer, pipe, to, want)

    async def _content(self, answer: Answer, pipe: _Pipe, to: Progress, want: int) -> Reply:
        """An answer, and what follows it."""
        if not answer.ok or not want:
            return Reply(answer)
        if answer.size != want:
            raise ProtocolError(f"{to.name} sent {answer.size} bytes where {want} were due")
        if answer.compressed >= want:
            raise ProtocolError(f"{to.name} sent {want} bytes as {answer.compressed} compressed ones")
        return Reply(answer, await _exactly(pipe.stream, answer.compressed or want, self.down))

    def _greeted(self, peer: str, took_s: float) -> None:
        took = self._greetings.pop(peer, deque(maxlen=GREETINGS))
        took.append(took_s)
        self._greetings[peer] = took
        if len(self._greetings) > GREETED:
            del self._greetings[next(iter(self._greetings))]

    async def _end(self, line: _Line, pipe: _Pipe) -> None:
        """Close a stream, once."""
        if line.pipe is pipe:
            line.pipe = None
            self._closed_sent += pipe.stream.bytes_sent
            self._closed_received += pipe.stream.bytes_received
        await pipe.stream.close()

    async def close(self) -> None:
        """Close every stream."""
        for line in list(self._lines.values()):
            if line.pipe is not None:
                line.pipe.broken = True
                await self._end(line, line.pipe)


async def _turn(place: _Place, want: int) -> None:
    """Wait until what was asked before us is answered; who gives up leaves its answer to the next."""
    before, done = place.before, place.done
    try:
        await asyncio.wait([before])  # not the future itself, which is not ours to cancel
    except BaseException:
        before.add_done_callback(lambda _: done.set_result((*before.result(), want)))
        raise


def _kind(message: Request, body: bytes | None) -> str:
    """Which stream a request goes on: what is large and pushed shares one."""
    shares = isinstance(message, Push) and len(body or b"") >= MUCH
    return "Push" if shares else type(message).__name__


def _now() -> float:
    return asyncio.get_running_loop().time()


def _accepted(answer: Answer, to: Progress) -> None:
    if not answer.ok:
        kind = VersionMismatch if answer.version else Refused
        raise kind(f"{to.name}: {answer.reason}")


async def _exactly(stream: Stream, size: int, down: Meter) -> bytes:
    """The content that was announced with this size."""
    began = _now()
    body = await stream.receive(size)
    if len(body) != size:
        raise ProtocolError(f"{len(body)} bytes came where {size} were announced")
    if size >= MUCH:
        down.moved(size, began, _now())
    return body


async def _answer(stream: Stream) -> Answer:
    answer: Answer = decode(await stream.receive(HEADER_BYTES), Answer)
    return answer


Work = Callable[[], Coroutine[None, None, None]]
"""What is to be done about a request that is here, and its answer."""


async def _answer_with(
    stream: Stream, work: Work, before: asyncio.Task[None] | None, count: Callable[[], None]
) -> None:
    """Answer one request after the one ``before``; a failure ends the stream for whoever reads from it."""
    try:
        if before is not None:
            await asyncio.wait([before])
        await work()
        count()
    except BaseException:
        await stream.close()
        raise


def _raise_unless_lost(task: asyncio.Task[None]) -> None:
    """What went wrong in answering, but for the loss of the stream."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, ConnectionLost):
        raise error


class Desk:
    """Serves other peers' requests. What it may accept and where it goes is its callbacks' business.

    Args:
        run: streams of another run are refused.
        contribution_sizes: how many bytes the contribution of a round's part may have, or None while there is
            no state; partial_sizes: those of a partial.
        take_contribution: a member's contribution is here; says whether it was welcome.
        take_partial: the same of the mean of what a group gave.
        take_result: a result is here; verifies and keeps it.
        find: content by digest.
        coming: a push begins (True), or has ended, well or not.
    """

    def __init__(
        self,
        run: str,
        *,
        contribution_sizes: Callable[[int, int], range | None],
        partial_sizes: Callable[[int, int], range | None],
        take_contribution: Callable[[PushContribution, Member, bytes], Awaitable[Answer]],
        take_partial: Callable[[PushPartial, Member, bytes], Awaitable[Answer]],
        take_result: Callable[[PushResult, bytes], Awaitable[Answer]],
        find: Callable[[str], Awaitable[bytes | None]],
        coming: Callable[[Push, Member, bool], None] = lambda push, member, begins: None,
    ) -> None:
        self._run = run
        self._sizes, self._partial_sizes = contribution_sizes, partial_sizes
        self._take_contribution, self._take_partial = take_contribution, take_partial
        self._take_result = take_result
        self._find, self._coming = find, coming
        self.down = Meter()
        """Sees how fast this peer's downlink is."""
        self.bytes_sent = 0
        self.bytes_received = 0

    async def serve(self, stream: Stream) -> None:
        """Answer requests on one stream until it ends, in their order; the next one comes in meanwhile."""
        sent = received = 0
        answering: asyncio.Task[None] | None = None

        def count() -> None:
            nonlocal sent, received
            self.bytes_sent += stream.bytes_sent - sent
            self.bytes_received += stream.bytes_received - received
            sent, received = stream.bytes_sent, stream.bytes_received

        try:
            member = await self._greet(stream)
            while member is not None:
                before, work = answering, await self._taken(stream, member)
                answering = asyncio.create_task(_answer_with(stream, work, before, count))
                if before is not None:
                    await before
        except ConnectionLost:
            if answering is not None:
                await asyncio.wait([answering])  # of what came whole nothing is lost
                _raise_unless_lost(answering)
        except PotluckError:
            if answering is not None:
                await asyncio.wait([answering])
            await stream.close()
            raise
        finally:
            if answering is not None:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)

    async def _greet(self, stream: Stream) -> Member | None:
        hello: Hello = decode(await stream.receive(HEADER_BYTES), Hello)
        reason = ""
        if hello.wire != WIRE:
            reason = f"speaks wire version {WIRE}, you speak {hello.wire}: install the same release"
        elif hello.run != self._run:
            reason = f"takes part in run {self._run}, not {hello.run}"
        await stream.send(encode(Answer(not reason, reason, version=hello.wire != WIRE)))
        return None if reason else Member(stream.peer, hello.session)

    async def _taken(self, stream: Stream, member: Member) -> Work:
        """The next request with what follows it: what there is to do about it."""
        request: Request = decode(await stream.receive(HEADER_BYTES), Request)
        if isinstance(request, Fetch):
            return partial(self._serve_content, stream, request)
        if isinstance(request, Hello):
            raise ProtocolError("a second Hello on one stream")
        self._coming(request, member, True)
        try:
            body = await self._body(stream, request)
        except BaseException:
            self._coming(request, member, False)
            raise
        return partial(self._take, stream, request, member, body)

    async def _body(self, stream: Stream, push: Push) -> bytes:
        """What follows a push, taken only if it has a size that the part may have."""
        if isinstance(push, PushContribution):
            due = self._due(self._sizes, push.round, push.part, push.weight > 0)
            return await self._sized(stream, push.part, push.size, due)
        if isinstance(push, PushPartial):
            due = self._due(self._partial_sizes, push.round, push.part, bool(push.contributors))
            return await self._sized(stream, push.part, push.size, due)
        due = self._due(self._sizes, push.round, push.held.part, True)
        with_tally = range(due.start, due.stop - 1 + MAX_TALLY_BYTES)
        return await self._sized(stream, push.held.part, push.held.size, with_tally)

    async def _take(self, stream: Stream, push: Push, member: Member, body: bytes) -> None:
        try:
            if isinstance(push, PushContribution):
                answer = await self._take_contribution(push, member, body)
            elif isinstance(push, PushPartial):
                answer = await self._take_partial(push, member, body)
            else:
                answer = await self._take_result(push, body)
        finally:
            self._coming(push, member, False)
        await stream.send(encode(answer))

    async def _serve_content(self, stream: Stream, request: Fetch) -> None:
        found = await self._find(request.digest)
        if not found:
            await stream.send(encode(Answer(found is not None, "" if found is not None else "not here")))
            return
        worthwhile = request.compressed and len(found) >= LEAST_COMPRESSED
        small = await asyncio.to_thread(compress, found) if worthwhile else None
        await stream.send(encode(Answer(True, size=len(found), compressed=len(small or b""))))
        await stream.send(small or found)

    def _due(self, sizes: Callable[[int, int], range | None], round_: int, part: int, some: bool) -> range:
        due = sizes(round_, part) if some else range(1)
        if due is None:
            # No state yet, so no part can be judged: end the stream, the sender tries again.
            raise ProtocolError("a part came before this peer had a state")
        return due

    async def _sized(self, stream: Stream, part: int, size: int, due: range) -> bytes:
        if size not in due:
            raise ProtocolError(f"part {part} has {size} bytes, {said(due)} are due")
        return await _exactly(stream, size, self.down) if size else b""
