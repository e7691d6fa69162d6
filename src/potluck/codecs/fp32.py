"""No compression: 32 bits a value, the reference for all others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potluck.codecs.base import DIVERGED, Codec, check_size, exactly
from potluck.errors import CorruptData


class Fp32(Codec):
    """Values as little-endian fp32."""

    name = "fp32"

    def sizes(self, n: int) -> range:
        return exactly(4 * n)

    def encode(self, values: NDArray[np.float32]) -> bytes:
        if not np.isfinite(values).all():
            raise CorruptData(DIVERGED)
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32]:
        check_size(self, raw, n)
        values = np.frombuffer(raw, "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise CorruptData("values in fp32 hold NaN or infinity, which no encoder sends")
        return values
