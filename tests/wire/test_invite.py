"""Invites survive people, and nothing else passes for one."""

from __future__ import annotations

import base64
from typing import Any

import blake3
import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from potluck.errors import InviteError
from potluck.wire.invite import MAX_CHARACTERS, Invite

HUB = "3f" * 32
PLAIN = Invite("evening-run", HUB, ("192.168.100.100:45678",), bytes(range(16)), 1_900_000_000)

invites = st.builds(
    Invite,
    run=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
    hub=st.binary(min_size=32, max_size=32).map(bytes.hex),
    addresses=st.lists(st.text(st.characters(codec="ascii"), max_size=40), max_size=4).map(tuple),
    secret=st.binary(min_size=16, max_size=32),
    expires=st.integers(0, (1 << 53) - 1),
    others=st.lists(
        st.tuples(st.binary(min_size=32, max_size=32).map(bytes.hex), st.just(("10.0.0.1:1", "host:2"))),
        max_size=2,
    ).map(tuple),
)


def text_of(body: bytes) -> str:
    raw = body + blake3.blake3(body).digest(length=5)
    return "potluck:" + base64.b32encode(raw).decode().rstrip("=").lower()


def refused(text: str) -> str:
    with pytest.raises(InviteError) as caught:
        Invite.parse(text)
    return str(caught.value)


@given(invites)
def test_round_trip(invite: Invite) -> None:
    assert Invite.parse(invite.text()) == invite


def test_it_is_short() -> None:
    assert len(PLAIN.text()) < 200


def test_its_printed_form_keeps_the_secret() -> None:
    invite = Invite("run", HUB, (), b"sixteen secret b")
    assert "secret" not in repr(invite)
    assert "secret" not in f"{[invite]}"


@given(invites, st.data())
def test_spaces_line_breaks_and_case_do_not_matter(invite: Invite, data: st.DataObject) -> None:
    text = invite.text()
    for _ in range(3):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from([" ", "\n", "\r\n  ", "\t", "\u00a0"])) + text[at:]
    flips = data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    text = "".join(c.upper() if flip else c for c, flip in zip(text, flips, strict=True))
    assert Invite.parse(text) == invite


@given(invites, st.data())
def test_any_substitution_is_refused(invite: Invite, data: st.DataObject) -> None:
    text = invite.text()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.one_of(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567=:-0189"), st.characters()))
    assume("".join(other.split()).lower() != text[at])
    refused(text[:at] + other + text[at + 1 :])


@given(invites, st.data())
def test_any_deletion_or_insertion_is_refused(invite: Invite, data: st.DataObject) -> None:
    text = invite.text()
    at = data.draw(st.integers(0, len(text) - 1))
    refused(text[:at] + text[at + 1 :])
    refused(text[:at] + data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567=")) + text[at:])


@given(invites, st.data())
def test_any_transposition_is_refused(invite: Invite, data: st.DataObject) -> None:
    text = invite.text()
    at = data.draw(st.integers(0, len(text) - 2))
    assume(text[at] != text[at + 1])
    refused(text[:at] + text[at + 1] + text[at] + text[at + 2 :])


def test_every_single_slip_in_one_invite_is_refused() -> None:
    text = PLAIN.text()
    for at in range(len(text)):
        refused(text[:at])
        refused(text[:at] + text[at + 1 :])
        for other in "abcdefghijklmnopqrstuvwxyz234567":
            if other != text[at]:
                refused(text[:at] + other + text[at + 1 :])


@pytest.mark.parametrize("text", ["", "https://example.org/join/abc", "potluck", "invite:abc", "\x00", "🍲"])
def test_what_is_no_invite_is_called_so(text: str) -> None:
    assert "no invite" in refused(text)


@pytest.mark.parametrize("tail", ["", "a", "aa", "a" * 100, "====", "potluck:", "ä"])
def test_what_starts_like_one_is_called_mistyped(tail: str) -> None:
    assert "mistyped or cut short" in refused("potluck:" + tail)


def test_a_newer_format_is_told_from_a_slip() -> None:
    assert "update Potluck" in refused(text_of(b"\x03whatever comes"))


def test_expiry() -> None:
    """Only the hub refuses an expired invite; this machine's clock is good for a hint when that is away."""
    assert PLAIN.hint(PLAIN.expires - 1) == ""
    assert "expired at 2030-03-17 17:46 UTC: ask its host" in PLAIN.hint(PLAIN.expires)
    assert msgspec.structs.replace(PLAIN, expires=0).hint(1e12) == ""


def test_a_time_beyond_the_calendar_is_told_all_the_same() -> None:
    far = msgspec.structs.replace(PLAIN, expires=(1 << 53) - 1)
    assert "expired" in far.hint(float(1 << 54))


def test_long_text_is_not_even_looked_at() -> None:
    assert "no invite" in refused("potluck:" + "a" * MAX_CHARACTERS)


@pytest.mark.parametrize(
    "change",
    [
        {"run": ""},
        {"run": "x" * 65},
        {"hub": "3f" * 31},
        {"hub": "no key"},
        {"addresses": ("a:1",) * 17},
        {"addresses": ("a" * 300,)},
        {"secret": b"short"},
        {"secret": b"x" * 33},
        {"expires": -1},
    ],
)
def test_an_invite_out_of_bounds_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(InviteError):
        msgspec.structs.replace(PLAIN, **change).text()


def test_an_invite_too_long_to_hand_over_is_not_written() -> None:
    with pytest.raises(InviteError, match="too long"):
        msgspec.structs.replace(PLAIN, addresses=("a" * 250 + ":1",) * 16).text()


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["run"],
        ["run", b"x" * 32, [], b"x" * 16, 0, "more"],
        ["run", b"x" * 31, [], b"x" * 16, 0],
        ["run", b"x" * 32, [], b"x" * 16, "0"],
        {"run": "run"},
    ],
)
def test_a_right_checksum_over_wrong_fields_is_refused(fields: object) -> None:
    assert "does not hold" in refused(text_of(b"\x01" + msgspec.msgpack.encode(fields)))
    assert "does not hold" in refused(text_of(b"\x01" + msgspec.msgpack.encode(fields) + b"\x00"))
