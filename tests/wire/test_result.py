"""A result's content: who is in it and the values, whole, cut short, or garbage."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import CorruptData
from potluck.wire.codec import MAX_MESSAGE_BYTES, digest, encode
from potluck.wire.records import PartInfo
from potluck.wire.result import MAX_TALLY_BYTES, Tally, describe, pack, unpack

from .examples import ANSWER, TALLY

VALUES = b"encoded values"
MOST = (1 << 53) - 1

counts = st.integers(0, MOST)
tallies = st.builds(
    Tally,
    round=counts,
    attempt=counts,
    part=counts,
    contributors=st.lists(st.tuples(counts, st.floats(allow_nan=False)), max_size=20).map(tuple),
    blocks=st.lists(st.tuples(counts, counts), max_size=20).map(tuple),
)


def length(raw: bytes) -> int:
    """Bytes in front of a result's values."""
    return 4 + int.from_bytes(raw[:4], "little")


@given(tallies, st.binary(max_size=200))
def test_what_is_packed_comes_out_whole(tally: Tally, values: bytes) -> None:
    found, view = unpack(pack(tally, values))
    assert (found, bytes(view)) == (tally, values)


@given(tallies, st.binary(max_size=200))
def test_what_a_commit_says_of_it_is_what_stands_in_it(tally: Tally, values: bytes) -> None:
    raw = pack(tally, values)
    found, info = describe(raw)
    assert found == tally
    assert info == PartInfo(tally.part, digest(raw), len(raw), tally.contributors, tally.blocks)


def test_cut_short_at_any_byte_of_the_tally_it_is_no_result() -> None:
    raw = pack(TALLY, VALUES)
    for size in range(length(raw)):
        with pytest.raises(CorruptData):
            unpack(raw[:size])
        with pytest.raises(CorruptData):
            describe(raw[:size])


def test_cut_short_in_its_values_it_is_another_result() -> None:
    """How many values there are only the run knows; the digest tells that they are not the same."""
    raw = pack(TALLY, VALUES)
    for size in range(length(raw), len(raw)):
        tally, values = unpack(raw[:size])
        assert (tally, bytes(values)) == (TALLY, VALUES[: size - length(raw)])
        assert describe(raw[:size])[1].held != describe(raw)[1].held


@given(st.binary(max_size=300))
def test_any_bytes_are_a_result_or_refused_and_nothing_else(raw: bytes) -> None:
    for content in (raw, len(raw).to_bytes(4, "little") + raw, pack(TALLY, VALUES)[:4] + raw):
        try:
            describe(content)
        except CorruptData:
            continue


@given(st.data())
def test_flipped_bytes_are_a_result_or_refused_and_nothing_else(data: st.DataObject) -> None:
    raw = bytearray(pack(TALLY, VALUES))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        tally, values = unpack(bytes(raw))
    except CorruptData:
        return
    assert len(encode(tally)) + len(values) <= 2 * len(raw)


@pytest.mark.parametrize("said", [0, MAX_TALLY_BYTES + 1, (1 << 31) + 5, (1 << 32) - 1])
def test_a_tally_of_an_impossible_length_is_refused_whatever_follows(said: int) -> None:
    head = said.to_bytes(4, "little")
    for rest in (b"", VALUES, encode(TALLY), bytes(MAX_TALLY_BYTES + 2)):
        with pytest.raises(CorruptData, match="its tally is cut off"):
            unpack(head + rest)


def test_the_length_of_the_tally_is_the_tallys_exactly() -> None:
    head = encode(TALLY)
    for off in (-1, 1):
        with pytest.raises(CorruptData, match="tally can't be read"):
            unpack((len(head) + off).to_bytes(4, "little") + head + VALUES)


@pytest.mark.parametrize(
    "other",
    [
        encode(ANSWER),
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({"round": 3}),
        msgspec.msgpack.encode(msgspec.structs.replace(TALLY, round=-1)),
        msgspec.msgpack.encode(msgspec.structs.replace(TALLY, contributors=((0, 1.0),) * 20_001)),
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_another_message_in_the_tallys_place_is_refused(other: bytes) -> None:
    with pytest.raises(CorruptData, match="tally can't be read"):
        unpack(len(other).to_bytes(4, "little") + other + VALUES)


def test_the_tally_of_the_largest_round_fits() -> None:
    everybody = range(20_000)
    weights, blocks = tuple((i, math.pi * 1e9) for i in everybody), tuple((i, MOST) for i in everybody)
    tally = Tally(MOST, MOST, MOST, weights, blocks)
    assert 4 + len(encode(tally)) < MAX_TALLY_BYTES < MAX_MESSAGE_BYTES
    assert unpack(pack(tally, VALUES))[0] == tally
