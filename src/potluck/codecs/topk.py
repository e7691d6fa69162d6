"""About 0.16 bits a value: the largest 64 of each 4096, in two bits, and where they are (arXiv 2508.15706).

In a chunk of 4096 values one in 64 is kept: the largest by magnitude, of equal ones those that come first.
The last chunk may be short, and has one in 64 rounded up. A kept value is sent as its sign and one of two
magnitudes of its chunk, each the mean of those that it stands for. The others decode to zero; error feedback
sends them once they have grown.

Layout, the last two being streams of bits, high bit first, padded with zeros to whole bytes:

- for each chunk its lower and its upper magnitude (bf16, little-endian); the lower is 0 if it stands for none
- for each kept value seven bits: sign, whether the upper magnitude, and the gap mod 32. A gap is how many
  values lie between this one and the kept one before it, or the chunk's begin
- for each kept value the gap div 32 in unary: so many zeros and a one

That is Rice's code with parameter 5: 7.5 bits a place if places are random, whose entropy is 7.4, and never
more than 8. No subnormal number is made: a magnitude that would be one is sent as zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from potluck.codecs.base import DIVERGED, Codec, check_size
from potluck.codecs.bf16 import INFINITE, narrowed, widened
from potluck.errors import CorruptData
from potluck.sparse import Sparse

CHUNK = 4096
"""Values of which the largest are sought together."""

SHARE = 64
"""One value in so many is kept."""

RICE = 5
"""Bits of a gap that are sent as they are."""

ROWS = 32
"""Chunks handled at a time, so that the scratch memory of 1 MiB stays in the processor's cache."""

_BITS = RICE + 2
_LEAST = np.uint16(0x0080)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_PLACE_BITS = np.uint64(13)
_INFINITE = np.uint64(0x7F800000)


