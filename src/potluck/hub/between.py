"""What hubs of one run say to each other, and to one that comes to help.

``Enlist`` is a newcomer's word: with a secret that only the hub's owner has, it gets all that makes a hub
(the authority's key too: a hub can be lost for ever, and its run must still be able to let people in).
``Meet`` and ``Route`` come from hubs with a seat, known by their keys: the first begins an exchange of
``Tidings`` for as long as both are there, the second leads to the other's nats-server.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Annotated

from msgspec import Meta, Struct

from potluck.errors import InviteError, ProtocolError, Refused, VersionMismatch
from potluck.hub.admission import (
    MAX_ANSWER_BYTES,
    MAX_OPENING_BYTES,
    Attached,
    Denied,
    RunName,
    opening,
    other_version,
)
from potluck.hub.seats import SEATS, Seats
from potluck.hub.state import Secret
from potluck.net.transport import Stream
from potluck.wire.codec import WIRE, decode, encode
from potluck.wire.invite import Invite
from potluck.wire.messages import Answer
from potluck.wire.records import Count, PeerId

MAX_TIDINGS_BYTES = 1 << 18
"""Of all that one hub tells another, in one message."""

TOKEN_PREFIX = "potluck-hub:"  # noqa: S105 – what all of them begin with
"""What a token begins with: an invite for hubs, so that nobody takes one for the other."""

Pem = Annotated[bytes, Meta(max_length=1500)]
Password = Annotated[str, Meta(min_length=16, max_length=128)]
Secrets = Annotated[tuple[Secret, ...], Meta(max_length=4096)]


class Enlist(Struct, frozen=True, tag=True):
    """A newcomer asks for a seat: the lowest free one (0), or one whose hub is lost."""

    wire: int
    run: RunName
    secret: Annotated[bytes, Meta(max_length=64)]
    hub: PeerId
    seat: Annotated[int, Meta(ge=0, le=SEATS)]


class Tidings(Struct, frozen=True, tag=True):
    """What hubs keep in common (seats, secrets, which engine is in force), and how one is doing: how many
    peers it has, and whether its copy of the ledger is whole.
    """

    seats: Seats
    secrets: Secrets
    tokens: Secrets
    engine: Count
    peers: Count
    whole: bool


class Enlisted(Struct, frozen=True, tag=True):
    """All that makes a hub of the run: the authority's private key, both passwords, a seat, and tidings."""

    authority: Pem
    password: Password
    cluster_password: Password
    seat: Annotated[int, Meta(ge=1, le=SEATS)]
    tidings: Tidings


class Meet(Struct, frozen=True, tag=True):
    """A hub wants to exchange tidings; answered by ``Attached``."""

    wire: int
    run: RunName


class Route(Struct, frozen=True, tag=True):
    """A hub's nats-server wants to reach ours; answered by ``Attached``."""

    wire: int
    run: RunName


def token_text(token: Invite) -> str:
    """The line by which an owner lets another machine become a hub."""
    return TOKEN_PREFIX + token.text().partition(":")[2]


def parse_token(text: str) -> Invite:
    """The token in ``text``.

    Raises:
        InviteError: it is none, or an invite for peers, or mistyped.
    """
    compact = "".join(text.split()).lower()
    if not compact.startswith(TOKEN_PREFIX):
        raise InviteError(
            f"this is no token for a hub: one starts with {TOKEN_PREFIX!r}, and `potluck hub token` shows it"
        )
    return Invite.parse("potluck:" + compact.removeprefix(TOKEN_PREFIX))


def judge_enlist(raw: bytes, run: str, tokens: Iterable[Secret], now: float) -> Enlist | Denied:
    """The hub's verdict on one who wants a seat; ``now`` is in seconds since 1970.

    Raises:
        ProtocolError: the message is none.
    """
    if denied := other_version(raw):
        return denied
    request: Enlist = decode(raw, Enlist, MAX_OPENING_BYTES)
    if request.run != run:
        return Denied("invite", f"the token is for the run {request.run!r}, which is not this hub's")
    known = False
    for token in tokens:  # all of them, so that the time it takes tells nothing
        is_current = not token.expires or now < token.expires
        known |= hmac.compare_digest(token.value, request.secret) and is_current
    if not known:
        return Denied("invite", "the hub does not know this token, or it has expired: get a new one there")
    return request


def judge_hub(raw: bytes, run: str) -> Answer | Denied:
    """The hub's verdict on the first message of another that has a seat.

    Raises:
        ProtocolError: the message is none.
    """
    if denied := other_version(raw):
        return denied
    request: Meet | Route = decode(raw, Meet | Route, MAX_OPENING_BYTES)
    return Answer(True) if request.run == run else Answer(False, "this hub keeps another run's ledger")


async def seek_seat(stream: Stream, token: Invite, hub: str, seat: int) -> Enlisted:
    """The newcomer's side.

    Raises:
        InviteError: the token is not taken, and why.
        Refused: there is no seat, and why.
        VersionMismatch, ConnectionLost, ProtocolError: as ``seek_admission``.
    """
    await stream.send(encode(Enlist(WIRE, token.run, token.secret, hub, seat)))
    answer: Enlisted | Answer | Denied = decode(
        await opening(stream, MAX_TIDINGS_BYTES), Enlisted | Answer | Denied, MAX_TIDINGS_BYTES
    )
    if isinstance(answer, Enlisted):
        return answer
    if isinstance(answer, Answer):
        raise Refused(f"no seat: {answer.reason}")
    raise VersionMismatch(answer.reason) if answer.cause == "version" else InviteError(answer.reason)


async def seek_hub(stream: Stream, request: Meet | Route, heed: Callable[[Seats], None]) -> None:
    """A hub's side of ``Meet`` and ``Route``; ``heed`` gets the seats that came with the answer, if any.

    Raises:
        Refused: the other hub says no, and why.
        VersionMismatch, ConnectionLost, ProtocolError: as ``seek_ledger``.
    """
    await stream.send(encode(request))
    reply: Attached | Denied = decode(await opening(stream, MAX_ANSWER_BYTES), Attached | Denied)
    if isinstance(reply, Denied):
        raise VersionMismatch(reply.reason)
    heed(reply.seats)
    if not reply.answer.ok:
        raise Refused(f"the other hub says no: {reply.answer.reason}")


class _Kind(Struct, frozen=True):
    type: str


def kind_of(raw: bytes) -> str:
    """The type of a stream's first message; empty when it has none."""
    try:
        kind: _Kind = decode(raw, _Kind, MAX_OPENING_BYTES)
    except ProtocolError:
        return ""
    return kind.type
