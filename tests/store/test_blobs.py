from __future__ import annotations

import blake3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from potluck.errors import CorruptData, StoreError
from potluck.store import blobs
from potluck.store.blobs import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    chunk_sizes,
    missing,
    read_blob,
    read_pieces,
    write_blob,
    write_pieces,
)
from potluck.store.contents import MemoryStore
from potluck.store.store import Store
from potluck.wire.codec import decode, encode
from potluck.wire.records import Blob

RAW = bytes(range(256)) * 10 + b"tail"


def test_chunks_are_named_by_their_digests(store: Store) -> None:
    blob = write_blob(store, "file", RAW, 1000)
    assert (blob.name, blob.size, blob.chunk_bytes) == ("file", 2564, 1000)
    assert blob.chunks == tuple(blake3.blake3(RAW[i : i + 1000]).hexdigest() for i in (0, 1000, 2000))
    assert chunk_sizes(blob) == [1000, 1000, 564]
    assert missing(store, blob) == []
    assert read_blob(store, blob) == RAW
    assert decode(encode(blob), Blob) == blob


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(raw=st.binary(max_size=40), chunk_bytes=st.integers(1, 50))
def test_round_trip(store: Store, raw: bytes, chunk_bytes: int) -> None:
    blob = write_blob(store, "file", raw, chunk_bytes)
    assert read_blob(store, blob) == raw
    assert [store.size(chunk) for chunk in blob.chunks] == chunk_sizes(blob)
    assert sum(chunk_sizes(blob)) == len(raw)


def test_chunks_grow_rather_than_become_too_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "MAX_CHUNKS", 4)
    for length, chunk_bytes, count in ((7, 2, 4), (8, 2, 4), (9, 4, 3), (16, 4, 4), (17, 6, 3)):
        blob = write_blob(store, "file", bytes(length), 2)
        assert (blob.chunk_bytes, len(blob.chunks)) == (chunk_bytes, count)
        assert read_blob(store, blob) == bytes(length)


def test_an_empty_and_a_small_file(store: Store) -> None:
    empty = write_blob(store, "empty", b"")
    assert (empty.size, empty.chunks, empty.chunk_bytes) == (0, (), CHUNK_BYTES)
    assert read_blob(store, empty) == b""
    assert len(write_blob(store, "small", RAW).chunks) == 1
    assert MAX_CHUNKS <= 8192  # what a record of the ledger takes


def test_equal_chunks_are_kept_once(store: Store) -> None:
    blob = write_blob(store, "zeros", bytes(1000), 100)
    assert len(blob.chunks) == 10
    assert len(store.digests()) == 1
    store.keep_only(set())
    assert missing(store, blob) == [blob.chunks[0]]


def test_missing_chunks_are_named(store: Store) -> None:
    blob = write_blob(store, "file", RAW, 100)
    for index in (3, 5):
        store.delete(blob.chunks[index])
    assert missing(store, blob) == [blob.chunks[3], blob.chunks[5]]
    with pytest.raises(StoreError, match=f"'file' lacks 2.*{blob.chunks[3]}, {blob.chunks[5]}"):
        read_blob(store, blob)
    store.keep_only(set())
    with pytest.raises(StoreError, match=r"lacks 26 of its chunks.*…"):
        read_blob(store, blob)


def test_a_damaged_chunk_becomes_a_missing_one(store: Store) -> None:
    blob = write_blob(store, "file", RAW, 1000)
    (store.directory / blob.chunks[1][:2] / blob.chunks[1]).write_bytes(b"\0" * 1000)
    assert missing(store, blob) == []
    with pytest.raises(StoreError, match=f"lacks 1 .*{blob.chunks[1]}"):
        read_blob(store, blob)
    assert missing(store, blob) == [blob.chunks[1]]
    store.put(RAW[1000:2000])
    assert read_blob(store, blob) == RAW


@pytest.mark.parametrize(("size", "chunk_bytes"), [(2564, 999), (2564, 1 << 26), (3001, 1000), (2000, 1000)])
def test_a_blob_that_contradicts_itself(store: Store, size: int, chunk_bytes: int) -> None:
    chunks = write_blob(store, "file", RAW, 1000).chunks
    wrong = Blob("file", size, chunk_bytes, chunks)
    with pytest.raises(CorruptData, match=r"made that up|instead of"):
        read_blob(store, wrong)


def test_a_blob_of_much_and_of_no_chunks(store: Store) -> None:
    with pytest.raises(CorruptData, match="made that up"):
        read_blob(store, Blob("file", 1 << 50, 1, ()))


def test_no_memory_is_taken_for_what_is_only_announced(store: Store) -> None:
    chunk = store.put(RAW)
    with pytest.raises(CorruptData, match="2564 bytes instead of 1152921504606846976"):
        read_blob(store, Blob("file", 1 << 60, 1 << 60, (chunk,)))


def test_chunks_of_another_size_than_announced(store: Store) -> None:
    chunks = write_blob(store, "file", RAW, 1000).chunks
    with pytest.raises(CorruptData, match="1000 bytes instead of 900"):
        read_blob(store, Blob("file", 2564, 900, chunks))


@given(pieces=st.lists(st.binary(max_size=30), max_size=6), chunk_bytes=st.integers(1, 20))
def test_a_file_in_pieces_is_kept_as_the_whole_one_is(pieces: list[bytes], chunk_bytes: int) -> None:
    whole, apart = MemoryStore(), MemoryStore()
    raw = b"".join(pieces)
    blob = write_blob(whole, "file", raw, chunk_bytes)
    assert write_pieces(apart, "file", len(raw), pieces, chunk_bytes) == blob
    assert b"".join(read_pieces(apart, blob)) == raw


def test_pieces_are_checked_as_they_are_read() -> None:
    store = MemoryStore()
    blob = write_blob(store, "file", RAW, 1000)
    with pytest.raises(CorruptData, match="of 'file' has 1000 bytes instead of 564"):
        list(read_pieces(store, replace(blob, chunks=(*blob.chunks[:2], blob.chunks[0]))))
    store.delete(blob.chunks[1])
    pieces = read_pieces(store, blob)
    assert next(pieces) == RAW[:1000]
    with pytest.raises(StoreError, match="lacks the chunk"):
        next(pieces)