class Group(NamedTuple):
    """Chunks of one length that lie one after the other."""

    start: int
    rows: int
    length: int

    @property
    def kept(self) -> int:
        """Values that are kept of each chunk."""
        return -(-self.length // SHARE)


class TopK(Codec):
    """Where the largest values of each chunk are, and two bits of each."""

    name = "topk"
    decay = 0.95

    def sizes(self, n: int) -> range:
        groups = _groups(n)
        kept = sum(group.rows * group.kept for group in groups)
        zeros = sum(group.rows * ((group.length - group.kept) >> RICE) for group in groups)
        fixed = 4 * sum(group.rows for group in groups) + _bytes(_BITS * kept)
        return range(fixed + _bytes(kept), fixed + _bytes(kept + zeros) + 1)

    def encode(self, values: NDArray[np.float32]) -> bytes:
        return _encoded(values, leave=False)

    def send(self, values: NDArray[np.float32]) -> bytes:
        return _encoded(values, leave=True)

    def decode(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32]:
        return self.read(raw, n).dense()

    def read(self, raw: bytes | memoryview, n: int) -> Sparse:
        check_size(self, raw, n)
        groups = _groups(n)
        chunks = sum(group.rows for group in groups)
        count = sum(group.rows * group.kept for group in groups)
        found = Sparse(n, np.empty(count, np.int64), np.empty(count, np.float32))
        if not count:
            return found
        pairs = np.frombuffer(raw, "<u2", 2 * chunks).reshape(chunks, 2)
        _check_levels(pairs)
        symbols = _unpacked(memoryview(raw)[4 * chunks :][: _bytes(_BITS * count)], count)
        gaps = _counted(memoryview(raw)[4 * chunks + _bytes(_BITS * count) :], count) << RICE
        gaps |= symbols & np.uint8((1 << RICE) - 1)
        codes = symbols >> np.uint8(RICE)
        for group in groups:
            size = group.rows * group.kept
            places = found.places[-gaps.size :][:size].reshape(group.rows, group.kept)
            np.cumsum(gaps[:size].reshape(places.shape) + 1, axis=1, out=places)
            if places[:, -1].max() > group.length:
                raise CorruptData("a place in topk is beyond its chunk's end, which no encoder sends")
            places += _begins(group)[:, None] - 1
            values = found.values[-gaps.size :][:size].reshape(places.shape)
            values[:] = _signed(codes[:size].reshape(places.shape), pairs[: group.rows])
            gaps, codes, pairs = gaps[size:], codes[size:], pairs[group.rows :]
        return found


def _encoded(values: NDArray[np.float32], leave: bool) -> bytes:
    """Bytes of ``values``; with ``leave`` what they lose is in there afterwards."""
    levels, symbols, quotients = [], [], []
    for group in _groups(values.size):
        rows = values[group.start :][: group.rows * group.length].reshape(group.rows, group.length)
        places = _largest(rows, group.kept)
        among = places + np.arange(0, rows.size, group.length)[:, None]
        kept = rows.reshape(-1)[among]
        gaps = np.diff(places, axis=1, prepend=-1) - 1
        upper, pair = _halved(np.abs(kept))
        codes = (np.signbit(kept) * 2 + upper).astype(np.uint8)
        if leave:
            rows.reshape(-1)[among] = kept - _signed(codes, pair)
        levels.append(pair)
        symbols.append((codes << RICE | gaps & ((1 << RICE) - 1)).astype(np.uint8).reshape(-1))
        quotients.append((gaps >> RICE).reshape(-1))
    if not levels:
        return b""
    return b"".join(
        (
            np.concatenate(levels).astype("<u2", copy=False).tobytes(),
            _packed(np.concatenate(symbols)),
            _unary(np.concatenate(quotients)),
        )
    )


def _begins(group: Group) -> NDArray[np.int64]:
    """Where its chunks begin [rows]."""
    return group.start + np.arange(0, group.rows * group.length, group.length)


def _groups(n: int) -> list[Group]:
    whole, rest = divmod(n, CHUNK)
    groups = [Group(0, whole, CHUNK), Group(n - rest, 1, rest)]
    return [group for group in groups if group.rows * group.length]


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _largest(rows: NDArray[np.float32], kept: int) -> NDArray[np.int64]:
    """Where the ``kept`` largest magnitudes of each row are, ascending: [rows, kept].

    A value's key is its magnitude's bits, which are ordered as magnitudes are on any processor, and then its
    place from behind, plus the length of a row. So no two are equal, which would make partitioning slow; and
    of equal values the first wins.
    """
    length = rows.shape[1]
    places = np.empty((len(rows), kept), np.int64)
    scratch = np.empty((min(ROWS, len(rows)), length), np.uint32)
    for start in range(0, len(rows), ROWS):
        bits = rows[start : start + ROWS].view(np.uint32)
        magnitudes = np.bitwise_and(bits, _MAGNITUDE, out=scratch[: len(bits)])
        found = np.flatnonzero(_candidates(magnitudes, kept))
        row, place = np.divmod(found, length)
        keys = magnitudes.reshape(-1)[found].astype(np.uint64)
        if keys.max() >= _INFINITE:
            raise CorruptData(DIVERGED)
        keys <<= _PLACE_BITS
        keys |= (2 * length - 1 - place).astype(np.uint64)
        least = _least(keys, row, len(magnitudes), kept)
        places[start : start + ROWS] = place[keys >= least[row]].reshape(-1, kept)
    return places


def _candidates(magnitudes: NDArray[np.uint32], kept: int) -> NDArray[np.bool_]:
    """Which values of each row may be among its ``kept`` largest: these and few others, [rows, length].

    Of the maxima of twice as many strips so many are not below their median, which cuts off the rest. If that
    is 0, of the zeros only the first can be needed. (Strip s is each value whose place is s modulo the number
    of strips: so whole rows of values are compared at once.)
    """
    strips = 2 * kept
    if magnitudes.shape[1] % strips:
        return np.ones(magnitudes.shape, np.bool_)
    most = magnitudes.reshape(len(magnitudes), -1, strips).max(axis=1)
    floors = np.partition(most, strips - kept, axis=1)[:, -kept, None]
    found: NDArray[np.bool_] = magnitudes >= np.maximum(floors, 1)
    found[:, :kept] |= floors == 0
    return found


def _least(keys: NDArray[np.uint64], row: NDArray[np.int64], rows: int, kept: int) -> NDArray[np.uint64]:
    """The ``kept``-largest of the keys of each row [rows]. There are at least so many; ``row`` ascends."""
    counts = np.bincount(row, minlength=rows)
    most = int(counts.max())
    # What fills a row up is below any key.
    table = np.tile(np.arange(most, dtype=np.uint64), (rows, 1))
    table[row, np.arange(row.size) - (np.cumsum(counts) - counts)[row]] = keys
    least: NDArray[np.uint64] = np.partition(table, most - kept, axis=1)[:, -kept]
    return least


def _halved(magnitudes: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.uint16]]:
    """Which ``magnitudes`` [rows, kept] are upper ones, and the means of both halves as bf16 [rows, 2].

    Parted at the mean, and again between the means that come of that (two steps of Lloyd's algorithm).
    """
    exact = np.ascontiguousarray(magnitudes.T, np.float64)
    middle = _sums(exact) / len(exact)
    for _ in range(2):
        upper = exact >= middle
        means = [
            _sums(exact * half) / np.maximum(np.count_nonzero(half, axis=0), 1) for half in (~upper, upper)
        ]
        middle = (means[0] + means[1]) / 2
    pair = narrowed(np.stack(means, axis=1).astype(np.float32))
    pair[pair < _LEAST] = 0
    return upper.T, pair


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each column, from its first value to its last: ``sum`` adds in an order that depends on the
    machine.
    """
    total: NDArray[np.float64] = values[0].copy()
    for row in values[1:]:
        total += row
    return total


def _packed(symbols: NDArray[np.uint8]) -> bytes:
    return np.packbits(np.unpackbits(symbols).reshape(-1, 8)[:, -_BITS:]).tobytes()


def _unpacked(raw: memoryview, count: int) -> NDArray[np.uint8]:
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))
    if bits[_BITS * count :].any():
        raise CorruptData("topk is padded with other than zeros, which no encoder does")
    return np.packbits(bits[: _BITS * count].reshape(count, _BITS), axis=1)[:, 0] >> np.uint8(8 - _BITS)


def _unary(counts: NDArray[np.int64]) -> bytes:
    ends = np.cumsum(counts + 1)
    bits = np.zeros(ends[-1], np.uint8)
    bits[ends - 1] = 1
    return np.packbits(bits).tobytes()


def _counted(raw: memoryview, count: int) -> NDArray[np.int64]:
    """The ``count`` numbers that stand in ``raw`` in unary."""
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(raw, np.uint8)))
    if ends.size != count or _bytes(int(ends[-1]) + 1) != raw.nbytes:
        raise CorruptData(f"topk has {ends.size} places in {raw.nbytes} bytes where {count} values are")
    return np.diff(ends, prepend=-1) - 1


def _check_levels(pairs: NDArray[np.uint16]) -> None:
    sound = (pairs == 0) | ((pairs >= _LEAST) & (pairs < INFINITE))
    if not sound.all() or (pairs[:, 0] > pairs[:, 1]).any():
        raise CorruptData(
            "a magnitude in topk is negative, subnormal, infinite, NaN or the wrong one of two, which no "
            "encoder sends"
        )


def _signed(codes: NDArray[np.uint8], pairs: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values [rows, kept] of ``codes``: sign and half."""
    bits = np.where(codes & np.uint8(1), pairs[:, 1, None], pairs[:, 0, None])
    bits |= (codes.astype(np.uint16) >> np.uint16(1)) << np.uint16(15)
    return widened(bits)
