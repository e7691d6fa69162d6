"""Requests to other peers, over streams that are kept open, and the answers to theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from potluck.codecs.base import said
from potluck.errors import ConnectionLost, PotluckError, ProtocolError, Refused, VersionMismatch
from potluck.net.transport import Stream, Transport
from potluck.wire.codec import WIRE, decode, encode
from potluck.wire.compress import compress, decompress
from potluck.wire.messages import (
    Answer,
    Fetch,
    Hello,
    Progress,
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

LEAST_COMPRESSED = 1 << 16
"""Content of fewer bytes travels as it is."""

SLOWEST = 20_000.0
"""A link slower than so many bytes/s is given up."""


@dataclass(frozen=True)
class Reply:
    """An answer, and the content that came with it."""

    answer: Answer
    body: bytes = b""


class Links:
    """Streams to other peers: one for each peer and kind of request, so that none waits for another kind.

    One that was not used for a while is closed: in a large round others act for a group each time.
    """

    def __init__(self, transport: Transport, run: str, session: str) -> None:
        self._transport = transport
        self._hello = encode(Hello(WIRE, run, session))
        self._streams: dict[tuple[str, str], Stream] = {}
        self._turns: dict[tuple[str, str], asyncio.Lock] = {}
        self._used: dict[tuple[str, str], float] = {}
        self.uplink = 0.0
        """Running mean of what went up in large requests, in bytes/s; 0 while unknown."""
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

    async def request(self, to: Progress, message: Request, body: bytes | None, want: int = 0) -> Reply:
        """One request and its answer; ``want`` is the size of the content asked for.

        Raises:
            PotluckError: the peer can't be reached, refuses, went away, or sent what it must not.
        """
        key = (to.peer, type(message).__name__)
        limit_s = REQUEST_S + (len(body or b"") + want) / SLOWEST
        await self._close_idle()
        async with self._turns.setdefault(key, asyncio.Lock()):
            try:
                async with asyncio.timeout(limit_s):
                    reply = await self._exchange(key, to, message, body, want)
            except TimeoutError:
                await self._drop(key)
                raise ConnectionLost(f"{to.name} did not answer within {limit_s:.0f} s") from None
            except BaseException:
                await self._drop(key)
                raise
            finally:
                self._used[key] = asyncio.get_running_loop().time()
        if reply.answer.ok and reply.answer.compressed:
            return Reply(reply.answer, await asyncio.to_thread(decompress, reply.body, want))
        return reply

    async def _close_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        for key in [key for key, at in self._used.items() if now - at > IDLE_S]:
            # While one is being closed, others may be closed or used again by other requests.
            turn = self._turns.get(key)
            if turn is not None and not turn.locked() and now - self._used.get(key, now) > IDLE_S:
                del self._used[key], self._turns[key]
                await self._drop(key)

    async def _exchange(
        self, key: tuple[str, str], to: Progress, message: Request, body: bytes | None, want: int
    ) -> Reply:
        stream = self._streams.get(key)
        if stream is None:
            stream = await self._transport.dial(to.addresses, to.peer)
            self._streams[key] = stream
            await stream.send(self._hello)
            _accepted(await _answer(stream), to)
        started = asyncio.get_running_loop().time()
        await stream.send(encode(message))
        if body:
            await stream.send(body)
        answer = await _answer(stream)
        if body and len(body) >= 1 << 16:
            self._measure(len(body), asyncio.get_running_loop().time() - started)
        if not answer.ok or not want:
            return Reply(answer)
        if answer.size != want:
            raise ProtocolError(f"{to.name} sent {answer.size} bytes where {want} were due")
        if answer.compressed >= want:
            raise ProtocolError(f"{to.name} sent {want} bytes as {answer.compressed} compressed ones")
        return Reply(answer, await _exactly(stream, answer.compressed or want))

    def _measure(self, size: int, took_s: float) -> None:
        speed = size / max(took_s, 1e-6)
        self.uplink = speed if not self.uplink else 0.7 * self.uplink + 0.3 * speed

    async def _drop(self, key: tuple[str, str]) -> None:
        stream = self._streams.pop(key, None)
        if stream is not None:
            self._closed_sent += stream.bytes_sent
            self._closed_received += stream.bytes_received
            await stream.close()

    async def close(self) -> None:
        """Close every stream."""
        for key in list(self._streams):
            await self._drop(key)


def _accepted(answer: Answer, to: Progress) -> None:
    if not answer.ok:
        kind = VersionMismatch if answer.version else Refused
        raise kind(f"{to.name}: {answer.reason}")


async def _exactly(stream: Stream, size: int) -> bytes:
    """The content that was announced with this size."""
    body = await stream.receive(size)
    if len(body) != size:
        raise ProtocolError(f"{len(body)} bytes came where {size} were announced")
    return body


async def _answer(stream: Stream) -> Answer:
    answer: Answer = decode(await stream.receive(HEADER_BYTES), Answer)
    return answer


class Desk:
    """Serves other peers' requests. What it may accept and where it goes is its callbacks' business.

    Args:
        run: streams of another run are refused.
        contribution_sizes: how many bytes a part's contribution may have, or None while there is no state;
            partial_sizes: those of a partial.
        take_contribution: a member's contribution is here; says whether it was welcome.
        take_partial: the same of the mean of what a group gave.
        take_result: a result is here; verifies and keeps it.
        find: content by digest.
    """

    def __init__(
        self,
        run: str,
        *,
        contribution_sizes: Callable[[int], range | None],
        partial_sizes: Callable[[int], range | None],
        take_contribution: Callable[[PushContribution, Member, bytes], Awaitable[Answer]],
        take_partial: Callable[[PushPartial, Member, bytes], Awaitable[Answer]],
        take_result: Callable[[PushResult, bytes], Awaitable[Answer]],
        find: Callable[[str], Awaitable[bytes | None]],
    ) -> None:
        self._run = run
        self._sizes, self._partial_sizes = contribution_sizes, partial_sizes
        self._take_contribution, self._take_partial = take_contribution, take_partial
        self._take_result = take_result
        self._find = find
        self.bytes_sent = 0
        self.bytes_received = 0

    async def serve(self, stream: Stream) -> None:
        """Answer requests on one stream until it ends."""
        sent = received = 0
        try:
            member = await self._greet(stream)
            while member is not None:
                await self._one(stream, member)
                self.bytes_sent += stream.bytes_sent - sent
                self.bytes_received += stream.bytes_received - received
                sent, received = stream.bytes_sent, stream.bytes_received
        except ConnectionLost:
            return
        except PotluckError:
            await stream.close()
            raise

    async def _greet(self, stream: Stream) -> Member | None:
        hello: Hello = decode(await stream.receive(HEADER_BYTES), Hello)
        reason = ""
        if hello.wire != WIRE:
            reason = f"speaks wire version {WIRE}, you speak {hello.wire}: install the same release"
        elif hello.run != self._run:
            reason = f"takes part in run {self._run}, not {hello.run}"
        await stream.send(encode(Answer(not reason, reason, version=hello.wire != WIRE)))
        return None if reason else Member(stream.peer, hello.session)

    async def _one(self, stream: Stream, member: Member) -> None:
        request: Request = decode(await stream.receive(HEADER_BYTES), Request)
        if isinstance(request, PushContribution):
            due = self._due(self._sizes, request.part, request.weight > 0)
            body = await _sized(stream, request.part, request.size, due)
            await stream.send(encode(await self._take_contribution(request, member, body)))
        elif isinstance(request, PushPartial):
            due = self._due(self._partial_sizes, request.part, bool(request.contributors))
            body = await _sized(stream, request.part, request.size, due)
            await stream.send(encode(await self._take_partial(request, member, body)))
        elif isinstance(request, PushResult):
            due = self._due(self._sizes, request.held.part, True)
            with_tally = range(due.start, due.stop - 1 + MAX_TALLY_BYTES)
            body = await _sized(stream, request.held.part, request.held.size, with_tally)
            await stream.send(encode(await self._take_result(request, body)))
        elif isinstance(request, Fetch):
            await self._serve_content(stream, request)
        else:
            raise ProtocolError("a second Hello on one stream")

    async def _serve_content(self, stream: Stream, request: Fetch) -> None:
        found = await self._find(request.digest)
        if not found:
            await stream.send(encode(Answer(found is not None, "" if found is not None else "not here")))
            return
        worthwhile = request.compressed and len(found) >= LEAST_COMPRESSED
        small = await asyncio.to_thread(compress, found) if worthwhile else None
        await stream.send(encode(Answer(True, size=len(found), compressed=len(small or b""))))
        await stream.send(small or found)

    def _due(self, sizes: Callable[[int], range | None], part: int, some: bool) -> range:
        due = sizes(part) if some else range(1)
        if due is None:
            # No state yet, so no part can be judged: end the stream, the sender tries again.
            raise ProtocolError("a part came before this peer had a state")
        return due


async def _sized(stream: Stream, part: int, size: int, due: range) -> bytes:
    """What follows a push, taken only if it has a size that the part may have."""
    if size not in due:
        raise ProtocolError(f"part {part} has {size} bytes, {said(due)} are due")
    return await _exactly(stream, size) if size else b""
