"""A result's content: who is in it, and the encoded values. So its digest vouches for both.

Layout: length of the tally (four bytes, little-endian), the tally, the values.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from potluck.errors import CorruptData, ProtocolError
from potluck.wire.codec import decode, digest, encode
from potluck.wire.records import Count, PartInfo

_PREFIX = 4

MAX_TALLY_BYTES = 1 << 19
"""A tally of 20,000 members fits."""


class Tally(Struct, frozen=True):
    """What was reduced: which part of which attempt of which round, and of whom, as in ``PartInfo``."""

    round: Count
    attempt: Count
    part: Count
    contributors: Annotated[tuple[tuple[Count, float], ...], Meta(max_length=20_000)]
    blocks: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=20_000)] = ()


def pack(tally: Tally, values: bytes) -> bytes:
    """The content of a result."""
    head = encode(tally)
    return len(head).to_bytes(_PREFIX, "little") + head + values


def unpack(raw: bytes) -> tuple[Tally, memoryview]:
    """The tally and the encoded values of a result.

    Raises:
        CorruptData: it is no result.
    """
    view = memoryview(raw)
    length = int.from_bytes(view[:_PREFIX], "little")
    if len(raw) < _PREFIX or not 0 < length <= min(MAX_TALLY_BYTES, len(raw) - _PREFIX):
        raise CorruptData(f"{len(raw)} bytes are no result: its tally is cut off")
    try:
        tally: Tally = decode(bytes(view[_PREFIX : _PREFIX + length]), Tally)
    except ProtocolError as error:
        raise CorruptData(f"a result's tally can't be read: {error}") from error
    return tally, view[_PREFIX + length :]


def describe(raw: bytes) -> tuple[Tally, PartInfo]:
    """A result's tally, and what a commit says of it.

    Raises:
        CorruptData: it is no result.
    """
    tally, _ = unpack(raw)
    return tally, PartInfo(tally.part, digest(raw), len(raw), tally.contributors, tally.blocks)
