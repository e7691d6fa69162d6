"""Where the values of a parameter lie that is spread over ranks, and in what pieces they travel: pure.

FSDP cuts a parameter along its first dimension, so what a rank has of it is one range of its values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from potluck.peer.handover import CutRequest
from potluck.peer.layout import Carry, Stretch, within

PIECE = 1 << 19
"""Values that travel between ranks at a time: no rank needs memory for more."""


class Shard(NamedTuple):
    """A range of a parameter's values, and the ranks that have it, each a copy; rank 0 asks the first."""

    bounds: slice
    owners: tuple[int, ...]


class Piece(NamedTuple):
    """A range of a parameter's values that travels in one go, and the ranks that have it."""

    bounds: slice
    shard: Shard


def shards(shape: Sequence[int], owners: Sequence[tuple[int, ...]]) -> tuple[Shard, ...]:
    """What each of ``owners`` has of a parameter: rows of its first dimension, as ``torch.chunk`` deals them
    out, the last ones perhaps fewer or none.
    """
    rows, width = (shape[0] if shape else 1), math.prod(shape[1:])
    each = -(-rows // len(owners))
    return tuple(
        Shard(slice(min(rows, each * n) * width, min(rows, each * (n + 1)) * width), ranks)
        for n, ranks in enumerate(owners)
    )


def pieces(shards: Sequence[Shard], ranges: Sequence[slice], most: int = PIECE) -> Iterator[Piece]:
    """Some ranges of a parameter's values, ascending, cut so that each piece has one shard's values only, and
    ``most`` of them.
    """
    for wanted in ranges:
        for shard in shards:
            start, stop = max(wanted.start, shard.bounds.start), min(wanted.stop, shard.bounds.stop)
            for at in range(start, stop, most):
                yield Piece(slice(at, min(at + most, stop)), shard)


def asked(stretches: Sequence[Stretch] | None, place: slice) -> list[slice]:
    """What of them is in a parameter, which is this range of all; counted from its start. None is all."""
    if stretches is None:
        return [slice(0, place.stop - place.start)]
    return _merged([bounds for bounds, _ in within(stretches, place)])


def touched(carries: Sequence[Carry], request: CutRequest | None, place: slice) -> list[slice]:
    """What of a parameter, which is this range of all, new states change or a round asks for; counted from
    its start.
    """
    found = asked(request.stretches, place) if request is not None else []
    for carry in carries:
        found = found + asked(None if carry.origin is None else carry.stretches, place)
    return _merged(found)


def _merged(ranges: list[slice]) -> list[slice]:
    """The same values in ranges that ascend and don't touch."""
    found: list[slice] = []
    for bounds in sorted(ranges, key=lambda bounds: (bounds.start, bounds.stop)):
        if found and bounds.start <= found[-1].stop:
            found[-1] = slice(found[-1].start, max(found[-1].stop, bounds.stop))
        elif bounds.start < bounds.stop:
            found.append(bounds)
    return found
