"""Messages as bytes, and digests of bytes."""

from __future__ import annotations

import blake3
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import ProtocolError
from potluck.wire.codec import decode, digest, encode
from potluck.wire.messages import Answer
from potluck.wire.records import Blob, Finish, Record, canonical, chunk_sizes

from .examples import ANSWER, BLOB, A, C


def test_on_the_wire_a_message_is_a_map_with_the_name_of_its_type() -> None:
    """Any MessagePack reader can look into a ledger."""
    raw = encode(Record(C, A, Finish(9, "enough")))
    assert msgspec.msgpack.decode(raw) == {
        "previous": C,
        "author": A,
        "body": {"type": "Finish", "round": 9, "reason": "enough"},
    }
    assert decode(msgspec.msgpack.encode({"type": "Answer", "ok": True}), Answer) == Answer(True)


@given(st.binary(max_size=3000))
def test_a_digest_is_blake3_in_hexadecimal_whatever_the_buffer(raw: bytes) -> None:
    expected = blake3.blake3(raw).hexdigest()
    assert digest(raw) == digest(bytearray(raw)) == digest(memoryview(raw)) == expected
    assert len(expected) == 64


def test_the_digest_of_nothing_is_the_published_one() -> None:
    assert digest(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_canonical_bytes_do_not_depend_on_the_order_of_a_dict() -> None:
    assert canonical({"b": (1, A), "a": BLOB}) == canonical({"a": BLOB, "b": (1, A)})
    assert canonical(BLOB) != canonical(msgspec.structs.replace(BLOB, size=8))


def test_text_that_is_no_text_is_refused() -> None:
    raw = encode(ANSWER).replace(b"late", b"\xff\xfe\xfd\xfc")
    with pytest.raises(ProtocolError):
        decode(raw, Answer)


@given(st.integers(0, 10**6), st.integers(1, 5000))
def test_chunks_add_up_to_their_file(size: int, chunk: int) -> None:
    count = -(-size // chunk)
    if count > 300:
        return
    sizes = chunk_sizes(Blob("f", size, chunk, (A,) * count))
    assert sum(sizes) == size
    assert all(0 < s <= chunk for s in sizes)
    assert all(s == chunk for s in sizes[:-1])
