"""What hubs, peers and strangers say to each other, cut short at each byte, flipped or made up: refused, and
nothing but refused, by the functions that really read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import InviteError, ProtocolError, Refused, Unreachable, VersionMismatch
from potluck.hub.admission import (
    Admit,
    Admitted,
    Attach,
    Attached,
    Denied,
    judge,
    judge_member,
    seek_admission,
    seek_ledger,
)
from potluck.hub.between import (
    Enlist,
    Enlisted,
    Meet,
    Route,
    Tidings,
    judge_enlist,
    judge_hub,
    kind_of,
    seek_hub,
    seek_seat,
)
from potluck.hub.book import Book
from potluck.hub.gossip import Gossip
from potluck.hub.seats import Seat, sign
from potluck.hub.state import HubState, Secret
from potluck.identity import Identity
from potluck.wire.codec import WIRE, encode
from potluck.wire.invite import Invite
from potluck.wire.messages import Answer

from .test_admission import OneAnswer

AUTHORITY, HUB = Identity.generate(), Identity.generate()
RUN, SECRET = "run", Secret(b"s" * 16, 2000)
INVITE = Invite(RUN, AUTHORITY.peer, ("127.0.0.1:1",), SECRET.value)
SEATS = tuple(
    sign(Seat(number, 1, 2, hub.peer, ("127.0.0.1:1", "[::1]:2")), RUN, AUTHORITY)
    for number, hub in ((1, AUTHORITY), (2, HUB), (3, Identity.generate()))
)
TIDINGS = Tidings(SEATS, (SECRET,), (Secret(b"t" * 16),), 2, 7, True)

Reader = Callable[[bytes], Any]


@dataclass(frozen=True)
class Said:
    """A message, who reads it, and whether it asks for something: then a bad one may get a ``Denied``."""

    message: msgspec.Struct
    read: Reader
    asks: bool = True

    def __str__(self) -> str:
        return type(self.message).__name__


def learned(raw: bytes, book: Book | None = None) -> None:
    """A hub takes in what another tells it."""
    gossip = Gossip(book or Forgetful())
    asyncio.run(gossip._hear(OneAnswer(raw), HUB.peer))


class Forgetful(Book):
    """A hub's book without a disk."""

    def __init__(self) -> None:
        super().__init__(Path(), HubState(RUN, "p" * 16), AUTHORITY.peer, AUTHORITY)

    def write(self, state: HubState) -> None:
        self.state = state


def answered(seek: Callable[[OneAnswer], Any]) -> Reader:
    return lambda raw: asyncio.run(seek(OneAnswer(raw)))


ALL = [
    Said(Admit(WIRE, RUN, SECRET.value, HUB.peer), lambda raw: judge(raw, RUN, [SECRET], 1000.0)),
    Said(Attach(WIRE, RUN), lambda raw: judge_member(raw, RUN)),
    Said(Enlist(WIRE, RUN, SECRET.value, HUB.peer, 2), lambda raw: judge_enlist(raw, RUN, [SECRET], 1000.0)),
    Said(Meet(WIRE, RUN), lambda raw: judge_hub(raw, RUN)),
    Said(Route(WIRE, RUN), lambda raw: judge_hub(raw, RUN)),
    Said(
        Admitted(b"certificate", AUTHORITY.authority(), "user", "password", SEATS),
        answered(lambda stream: seek_admission(stream, INVITE, HUB.peer)),
        asks=False,
    ),
    Said(Attached(Answer(True), SEATS), answered(lambda stream: seek_ledger(stream, RUN)), asks=False),
    Said(
        Attached(Answer(True), SEATS[:1]),
        answered(lambda stream: seek_hub(stream, Meet(WIRE, RUN), Forgetful().heed)),
        asks=False,
    ),
    Said(
        Enlisted(AUTHORITY.private_pem(), "p" * 16, "c" * 16, 2, TIDINGS),
        answered(lambda stream: seek_seat(stream, INVITE, HUB.peer, 2)),
        asks=False,
    ),
    Said(TIDINGS, learned, asks=False),
]

