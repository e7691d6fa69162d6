"""Files in chunks, so that a joiner can take one file from many peers at once and verify as it goes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from potluck.errors import CorruptData, StoreError
from potluck.store.contents import Contents
from potluck.wire.records import Blob, chunk_sizes

CHUNK_BYTES = 1 << 20
"""Size of a chunk, unless the file would have more than ``MAX_CHUNKS`` of them."""

AT_ONCE = 32
"""Chunks written and synced together."""

MAX_CHUNKS = 4096
"""Digests of more chunks than this would crowd a record of the ledger."""


def write_blob(store: Contents, name: str, raw: bytes, chunk_bytes: int = CHUNK_BYTES) -> Blob:
    """Keep a file as chunks of ``chunk_bytes``, or the least multiple of it that ``MAX_CHUNKS`` allow.

    The same bytes give the same blob on every peer.

    Raises:
        StoreError: the disk is full or refuses.
    """
    return write_pieces(store, name, len(raw), [raw], chunk_bytes)


def write_pieces(
    store: Contents,
    name: str,
    size: int,
    pieces: Iterable[bytes | memoryview],
    chunk_bytes: int = CHUNK_BYTES,
) -> Blob:
    """As ``write_blob``, of a file of ``size`` bytes that comes in pieces and is never in memory as a whole.

    Raises:
        StoreError: the disk is full or refuses.
    """
    chunk = chunk_bytes * max(1, -(-size // (chunk_bytes * MAX_CHUNKS)))
    chunks = _chunks(pieces, chunk)
    names: list[str] = []
    while some := list(itertools.islice(chunks, AT_ONCE)):
        names += store.put_all(some)
    return Blob(name, size, chunk, tuple(names))


def _chunks(pieces: Iterable[bytes | memoryview], size: int) -> Iterator[bytes | memoryview]:
    """What comes in pieces, in chunks of this size; only what spans pieces is copied."""
    rest = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        if rest:
            missing_bytes = size - len(rest)
            rest += view[:missing_bytes]
            view = view[missing_bytes:]
            if len(rest) < size:
                continue
            yield bytes(rest)
            rest.clear()
        whole = len(view) // size * size
        for start in range(0, whole, size):
            yield view[start : start + size]
        rest += view[whole:]
    if rest:
        yield bytes(rest)


def missing(store: Contents, blob: Blob) -> list[str]:
    """Digests of the chunks that are not here, each once, in the file's order."""
    return [chunk for chunk in dict.fromkeys(blob.chunks) if not store.has(chunk)]


def read_blob(store: Contents, blob: Blob) -> bytearray:
    """The whole file, every chunk verified; memory is taken for no more than was.

    Raises:
        StoreError: chunks are not here (they are named), or the disk refuses.
        CorruptData: the blob contradicts itself, or its chunks are of other sizes than it says.
    """
    sizes = chunk_sizes(blob)
    absent = missing(store, blob)
    raw = bytearray()
    for chunk, size in zip(blob.chunks if not absent else (), sizes, strict=False):
        piece = store.get(chunk)
        if piece is None:
            absent.append(chunk)
        else:
            raw += _checked(blob, chunk, piece, size)
    if absent:
        names = ", ".join(absent[:8]) + (", …" if len(absent) > 8 else "")
        raise StoreError(f"{blob.name!r} lacks {len(absent)} of its chunks, fetch them again: {names}")
    return raw


def read_pieces(store: Contents, blob: Blob) -> Iterator[bytes]:
    """The chunks of a file in order, each verified when it is read.

    Raises:
        StoreError: one is not here, or the disk refuses.
        CorruptData: as ``read_blob``.
    """
    for chunk, size in zip(blob.chunks, chunk_sizes(blob), strict=True):
        piece = store.get(chunk)
        if piece is None:
            raise StoreError(f"{blob.name!r} lacks the chunk {chunk}: fetch it again")
        yield _checked(blob, chunk, piece, size)


def _checked(blob: Blob, chunk: str, piece: bytes, size: int) -> bytes:
    if len(piece) != size:
        raise CorruptData(f"chunk {chunk} of {blob.name!r} has {len(piece)} bytes instead of {size}")
    return piece
