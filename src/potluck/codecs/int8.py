"""Eight bits a value: blocks of 1024 values share one scale.

Layout: the scales of all blocks (fp32, little-endian), then one signed byte per value; the last block may be
short. A block's scale is its largest magnitude / 127, a value's byte is round(value / scale), ties to even.

No subnormal number is ever made or needed, because some processors and libraries flush them to zero:
a block whose scale would be subnormal (all its magnitudes below 1.5e-36) is sent as zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potluck.codecs.base import DIVERGED, Codec, check_size, exactly
from potluck.errors import CorruptData

BLOCK = 1024
"""Values that share a scale."""

ROWS = 256
"""Blocks handled at a time, so that the scratch memory of 1 MiB stays in the processor's cache."""

LEVELS = np.float32(127)

# Bounds on a scale, as bits: non-negative floats are ordered like their bits, and integers compare alike
# whatever the processor does with subnormals. The upper bound keeps 127 · scale finite.
_LEAST = np.finfo(np.float32).tiny.view(np.uint32)
_MOST = np.nextafter(np.finfo(np.float32).max / LEVELS, np.float32(0)).view(np.uint32)


class Int8(Codec):
    """Largest magnitude of each block, and each value as 1/127ths of it."""

    name = "int8"

    def sizes(self, n: int) -> range:
        return exactly(4 * _blocks(n) + n)

    def encode(self, values: NDArray[np.float32]) -> bytes:
        return self._encoded(values, leave=False)

    def send(self, values: NDArray[np.float32]) -> bytes:
        return self._encoded(values, leave=True)

    def _encoded(self, values: NDArray[np.float32], leave: bool) -> bytes:
        """Bytes of ``values``; with ``leave`` what they lose is in there afterwards."""
        n = values.size
        raw = np.empty(self.sizes(n)[0], np.uint8)
        scales = raw[: 4 * _blocks(n)].view("<f4")
        levels = raw[4 * _blocks(n) :].view(np.int8)
        scratch = np.empty((ROWS, BLOCK), np.float32)
        whole = n // BLOCK * BLOCK
        for start in range(0, whole, ROWS * BLOCK):
            stop = min(start + ROWS * BLOCK, whole)
            rows = (stop - start) // BLOCK
            scales[start // BLOCK :][:rows] = _quantise(
                values[start:stop].reshape(rows, BLOCK),
                levels[start:stop].reshape(rows, BLOCK),
                scratch[:rows],
                leave,
            )
        if whole < n:
            last = scratch[:1, : n - whole]
            scales[-1:] = _quantise(values[None, whole:], levels[None, whole:], last, leave)
        return raw.tobytes()

    def decode(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32]:
        check_size(self, raw, n)
        scales = np.frombuffer(raw, "<f4", _blocks(n)).astype(np.float32)
        levels = np.frombuffer(raw, np.int8, n, offset=4 * _blocks(n))
        bits = scales.view(np.uint32)
        if not ((bits == 0) | ((bits >= _LEAST) & (bits <= _MOST))).all():
            raise CorruptData("a scale in int8 is negative, subnormal, huge or NaN, which no encoder sends")
        if levels.min(initial=0) < -LEVELS:
            raise CorruptData("a value in int8 is -128, which no encoder sends")
        values = np.empty(n, np.float32)
        whole = n // BLOCK * BLOCK
        blocks = values[:whole].reshape(-1, BLOCK)
        np.multiply(levels[:whole].reshape(-1, BLOCK), scales[: whole // BLOCK, None], out=blocks)
        np.multiply(levels[whole:], scales[-1:], out=values[whole:])
        return values


def _blocks(n: int) -> int:
    return -(-n // BLOCK)


def _quantise(
    values: NDArray[np.float32], levels: NDArray[np.int8], scratch: NDArray[np.float32], leave: bool
) -> NDArray[np.float32]:
    """Fill ``levels`` [rows, block] from ``values``; returns the scales [rows]. With ``leave`` what these
    lose is in ``values`` afterwards.
    """
    np.abs(values, out=scratch)
    scales: NDArray[np.float32] = scratch.max(axis=1) / LEVELS
    if not np.isfinite(scales).all():
        raise CorruptData(DIVERGED)
    bits = scales.view(np.uint32)
    bits[bits < _LEAST] = 0
    np.minimum(bits, _MOST, out=bits)
    np.divide(values, np.where(bits == 0, np.float32(np.inf), scales)[:, None], out=scratch)
    np.rint(scratch, out=scratch)
    np.copyto(levels, scratch, casting="unsafe")
    if leave:
        np.multiply(levels, scales[:, None], out=scratch)
        np.subtract(values, scratch, out=values)
    return scales
