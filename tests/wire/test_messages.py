"""Every message whole, cut short at each byte, with trailing data, of the wrong type or out of range."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import ProtocolError
from potluck.wire.codec import MAX_MESSAGE_BYTES, decode, encode
from potluck.wire.messages import (
    MAX_EVERY_S,
    MAX_GROUP,
    MAX_RATE,
    MAX_RTT_S,
    MOST,
    Answer,
    Fetch,
    Hello,
    Progress,
    PushContribution,
    PushPartial,
    PushResult,
    Request,
)
from potluck.wire.records import (
    Blob,
    Body,
    Commit,
    Genesis,
    Held,
    Member,
    Open,
    PartInfo,
    Reassign,
    Record,
    Snapshot,
    TensorSpec,
    Unreadable,
)
from potluck.wire.result import Tally

from .examples import ANSWER, BODIES, INFO, MESSAGES, PROGRESS, REQUESTS, A, B, C, label

every = pytest.mark.parametrize(("message", "kind"), MESSAGES, ids=[label(m) for m, _ in MESSAGES])


def test_there_is_an_example_of_every_record_and_request() -> None:
    assert {type(body) for body in BODIES} | {Unreadable} == set(Body.__args__)
    assert {type(request) for request in REQUESTS} == set(Request.__args__)
    for message in (PROGRESS, ANSWER, *REQUESTS):
        defaults = {f.name: f.default for f in msgspec.structs.fields(message)}
        same = [name for name, default in defaults.items() if getattr(message, name) == default]
        assert set(same) <= {"wire"}, f"{type(message).__name__} leaves {same} as they are"


@every
def test_what_is_sent_comes_whole(message: Any, kind: Any) -> None:
    assert decode(encode(message), kind) == message


@every
def test_cut_short_at_any_byte_it_is_refused(message: Any, kind: Any) -> None:
    raw = encode(message)
    for size in range(len(raw)):
        with pytest.raises(ProtocolError):
            decode(raw[:size], kind)


@every
def test_with_anything_after_it_it_is_refused(message: Any, kind: Any) -> None:
    raw = encode(message)
    for more in (b"\x00", b"\xc0", raw):
        with pytest.raises(ProtocolError, match="can't be read"):
            decode(raw + more, kind)


@every
def test_fields_of_a_later_release_are_skipped(message: Any, kind: Any) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    fields["a field of tomorrow"] = {"with": [1, 2.5, None, b"bytes"]}
    assert decode(msgspec.msgpack.encode(fields), kind) == message


@every
def test_a_field_of_another_type_is_refused(message: Any, kind: Any) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    for name in fields:
        for wrong in (b"\xff\xfe", [[[]]], {"a": {}}, -(1 << 60)):
            if name == "body" and isinstance(wrong, dict):
                continue
            changed = msgspec.msgpack.encode(fields | {name: wrong})
            try:
                again = decode(changed, kind)
            except ProtocolError:
                continue
            assert isinstance(wrong, int), f"{name} = {wrong!r} passed"
            assert getattr(again, name) == wrong
            assert isinstance(getattr(again, name), int | float)


@every
def test_a_message_without_its_needed_fields_is_refused(message: Any, kind: Any) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    needed = [f.encode_name for f in msgspec.structs.fields(message) if f.required]
    for name in needed:
        left = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(ProtocolError):
            decode(msgspec.msgpack.encode(left), kind)


@every
def test_flipped_bytes_give_a_message_or_a_refusal_and_nothing_else(message: Any, kind: Any) -> None:
    raw, dice = encode(message), random.Random(0)
    for _ in range(300):
        changed = bytearray(raw)
        for _ in range(dice.randint(1, 3)):
            changed[dice.randrange(len(raw))] = dice.randrange(256)
        try:
            decode(bytes(changed), kind)
        except ProtocolError:
            continue


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_refusal_and_nothing_else(raw: bytes) -> None:
    for kind in (Record, Request, Progress, Answer):
        try:
            decode(raw, kind)
        except ProtocolError:
            continue


def test_a_message_of_another_kind_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode(encode(REQUESTS[0]), Answer)
    with pytest.raises(ProtocolError):
        decode(encode(BODIES[1]), Genesis)
    with pytest.raises(ProtocolError):
        decode(encode(ANSWER), Request)
    unknown = msgspec.msgpack.encode({"type": "Surrender", "digest": C})
    with pytest.raises(ProtocolError):
        decode(unknown, Request)


# -- out of range ------------------------------------------------------------------------------------

BAD_DIGESTS = ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "a" * 32 + "\0" + "a" * 31]
BAD_COUNTS = [-1, 1 << 53, 1.5, math.nan, True, "1", None]

TOO_MUCH: list[tuple[Any, Any]] = [
    *((Fetch(bad), Request) for bad in BAD_DIGESTS),
    *((Member(bad, "s"), Member) for bad in BAD_DIGESTS),
    *((Record(bad, A, BODIES[-1]), Record) for bad in BAD_DIGESTS),
    *((PartInfo(0, bad, 1, ((0, 1.0),)), PartInfo) for bad in BAD_DIGESTS),
    *((PartInfo(bad, C, 1, ((0, 1.0),)), PartInfo) for bad in BAD_COUNTS),
    *((PartInfo(0, C, bad, ((0, 1.0),)), PartInfo) for bad in BAD_COUNTS),
    *((PartInfo(0, C, 1, ((bad, 1.0),)), PartInfo) for bad in BAD_COUNTS),
    *((PushContribution(bad, 0, 0, 1.0, 1), Request) for bad in BAD_COUNTS),
    *((PushContribution(0, 0, 0, 1.0, bad), Request) for bad in BAD_COUNTS),
    *((Held(0, bad, 1), Held) for bad in BAD_DIGESTS),
    *((Held(bad, C, 1), Held) for bad in BAD_COUNTS),
    *((PushResult(0, 0, Held(0, C, bad)), Request) for bad in BAD_COUNTS),
    *((PushPartial(0, 0, bad, ((0, 1.0),), (), (), 1), Request) for bad in BAD_COUNTS),
    *((PushPartial(0, 0, 0, ((bad, 1.0),), (), (), 1), Request) for bad in BAD_COUNTS),
    *((PushPartial(0, 0, 0, ((0, 1.0),), ((0, bad),), (), 1), Request) for bad in BAD_COUNTS),
    *((PushPartial(0, 0, 0, ((0, 1.0),), (), (bad,), 1), Request) for bad in BAD_COUNTS),
    *((PushPartial(0, 0, 0, ((0, 1.0),), (), (), bad), Request) for bad in BAD_COUNTS),
    (PushPartial(0, 0, 0, tuple((i, 1.0) for i in range(MAX_GROUP + 1)), (), (), 1), Request),
    (PushPartial(0, 0, 0, ((0, 1.0),), ((0, 1),) * (MAX_GROUP + 1), (), 1), Request),
    (PushPartial(0, 0, 0, (), (), tuple(range(MAX_GROUP + 1)), 0), Request),
    *((Tally(bad, 0, 0, ((0, 1.0),)), Tally) for bad in BAD_COUNTS),
    *((Tally(0, 0, 0, ((bad, 1.0),)), Tally) for bad in BAD_COUNTS),
    *((Tally(0, 0, 0, ((0, 1.0),), ((0, bad),)), Tally) for bad in BAD_COUNTS),
    (Tally(0, 0, 0, tuple((i, 1.0) for i in range(20_001))), Tally),
    (Tally(0, 0, 0, ((0, 1.0),), ((0, 1),) * 20_001), Tally),
    (PartInfo(0, C, 1, ((0, 1.0, 2.0),)), PartInfo),
    (PartInfo(0, C, 1, tuple((i, 1.0) for i in range(20_001))), PartInfo),
    (Member(A, "s" * 33), Member),
    (Hello(1, "r" * 65, "s"), Request),
    (Hello(1, "r", "s" * 33), Request),
    (Answer(False, "x" * 2001), Answer),
    (Answer(False, known=(-1,)), Answer),
    (Answer(False, known=tuple(range(MAX_GROUP + 1))), Answer),
    (Blob("n" * 201, 1, 4, (A,)), Blob),
    (Blob("n", 1, 0, (A,)), Blob),
    (Blob("n", 1, (1 << 26) + 1, (A,)), Blob),
    (Blob("n", 1, 4, (A,) * 8193), Blob),
    (TensorSpec("t", (1,) * 9), TensorSpec),
    (TensorSpec("t", (-1,)), TensorSpec),
    (TensorSpec("t" * 301, ()), TensorSpec),
    (Open(0, 0, (), (0,), A, 1.0, ""), Open),
    (Open(0, 0, (Member(A, "s"),), (), A, 1.0, ""), Open),
    (Open(0, 0, (Member(A, "s"),), (-1,), A, 1.0, ""), Open),
    (Open(0, 0, (Member(A, "s"),), (0,) * 65_537, A, 1.0, ""), Open),
    (Open(0, 0, (Member(A, "s"),), (0,), "", 1.0, ""), Open),
    (Open(0, 0, (Member(A, "s"),), (0,), A, 1.0, "r" * 2001), Open),
    (Open(0, 0, (Member(A, "s"),), (0,), A, 1.0, "", 0), Open),
    (Open(0, 0, (Member(A, "s"),), (0,), A, 1.0, "", 20_001), Open),
    (Reassign(0, 0, (), ""), Reassign),
    (Reassign(0, 0, ((0, 1, 2),), ""), Reassign),
    (Commit(0, 0, (), 1, None, ""), Commit),
    (Commit(0, 0, (INFO,), 1 << 53, None, ""), Commit),
    *((PartInfo(0, C, 1, (), (), (bad,)), PartInfo) for bad in BAD_COUNTS),
    (PartInfo(0, C, 1, (), (), tuple(range(20_001))), PartInfo),
    (Commit(0, 0, (INFO,), 1, None, "", (), ((-1, 1.0),)), Commit),
    (Commit(0, 0, (INFO,), 1, None, "", (), tuple((i, 1.0) for i in range(20_001))), Commit),
    (Snapshot(0, "", (), ""), Snapshot),
    (Genesis("r", 1, "x" * 100_001, (), 1, A), Genesis),
    (Genesis("r", 1, "", (), 0, A), Genesis),
    (Genesis("r", 1, "", (), 1, A, base="f" * 63), Genesis),
    (Genesis("r", 1, "", (), 1, A, base="f" * 64 + "\n"), Genesis),
    (Genesis("r", 1, "", (), 65_537, A), Genesis),
    (msgspec.structs.replace(PROGRESS, phase="dancing"), Progress),
    (msgspec.structs.replace(PROGRESS, name="n" * 101), Progress),
    (msgspec.structs.replace(PROGRESS, addresses=("a",) * 17), Progress),
    (msgspec.structs.replace(PROGRESS, snapshots={0: "not a digest"}), Progress),
    (msgspec.structs.replace(PROGRESS, snapshots=dict.fromkeys(range(65), C)), Progress),
    (msgspec.structs.replace(PROGRESS, activity="a" * 2001), Progress),
    (msgspec.structs.replace(PROGRESS, beat=-1), Progress),
    (msgspec.structs.replace(PROGRESS, since=1 << 53), Progress),
    (msgspec.structs.replace(PROGRESS, every_s=0.5), Progress),
    (msgspec.structs.replace(PROGRESS, every_s=MAX_EVERY_S + 1), Progress),
    (msgspec.structs.replace(PROGRESS, every_s=math.nan), Progress),
    *(
        (msgspec.structs.replace(PROGRESS, **{name: value}), Progress)
        for name in ("uplink", "downlink", "rtt_s")
        for value in (-1.0, 1.1 * MAX_RATE, math.nan, math.inf)
    ),
    *(
        (msgspec.structs.replace(PROGRESS, **{name: value}), Progress)
        for name in ("tokens", "tokens_per_s", "step_s", "idle_s")
        for value in (-1.0, 1.1 * MOST, math.nan, math.inf)
    ),
    (msgspec.structs.replace(PROGRESS, steps=-1), Progress),
    (msgspec.structs.replace(PROGRESS, rtt_s=MAX_RTT_S + 1), Progress),
    (msgspec.structs.replace(PROGRESS, held=(Held(0, C, 1),) * 65_537), Progress),
]


@pytest.mark.parametrize(("message", "kind"), TOO_MUCH)
def test_what_is_out_of_range_is_refused_on_arrival(message: Any, kind: Any) -> None:
    raw = msgspec.msgpack.encode(message)
    with pytest.raises(ProtocolError, match="can't be read"):
        decode(raw, kind, limit=1 << 24)


def test_an_announcement_of_an_older_release_says_nothing_of_downlink_and_round_trip() -> None:
    said = msgspec.msgpack.decode(encode(PROGRESS))
    del said["downlink"], said["rtt_s"]
    older = decode(msgspec.msgpack.encode(said), Progress)
    assert older == msgspec.structs.replace(PROGRESS, downlink=0.0, rtt_s=0.0)


def test_nothing_oversize_is_sent_or_read() -> None:
    large = Genesis("run", 1, "", tuple(TensorSpec("n" * 300, ()) for _ in range(4000)), 1, A)
    with pytest.raises(ProtocolError, match=f"Genesis of [0-9]+ bytes is over {MAX_MESSAGE_BYTES}"):
        encode(large)
    with pytest.raises(ProtocolError, match="over the limit"):
        decode(bytes(MAX_MESSAGE_BYTES + 1), Record)
    raw = encode(ANSWER)
    assert decode(raw, Answer, limit=len(raw)) == ANSWER
    with pytest.raises(ProtocolError, match="over the limit"):
        decode(raw, Answer, limit=len(raw) - 1)


def test_a_message_that_claims_to_be_huge_takes_no_memory() -> None:
    """Lengths of four billion in front of nothing."""
    for header in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ):
        for kind in (Record, Request, Progress, Answer):
            with pytest.raises(ProtocolError):
                decode(header + b"\xff\xff\xff\xff", kind)


def test_deep_nesting_is_refused() -> None:
    deep = b"\x91" * 100_000 + b"\x00"
    fields = msgspec.msgpack.encode({"ok": True})
    assert fields[0] == 0x81
    raw = b"\x82" + fields[1:] + b"\xa1x" + deep
    with pytest.raises(ProtocolError):
        decode(raw, Answer)


def test_this_life_of_this_peer() -> None:
    assert PROGRESS.member == Member(A, "session-1")
    assert INFO.weight == 100.5
    assert Member(A, "2") < Member(B, "1")
    assert INFO.held == Held(INFO.part, INFO.digest, INFO.size)
    assert PushResult(3, 1, INFO.held) in REQUESTS
