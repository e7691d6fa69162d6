"""How a stranger with an invite becomes a member with a certificate, and a member reaches the ledger.

Two exchanges, each one message and its answer: ``Admit`` over a stranger's stream, which then ends, and
``Attach`` over a member's, which then carries the ledger's own bytes in messages of ``CHUNK_BYTES`` at most.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from typing import Annotated, Literal

from msgspec import Meta, Struct

from potluck.errors import ConnectionLost, InviteError, PotluckError, Refused, Unreachable, VersionMismatch
from potluck.hub.seats import Seat, Seats
from potluck.hub.state import Secret
from potluck.net.transport import Stream
from potluck.wire.codec import WIRE, decode, encode
from potluck.wire.invite import Invite
from potluck.wire.messages import Answer
from potluck.wire.records import PeerId, Reason

CHUNK_BYTES = 1 << 18
"""Of the ledger's connection, in one message."""

MAX_OPENING_BYTES = 4096
"""Of the first message of a stream to the hub."""

MAX_ANSWER_BYTES = 1 << 14
"""Of the hub's answer to it: with the seats of three hubs, and all their addresses."""

ANSWER_S = 10.0
"""How long either side waits for the other's word, in seconds."""

WRONG_SECRET_S = 0.5
"""How long a wrong secret waits for its answer, in seconds; the transport bounds how many wait at once."""


def seats_subject(run: str) -> str:
    """Where hubs tell members, over NATS, where the run has hubs (``Hubs``)."""
    return f"potluck.{run}.hubs"


RunName = Annotated[str, Meta(max_length=64)]
Pem = Annotated[bytes, Meta(max_length=1500)]


class Admit(Struct, frozen=True, tag=True):
    """A stranger's request to be let into the run."""

    wire: int
    run: RunName
    secret: Annotated[bytes, Meta(max_length=64)]
    peer: PeerId


class Admitted(Struct, frozen=True, tag=True):
    """The certificate that makes the peer a member, its authority's, the ledger's user and password, and
    where else the run has hubs.
    """

    certificate: Pem
    authority: Pem
    user: Annotated[str, Meta(max_length=128)]
    password: Annotated[str, Meta(max_length=128)]
    seats: Seats = ()


class Denied(Struct, frozen=True, tag=True):
    """No, and whether it is for the version or for the invite."""

    cause: Literal["version", "invite"]
    reason: Reason


class Attach(Struct, frozen=True, tag=True):
    """A member's request to reach the ledger; answered by ``Attached`` or, for the version, ``Denied``."""

    wire: int
    run: RunName


class Hubs(Struct, frozen=True, tag=True):
    """Where the run has hubs: told when that changes, and now and then."""

    seats: Seats


class Attached(Struct, frozen=True, tag=True):
    """Whether the stream leads to the ledger from here on, and where else the run has hubs."""

    answer: Answer
    seats: Seats = ()


class _AnyVersion(Struct, frozen=True):
    """What every version's opening message has."""

    wire: int


def judge(raw: bytes, run: str, known: Iterable[Secret], now: float) -> Admit | Denied:
    """The hub's verdict on a stranger's first message; ``now`` is in seconds since 1970.

    Raises:
        ProtocolError: the message is none.
    """
    if denied := other_version(raw):
        return denied
    request: Admit = decode(raw, Admit, MAX_OPENING_BYTES)
    if request.run != run:
        return Denied("invite", f"the invite is for the run {request.run!r}, which is not this hub's")
    found = None
    for secret in known:  # all of them, so that the time it takes tells nothing
        if hmac.compare_digest(secret.value, request.secret):
            found = secret
    if found is None:
        return Denied("invite", "the hub does not know this invite: ask its host for a new one")
    if found.expires and now >= found.expires:
        return Denied("invite", f"the invite to {run!r} has expired: ask its host for a new one")
    return request


def judge_member(raw: bytes, run: str) -> Answer | Denied:
    """The hub's verdict on a member's first message.

    Raises:
        ProtocolError: the message is none.
    """
    if denied := other_version(raw):
        return denied
    request: Attach = decode(raw, Attach, MAX_OPENING_BYTES)
    if request.run != run:
        return Answer(False, "this hub holds another run's ledger")
    return Answer(True)


async def seek_admission(stream: Stream, invite: Invite, peer: str) -> Admitted:
    """The stranger's side: ask to be let in.

    Raises:
        InviteError: the hub does not take the invite, and why.
        VersionMismatch: the hub speaks another wire version.
        ConnectionLost: it closed, died or did not answer.
        ProtocolError: its answer can't be read.
    """
    await stream.send(encode(Admit(WIRE, invite.run, invite.secret, peer)))
    answer: Admitted | Denied = decode(await opening(stream, MAX_ANSWER_BYTES), Admitted | Denied)
    if isinstance(answer, Denied):
        raise _error(answer)
    return answer


async def seek_ledger(stream: Stream, run: str) -> tuple[Seat, ...]:
    """The member's side: from here on, the stream leads to the ledger; returns the hubs there are.

    Raises:
        Refused: the hub says no, and why.
        Unreachable: not now, and why.
        VersionMismatch: it speaks another wire version.
        ConnectionLost: it closed, died or did not answer.
        ProtocolError: its answer can't be read.
    """
    await stream.send(encode(Attach(WIRE, run)))
    reply: Attached | Denied = decode(await opening(stream, MAX_ANSWER_BYTES), Attached | Denied)
    if isinstance(reply, Denied):
        raise _error(reply)
    if reply.answer.retry:
        raise Unreachable(f"the hub can't lead us to the ledger now: {reply.answer.reason}")
    if not reply.answer.ok:
        raise Refused(f"the hub does not let us reach the ledger: {reply.answer.reason}")
    return reply.seats


async def opening(stream: Stream, limit: int = MAX_OPENING_BYTES) -> bytes:
    """The first message from the other side, within ``ANSWER_S``.

    Raises:
        ConnectionLost: it closed, died or said nothing.
        ProtocolError: the message is over ``limit`` bytes.
    """
    try:
        async with asyncio.timeout(ANSWER_S):
            return await stream.receive(limit)
    except TimeoutError:
        who = f"peer {stream.peer[:12]}" if stream.peer else "a stranger"
        raise ConnectionLost(f"{who} said nothing for {ANSWER_S:.0f} s") from None


def other_version(raw: bytes) -> Denied | None:
    """The answer to a first message of another wire version.

    Raises:
        ProtocolError: the message is none.
    """
    request: _AnyVersion = decode(raw, _AnyVersion, MAX_OPENING_BYTES)
    if request.wire == WIRE:
        return None
    where = "on the peer's machine" if request.wire < WIRE else "on the hub's machine"
    return Denied(
        "version", f"the peer speaks wire version {request.wire}, the hub {WIRE}: update Potluck {where}"
    )


def _error(denied: Denied) -> PotluckError:
    return VersionMismatch(denied.reason) if denied.cause == "version" else InviteError(denied.reason)
