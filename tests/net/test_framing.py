"""Frames: any cut, any flip, any length."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import ProtocolError
from potluck.net.framing import (
    CLOSE,
    DATA,
    HEADER,
    MAX_PAYLOAD_BYTES,
    PING,
    READ_AHEAD_BYTES,
    Decoder,
    header,
)

LIMIT = 1 << 24


def frame(message: bytes) -> bytes:
    return header(DATA, len(message)) + message


def feed(decoder: Decoder, raw: bytes, limit: int = LIMIT) -> list[bytes]:
    """All messages of ``raw``, taken whenever the decoder has no room or there is no more."""
    messages: list[bytes] = []
    view = memoryview(raw)
    while True:
        space = decoder.space()[: len(view)]
        space[:] = view[: len(space)]
        view = view[len(space) :]
        if space:
            decoder.fill(len(space))
        taken = len(messages)
        while (message := decoder.take(limit)) is not None:
            messages.append(message)
        if not space and len(messages) == taken and not (view and decoder.space()):
            return messages


sizes = st.one_of(st.integers(0, 40), st.sampled_from([16_384, 65_531, 65_532, 65_536, 65_537, 200_000]))
contents = st.lists(sizes.map(lambda n: (b"%d-" % n * n)[:n]), max_size=6)


@given(contents, st.lists(st.integers(1, 90_000), max_size=20), st.booleans())
def test_messages_come_out_as_they_went_in_however_they_are_cut(
    messages: list[bytes], cuts: list[int], pings: bool
) -> None:
    raw = (header(PING) if pings else b"").join([b"", *map(frame, messages), b""])
    decoder, got = Decoder(), []
    for cut in cuts:
        got += feed(decoder, raw[:cut])
        raw = raw[cut:]
    got += feed(decoder, raw)
    assert got == messages
    assert not decoder.inside
    assert not decoder.closed


def test_a_cut_at_each_byte_is_known_for_one() -> None:
    raw = frame(b"first") + header(PING) + frame(b"") + frame(b"second")
    whole = {0: 0, 10: 1, 15: 1, 20: 2, 31: 3}
    for length in range(len(raw) + 1):
        decoder = Decoder()
        got = feed(decoder, raw[:length])
        assert got == [b"first", b"", b"second"][: len(got)]
        assert decoder.inside == (length not in whole)
        assert len(got) == max(count for end, count in whole.items() if end <= length)
        # What is missing makes it whole again.
        assert got + feed(decoder, raw[length:]) == [b"first", b"", b"second"]


def test_what_a_large_message_lacks_is_known_once_it_is_being_taken() -> None:
    decoder = Decoder()
    assert decoder.lacking == 0
    assert feed(decoder, frame(bytes(200_000))[:-50_000]) == []
    assert decoder.lacking == 50_000
    assert feed(decoder, bytes(50_000) + frame(b"small")) == [bytes(200_000), b"small"]
    assert decoder.lacking == 0


def test_every_other_kind_is_refused() -> None:
    for kind in set(range(256)) - {DATA, PING, CLOSE}:
        for length in (0, 1, MAX_PAYLOAD_BYTES):
            with pytest.raises(ProtocolError, match=f"kind {kind} "):
                feed(Decoder(), HEADER.pack(kind, length))


@pytest.mark.parametrize("kind", [PING, CLOSE])
def test_only_data_has_a_payload(kind: int) -> None:
    with pytest.raises(ProtocolError, match="none of this protocol"):
        feed(Decoder(), HEADER.pack(kind, 1) + b"x")


@pytest.mark.parametrize("length", [LIMIT + 1, 1 << 31, MAX_PAYLOAD_BYTES])
def test_a_length_over_the_limit_is_refused_before_memory_is_taken(length: int) -> None:
    decoder = Decoder()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=f"{length} bytes is announced where {LIMIT} are allowed"):
            feed(decoder, HEADER.pack(DATA, length) + b"and then some")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    with pytest.raises(ProtocolError):
        decoder.take(LIMIT)


def test_the_limit_is_the_receivers_of_the_moment() -> None:
    decoder = Decoder()
    assert feed(decoder, frame(b"12345"), limit=5) == [b"12345"]
    with pytest.raises(ProtocolError):
        feed(decoder, frame(b"12345"), limit=4)
    assert decoder.take(5) == b"12345"


def test_after_a_close_nothing_is_read() -> None:
    decoder = Decoder()
    assert feed(decoder, frame(b"last") + header(CLOSE) + b"\xff trailing") == [b"last"]
    assert decoder.closed
    assert not decoder.space()


def test_reading_ahead_is_bounded() -> None:
    decoder = Decoder()
    raw = frame(bytes(1000)) * 1000
    read = 0
    while space := decoder.space():
        space[:] = raw[read : read + len(space)]
        decoder.fill(len(space))
        read += len(space)
    assert read == READ_AHEAD_BYTES
    assert decoder.take(LIMIT) == bytes(1000)
    assert not decoder.space()
    for _ in range(40):
        assert decoder.take(LIMIT) == bytes(1000)
    assert READ_AHEAD_BYTES // 2 < len(decoder.space()) < READ_AHEAD_BYTES


def test_pings_alone_never_fill_it() -> None:
    decoder = Decoder()
    assert feed(decoder, header(PING) * 100_000) == []
    assert not decoder.inside
    assert len(decoder.space()) == READ_AHEAD_BYTES


def test_a_message_beyond_what_a_header_can_say_is_not_sent() -> None:
    assert header(DATA, MAX_PAYLOAD_BYTES)
    with pytest.raises(ProtocolError, match="in parts"):
        header(DATA, MAX_PAYLOAD_BYTES + 1)
