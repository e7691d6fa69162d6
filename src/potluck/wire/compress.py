"""Content made smaller for the way, without loss: what fp32 values leave of their bits.

The first bytes of all values come first, then the second ones, and so on; all of it goes through DEFLATE,
with runs and Huffman codes only. Of trained weights that saves a sixth, for their exponents are alike; of a
momentum that is mostly zero nearly all. Content of any kind comes back as it was.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from potluck.errors import CorruptData

VALUE_BYTES = 4
"""Bytes of one value."""

LEAST_GAIN = 0.03
"""Saving less than this share is not worth the receiver's time."""


def compress(raw: bytes) -> bytes | None:
    """``raw`` made smaller; None if there is little to gain. About 8 ms a MiB, with the GIL released."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    small = packer.compress(_planes(raw).data) + packer.flush()
    return small if len(small) < (1 - LEAST_GAIN) * len(raw) else None


def decompress(small: bytes, size: int) -> bytes:
    """The ``size`` bytes that were compressed; no more memory is taken than for them.

    Raises:
        CorruptData: it is not what ``compress`` makes of so many bytes.
    """
    planes = inflate(small, size, "compressed content")
    whole = size // VALUE_BYTES * VALUE_BYTES
    values = np.frombuffer(planes, np.uint8, whole).reshape(VALUE_BYTES, -1).T
    return values.tobytes() + planes[whole:]


def inflate(deflated: bytes | memoryview, size: int, what: str) -> bytes:
    """The ``size`` bytes in raw DEFLATE; no more memory is taken than for them.

    Raises:
        CorruptData: ``what`` it is does not come to so many bytes, or goes on after them.
    """
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(deflated, size + 1)
    except zlib.error as error:
        raise CorruptData(f"{what} can't be read: {error}") from error
    if len(found) != size or not unpacker.eof or unpacker.unused_data:
        raise CorruptData(f"{what} of another length than the {size} bytes that are due")
    return found


def _planes(raw: bytes) -> NDArray[np.uint8]:
    """The bytes of ``raw`` by their place in a value; a rest that is no whole value comes last."""
    whole = len(raw) // VALUE_BYTES * VALUE_BYTES
    there = np.frombuffer(raw, np.uint8)
    planes = np.empty(len(raw), np.uint8)
    planes[:whole].reshape(VALUE_BYTES, -1)[:] = there[:whole].reshape(-1, VALUE_BYTES).T
    planes[whole:] = there[whole:]
    return planes
