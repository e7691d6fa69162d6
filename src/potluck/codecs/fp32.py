"""Nothing is lost: 32 bits a value or, packed, some 27; the reference for all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potluck.codecs.base import DIVERGED, Codec, check_size
from potluck.codecs.packed import is_plain, pack, packed_sizes, unpack
from potluck.errors import CorruptData

SLICE = 1 << 16
"""Values looked at at a time, so that the scratch memory stays in the processor's cache."""


class Fp32(Codec):
    """Values as little-endian fp32, packed where that saves something."""

    name = "fp32"

    def sizes(self, n: int) -> range:
        return packed_sizes(n, 4)

    def encode(self, values: NDArray[np.float32]) -> bytes:
        if not _finite(values):
            raise CorruptData(DIVERGED)
        return pack(np.ascontiguousarray(values, "<f4").view("<u4"))

    def send(self, values: NDArray[np.float32]) -> bytes:
        raw = self.encode(values)
        values.fill(0)
        return raw

    def decode(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32]:
        values = self.read(raw, n)
        return values.copy() if is_plain(raw, n, 4) else values

    def read(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32]:
        check_size(self, raw, n)
        # In place, unless it lies askew: what is read from there is slow then.
        values = unpack(raw, n, np.uint32).view("<f4").astype(np.float32, copy=False)
        values = np.require(values, requirements="A")
        if not _finite(values):
            raise CorruptData("values in fp32 hold NaN or infinity, which no encoder sends")
        return values


def _finite(values: NDArray[np.float32]) -> bool:
    return all(
        bool(np.isfinite(values[start : start + SLICE]).all()) for start in range(0, values.size, SLICE)
    )
