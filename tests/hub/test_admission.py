"""Who is let in, and in which words who is not."""

from __future__ import annotations

import asyncio
import contextlib
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import ConnectionLost, InviteError, ProtocolError, Refused, Unreachable, VersionMismatch
from potluck.hub import admission
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
from potluck.hub.state import Secret
from potluck.net.transport import Stream
from potluck.wire.codec import WIRE, encode
from potluck.wire.invite import Invite
from potluck.wire.messages import Answer

PEER = "cd" * 32
NOW = 1000.0
GOOD, ENDING, ENDLESS = b"g" * 16, b"e" * 16, b"n" * 16
KNOWN = (Secret(GOOD, 2000), Secret(ENDING, 1000), Secret(ENDLESS))
INVITE = Invite("run", "ab" * 32, ("127.0.0.1:1",), GOOD)


class OneAnswer(Stream):
    """The other side, reduced to what it says: one message, or nothing."""

    def __init__(self, answer: bytes | None) -> None:
        self.peer = INVITE.hub
        self.sent: list[bytes] = []
        self._answer = answer

    async def send(self, message: bytes | memoryview) -> None:
        self.sent.append(bytes(message))

    async def receive(self, limit: int) -> bytes:
        if self._answer is None:
            await asyncio.Event().wait()
        assert self._answer is not None
        return self._answer

    async def close(self) -> None:
        pass


def request(secret: bytes = GOOD, run: str = "run", wire: int = WIRE) -> Admit:
    return Admit(wire, run, secret, PEER)


@pytest.mark.parametrize("secret", [GOOD, ENDLESS])
def test_a_known_secret_opens(secret):
    assert judge(encode(request(secret)), "run", KNOWN, NOW) == request(secret)


@pytest.mark.parametrize(
    ("message", "cause", "words"),
    [
        (request(b"x" * 16), "invite", "does not know this invite"),
        (request(b""), "invite", "does not know this invite"),
        (request(GOOD[:-1]), "invite", "does not know this invite"),
        (request(ENDING), "invite", "has expired"),
        (request(run="other"), "invite", "the run 'other', which is not this hub's"),
        (request(wire=WIRE + 1), "version", f"speaks wire version {WIRE + 1}, the hub {WIRE}.*on the hub's"),
        (request(wire=WIRE - 1), "version", "on the peer's machine"),
    ],
)
def test_no_is_said_in_words(message, cause, words):
    verdict = judge(encode(message), "run", KNOWN, NOW)
    assert isinstance(verdict, Denied)
    assert verdict.cause == cause
    assert re.search(words, verdict.reason)


def test_another_version_is_told_so_even_when_its_message_has_another_shape():
    foreign = msgspec.msgpack.encode({"type": "Enter", "wire": 7, "run": ["not", "a", "name"]})
    for verdict in (judge(foreign, "run", KNOWN, NOW), judge_member(foreign, "run")):
        assert isinstance(verdict, Denied)
        assert verdict.cause == "version"


def test_a_member_attaches_to_its_run_only():
    assert judge_member(encode(Attach(WIRE, "run")), "run") == Answer(True)
    assert judge_member(encode(Attach(WIRE, "other")), "run") == Answer(
        False, "this hub holds another run's ledger"
    )


def test_messages_cut_short_or_with_more_behind_are_refused():
    for message, verdict in (
        (request(), lambda raw: judge(raw, "run", KNOWN, NOW)),
        (Attach(WIRE, "run"), lambda raw: judge_member(raw, "run")),
    ):
        whole = encode(message)
        for bad in (*(whole[:length] for length in range(len(whole))), whole + b"\x00", whole + bytes(5000)):
            with pytest.raises(ProtocolError):
                verdict(bad)
    with pytest.raises(ProtocolError):
        judge(encode(Attach(WIRE, "run")), "run", KNOWN, NOW)
    with pytest.raises(ProtocolError):
        judge_member(encode(request()), "run")


@given(st.binary(max_size=300))
def test_garbage_never_gets_in(raw):
    for verdict in (lambda: judge(raw, "run", KNOWN, NOW), lambda: judge_member(raw, "run")):
        with contextlib.suppress(ProtocolError):
            assert isinstance(verdict(), Denied)


def seek(answer: msgspec.Struct | None) -> Admitted:
    stream = OneAnswer(None if answer is None else encode(answer))
    admitted = asyncio.run(seek_admission(stream, INVITE, PEER))
    assert stream.sent == [encode(request())]
    return admitted


def test_the_strangers_side():
    admitted = Admitted(b"certificate", b"authority", "user", "password")
    assert seek(admitted) == admitted
    with pytest.raises(InviteError, match="too late"):
        seek(Denied("invite", "too late"))
    with pytest.raises(VersionMismatch, match="too old"):
        seek(Denied("version", "too old"))
    with pytest.raises(ProtocolError):
        seek(Answer(True))


def test_the_members_side():
    def attach(answer: msgspec.Struct) -> None:
        asyncio.run(seek_ledger(OneAnswer(encode(answer)), "run"))

    attach(Attached(Answer(True)))
    with pytest.raises(Refused, match="full"):
        attach(Attached(Answer(False, "full")))
    with pytest.raises(Unreachable, match="moving"):
        attach(Attached(Answer(False, "moving", retry=True)))
    with pytest.raises(VersionMismatch, match="too old"):
        attach(Denied("version", "too old"))
    with pytest.raises(ProtocolError):
        attach(Attach(WIRE, "run"))


def test_silence_ends(monkeypatch):
    monkeypatch.setattr(admission, "ANSWER_S", 0.01)
    with pytest.raises(ConnectionLost, match="said nothing"):
        seek(None)
