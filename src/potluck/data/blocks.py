"""Which samples a position of the data stands for: a fresh shuffle each epoch that takes no memory.

Position p is block p mod n of epoch p div n. A block is a fixed number of samples, the last one of an epoch
perhaps fewer, and the samples of an epoch are in an order that a seeded permutation gives: every sample once.
"""

from __future__ import annotations

from typing import TypeVar

from potluck.errors import UsageError

T = TypeVar("T")

_ROUNDS = 4
_MASK = (1 << 64) - 1


def blocks_of(samples: int, size: int) -> int:
    """Blocks of ``size`` samples in an epoch.

    Raises:
        UsageError: there is nothing to cut into blocks.
    """
    if samples < 1 or size < 1:
        raise UsageError(f"{samples} samples in blocks of {size} are no data: both must be at least 1")
    return -(-samples // size)


def samples_of(position: int, samples: int, size: int, seed: int) -> list[int]:
    """Numbers of the samples in the block at a position, each below ``samples``."""
    epoch, block = divmod(position, blocks_of(samples, size))
    places = range(block * size, min(samples, (block + 1) * size))
    return [permuted(place, samples, seed * 0x9E3779B97F4A7C15 + epoch) for place in places]


def share(samples: list[T], rank: int, ranks: int) -> list[T]:
    """What one of a peer's ranks trains on of a block: each sample is one rank's. Where there are fewer
    samples than ranks those left over take one that another has, as no rank may stand idle.
    """
    return samples[rank::ranks] or [samples[rank % len(samples)]]


def permuted(place: int, n: int, key: int) -> int:
    """Where a keyed permutation of [0, n) puts ``place``.

    A balanced Feistel network over the next power of four, walked until it lands below n (cycle walking;
    Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): at most four steps on average. For
    shuffling, not for secrets.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = place >> half, place & low
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (_mix(right, key, round_) & low)
        place = left << half | right
        if place < n:
            return place


def _mix(value: int, key: int, round_: int) -> int:
    """64 well-mixed bits (the finalizer of SplitMix64; Steele, Lea and Flood, 2014)."""
    z = (value + (key * 4 + round_ + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
