"""Four and a quarter bits a value: blocks of 64 values share one scale.

Layout: the scales of all blocks (bf16, little-endian), then two values a byte, the first in its lower half;
of an odd number the last has a byte to itself. The last block may be short. A block's scale is its largest
magnitude / 7, rounded to bf16; a value's four bits are round(value / scale), ties to even, in two's
complement.

As in int8 no subnormal number is made or needed: a block whose scale would be subnormal (all its magnitudes
below 8.2e-38) is sent as zeros.

Four bits of exponent and sign without mantissa (E3M0) were tried in the same layout: for Gaussian values they
lose 0.19 of the norm where these lose 0.11.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potluck.codecs.base import DIVERGED, Codec, check_size, exactly
from potluck.codecs.bf16 import narrowed, widened
from potluck.errors import CorruptData

BLOCK = 64
"""Values that share a scale."""

ROWS = 2048
"""Blocks handled at a time, so that the scratch memory of 512 KiB stays in the processor's cache."""

LEVELS = np.float32(7)

# Bounds on a scale as bf16, whose bits are ordered as the numbers are. The upper one keeps 7 · scale finite.
_LEAST = np.uint16(0x0080)
_MOST = np.uint16(0x7E12)

_NIBBLES = np.arange(16, dtype=np.int8) - 16 * (np.arange(16, dtype=np.int8) > 7)
_PAIRS = np.stack([np.tile(_NIBBLES, 16), np.repeat(_NIBBLES, 16)], axis=1).astype(np.float32)
"""The two values of each byte."""
_FOREIGN = _PAIRS.min(axis=1) < -LEVELS


class Int4(Codec):
    """Largest magnitude of each block, and each value as sevenths of it."""

    name = "int4"

    def sizes(self, n: int) -> range:
        return exactly(2 * _blocks(n) + (n + 1) // 2)

    def encode(self, values: NDArray[np.float32]) -> bytes:
        n = values.size
        raw = np.empty(self.sizes(n)[0], np.uint8)
        scales = raw[: 2 * _blocks(n)].view("<u2")
        pairs = raw[2 * _blocks(n) :]
        whole = n // BLOCK * BLOCK
        for start in range(0, whole, ROWS * BLOCK):
            stop = min(start + ROWS * BLOCK, whole)
            block = slice(start // BLOCK, stop // BLOCK)
            scales[block], pairs[start // 2 : stop // 2] = _quantised(values[start:stop].reshape(-1, BLOCK))
        if whole < n:
            last = np.zeros((1, (n - whole + 1) // 2 * 2), np.float32)
            last[0, : n - whole] = values[whole:]
            scales[-1:], pairs[whole // 2 :] = _quantised(last)
        return raw.tobytes()

    def decode(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32]:
        check_size(self, raw, n)
        bits = np.frombuffer(raw, "<u2", _blocks(n))
        pairs = np.frombuffer(raw, np.uint8, offset=2 * _blocks(n))
        if not ((bits == 0) | ((bits >= _LEAST) & (bits <= _MOST))).all():
            raise CorruptData("a scale in int4 is negative, subnormal, huge or NaN, which no encoder sends")
        if n % 2 and pairs[-1] > 15:
            raise CorruptData("int4 has a value after its last one, which no encoder sends")
        scales = widened(bits)
        values = np.empty(n + n % 2, np.float32)
        whole = n // BLOCK * BLOCK
        for start in range(0, whole, ROWS * BLOCK):
            stop = min(start + ROWS * BLOCK, whole)
            block = slice(start // BLOCK, stop // BLOCK)
            _restore(pairs[start // 2 : stop // 2], scales[block], values[start:stop])
        if whole < n:
            _restore(pairs[whole // 2 :], scales[-1:], values[whole:])
        return values[:n]


def _blocks(n: int) -> int:
    return -(-n // BLOCK)


def _quantised(values: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """The scales [rows] and the bytes [rows · block / 2] of ``values`` [rows, block]."""
    scratch = np.abs(values)
    largest = scratch.max(axis=1)
    if not np.isfinite(largest).all():
        raise CorruptData(DIVERGED)
    bits = narrowed(largest / LEVELS)
    bits[bits < _LEAST] = 0
    np.minimum(bits, _MOST, out=bits)
    np.divide(values, np.where(bits == 0, np.float32(np.inf), widened(bits))[:, None], out=scratch)
    np.rint(scratch, out=scratch)
    levels = scratch.reshape(-1).astype(np.int8).view(np.uint8)
    return bits, (levels[::2] & np.uint8(15)) | (levels[1::2] << np.uint8(4))


def _restore(pairs: NDArray[np.uint8], scales: NDArray[np.float32], values: NDArray[np.float32]) -> None:
    """Fill ``values`` [rows · block] from their bytes and ``scales`` [rows]."""
    if _FOREIGN[pairs].any():
        raise CorruptData("a value in int4 is -8, which no encoder sends")
    np.take(_PAIRS.view(np.uint64)[:, 0], pairs, out=values.view(np.uint64))
    blocks = values.reshape(scales.size, -1)
    np.multiply(blocks, scales[:, None], out=blocks)
