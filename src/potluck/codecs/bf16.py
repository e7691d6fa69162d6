"""Sixteen bits a value or, packed, some 11: the upper half of fp32, rounded to nearest, ties to even.

Done in integers throughout, so no processor's way with subnormals or rounding has a say in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potluck.codecs.base import DIVERGED, Codec, check_size
from potluck.codecs.packed import pack, packed_sizes, unpack
from potluck.errors import CorruptData

SLICE = 1 << 17
"""Values handled at a time, so that the scratch memory of 1 MiB stays in the processor's cache."""

INFINITE = np.uint16(0x7F80)
"""Infinity; NaNs are larger, all numbers smaller, when the sign is off."""

MAGNITUDE = np.uint16(0x7FFF)


class Bf16(Codec):
    """Values as little-endian bf16, packed where that saves something.

    What would round to infinity is the largest number there is.
    """

    name = "bf16"

    def sizes(self, n: int) -> range:
        return packed_sizes(n, 2)

    def encode(self, values: NDArray[np.float32]) -> bytes:
        return pack(_bits(values))

    def send(self, values: NDArray[np.float32]) -> bytes:
        bits = _bits(values)
        for start in range(0, values.size, SLICE):
            values[start : start + SLICE] -= widened(bits[start : start + SLICE])
        return pack(bits)

    def decode(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32]:
        check_size(self, raw, n)
        bits = unpack(raw, n, np.uint16)
        if (bits & MAGNITUDE).max(initial=0) >= INFINITE:
            raise CorruptData("values in bf16 hold NaN or infinity, which no encoder sends")
        return widened(bits)


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """``values`` [n] as bf16, little-endian."""
    bits = np.empty(values.size, "<u2")
    for start in range(0, values.size, SLICE):
        bits[start : start + SLICE] = narrowed(values[start : start + SLICE])
    return bits


def narrowed(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """``values``, of any shape, as bf16.

    Raises:
        CorruptData: some value is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise CorruptData(DIVERGED)
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits
    odd >>= np.uint32(16)
    short = odd.astype(np.uint16)
    short -= (short & MAGNITUDE) == INFINITE
    return short


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values that bf16 ``bits`` stand for, in the same shape and in memory of their own."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)
