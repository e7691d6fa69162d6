"""Files in chunks, so that a joiner can take one file from many peers at once and verify as it goes."""

from __future__ import annotations

import itertools

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
    size = chunk_bytes * max(1, -(-len(raw) // (chunk_bytes * MAX_CHUNKS)))
    view = memoryview(raw)
    pieces = [view[start : start + size] for start in range(0, len(raw), size)]
    some = [store.put_all(pieces[first : first + AT_ONCE]) for first in range(0, len(pieces), AT_ONCE)]
    return Blob(name, len(raw), size, tuple(itertools.chain.from_iterable(some)))


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
        elif len(piece) != size:
            raise CorruptData(f"chunk {chunk} of {blob.name!r} has {len(piece)} bytes instead of {size}")
        else:
            raw += piece
    if absent:
        names = ", ".join(absent[:8]) + (", …" if len(absent) > 8 else "")
        raise StoreError(f"{blob.name!r} lacks {len(absent)} of its chunks, fetch them again: {names}")
    return raw