every = pytest.mark.parametrize("said", ALL, ids=str)
some = pytest.mark.parametrize("said", ALL[:5], ids=str)

REFUSALS = (ProtocolError, InviteError, VersionMismatch, Refused, Unreachable)
"""What an answer can come to: it can't be read, or it is a no in words."""


@every
def test_whole_it_is_taken(said: Said) -> None:
    raw = encode(said.message)
    assert not isinstance(said.read(raw), Denied)


@every
def test_cut_short_at_any_byte_it_is_refused(said: Said) -> None:
    raw = encode(said.message)
    for length in range(len(raw)):
        with pytest.raises(ProtocolError):
            said.read(raw[:length])


@every
def test_with_anything_after_it_it_is_refused(said: Said) -> None:
    raw = encode(said.message)
    for more in (b"\x00", b"\xc0", raw, bytes(1 << 19)):
        with pytest.raises(ProtocolError):
            said.read(raw + more)


@every
def test_one_for_another_is_refused(said: Said) -> None:
    for other in (Answer(True, "x" * 500), *(one.message for one in ALL)):
        if type(other) is type(said.message) or {type(other), type(said.message)} == {Meet, Route}:
            continue
        if isinstance(said.message, Enlisted) and isinstance(other, Answer):
            continue  # that is how a seat is refused
        with pytest.raises(ProtocolError):
            said.read(encode(other))


@every
def test_flipped_bytes_are_read_or_refused_and_nothing_else(said: Said) -> None:
    raw, dice = encode(said.message), random.Random(0)
    for _ in range(300):
        changed = bytearray(raw)
        for _ in range(dice.randint(1, 3)):
            changed[dice.randrange(len(raw))] = dice.randrange(256)
        try:
            said.read(bytes(changed))
        except REFUSALS:
            continue


@some
@given(raw=st.binary(max_size=300))
def test_garbage_gets_nothing(said: Said, raw: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(said.read(raw), Denied)


@given(raw=st.binary(max_size=300))
def test_a_garbled_answer_is_an_error_of_ours(raw: bytes) -> None:
    for said in ALL[5:]:
        with pytest.raises(REFUSALS):
            said.read(raw)


@given(raw=st.binary(max_size=300))
def test_the_kind_of_anything_can_be_asked_for(raw: bytes) -> None:
    assert isinstance(kind_of(raw), str)


NAMES = st.sampled_from(["type", "wire", "run", "secret", "peer", "hub", "seat"])
WORDS = st.sampled_from([*map(str, ALL), RUN, HUB.peer, "", "x" * 80])
VALUES = st.none() | st.integers(-9, 1 << 63) | st.binary(max_size=80) | WORDS | st.lists(WORDS, max_size=2)


@some
@given(fields=st.dictionaries(NAMES, VALUES))
def test_well_formed_nonsense_gets_nothing(said: Said, fields: dict[str, Any]) -> None:
    """MessagePack with the right names in it, and any values."""
    with contextlib.suppress(ProtocolError):
        verdict = said.read(msgspec.msgpack.encode({"wire": WIRE} | fields))
        is_yes = isinstance(verdict, Answer) and verdict.ok and fields["run"] == RUN
        is_no = isinstance(verdict, Denied) or (isinstance(verdict, Answer) and not verdict.ok)
        assert is_yes or is_no, "without the secret at most what members may say among themselves"


def test_a_seat_that_the_authority_did_not_sign_is_learned_from_nobody() -> None:
    book = Forgetful()
    stolen = msgspec.structs.replace(SEATS[1], hub=Identity.generate().peer, version=99)
    learned(encode(msgspec.structs.replace(TIDINGS, seats=(SEATS[0], stolen))), book)
    assert book.seats == (SEATS[0],)
