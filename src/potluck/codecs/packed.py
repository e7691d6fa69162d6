"""Words made smaller without loss: the upper bytes of floats, which are much alike, in Huffman codes.

The upper byte of fp32 and of bf16 is the sign and seven bits of the exponent. Of Gaussian values it has 2.6
bits of entropy, and the bits below it next to all that they take: so fp32 comes to 0.83 of its size, bf16 to
0.67. Of n words of k bytes there are either

- k n bytes: the words as they are, little-endian, where packing saves too little
- or fewer: the lower two bytes of each word if k is 4, then the next lower byte of each, then the upper bytes
  as raw DEFLATE, which takes at least a bit for each, since nothing but Huffman codes is in it.
"""

from __future__ import annotations

import zlib
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from potluck.wire.compress import inflate

LEAST_WORDS = 1 << 16
"""Fewer are not packed: that would save some 40 kB, and they are soon sent anyway."""

LEAST_GAIN = 0.03
"""Saving less than this share is not worth the receiver's time."""

Word = TypeVar("Word", np.uint16, np.uint32)


def packed_sizes(n: int, width: int) -> range:
    """The numbers of bytes that n words of ``width`` bytes may take."""
    least = (width - 1) * n + n // 8 if n >= LEAST_WORDS else width * n
    return range(least, width * n + 1)


def pack(words: NDArray[Word]) -> bytes:
    """Bytes of ``words`` [n], which are little-endian. 8 ms a million, nearly all with the GIL released."""
    if words.size < LEAST_WORDS:
        return words.tobytes()
    width = words.itemsize
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    upper = np.ascontiguousarray(words.view(np.uint8)[width - 1 :: width])
    deflated = packer.compress(upper.data) + packer.flush()
    lower = (width - 1) * words.size
    if lower + len(deflated) > (1 - LEAST_GAIN) * words.nbytes:
        return words.tobytes()
    planes = np.empty(lower, np.uint8)
    for plane, lane in zip(_planes(planes, words.size), _lanes(words), strict=True):
        plane[:] = lane
    return b"".join((planes.data, deflated))


def unpack(raw: bytes | memoryview, n: int, kind: type[Word]) -> NDArray[Word]:
    """The n words in ``raw``, whose size is one of ``packed_sizes``; in place there, unless they are packed.

    Memory is taken for n words and their upper bytes at most, whatever ``raw`` holds.

    Raises:
        CorruptData: bytes that ``pack`` does not make of so many words.
    """
    little = np.dtype(kind).newbyteorder("<")
    width = little.itemsize
    if is_plain(raw, n, width):
        return np.frombuffer(raw, little)
    there = np.frombuffer(raw, np.uint8)
    lower = (width - 1) * n
    upper = inflate(there[lower:].data, n, "packed values")
    words = np.empty(n, little)
    words.view(np.uint8)[width - 1 :: width] = np.frombuffer(upper, np.uint8)
    for plane, lane in zip(_planes(there[:lower], n), _lanes(words), strict=True):
        lane[:] = plane
    return words


def is_plain(raw: bytes | memoryview, n: int, width: int) -> bool:
    """Whether these are n words as they are."""
    return memoryview(raw).nbytes == width * n


def _lanes(words: NDArray[Word]) -> list[NDArray[Any]]:
    """Where the lower bytes of each word are within ``words`` [n]."""
    octets = words.view(np.uint8)
    return [octets[::2]] if words.itemsize == 2 else [words.view("<u2")[::2], octets[2::4]]


def _planes(octets: NDArray[np.uint8], n: int) -> list[NDArray[Any]]:
    """The same in packed bytes [n or 3 n], one plane after the other."""
    return [octets] if octets.size == n else [octets[: 2 * n].view("<u2"), octets[2 * n :]]
