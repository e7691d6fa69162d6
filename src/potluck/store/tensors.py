"""Files of safetensors, read with every figure in them checked before it is used."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from potluck.errors import CorruptData

LENGTH_BYTES = 8
"""Before the header of a file: how long it is."""


class Stored(Struct, frozen=True):
    """What a file's header says of a tensor; its bytes are at these offsets behind the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def opened(raw: bytes | bytearray) -> tuple[dict[str, Stored], dict[str, str], NDArray[np.uint8]]:
    """What a file says of its tensors, which lie one behind the other in all that follows; its metadata; and
    what follows, not copied.

    Raises:
        CorruptData: why it can't be read.
    """
    try:
        start = LENGTH_BYTES + int.from_bytes(raw[:LENGTH_BYTES], "little")
        header = msgspec.json.decode(raw[LENGTH_BYTES:start], type=dict[str, Raw])
        metadata = msgspec.json.decode(header.pop("__metadata__", b"{}"), type=dict[str, str])
        found = {key: msgspec.json.decode(entry, type=Stored) for key, entry in header.items()}
    except (ValueError, RecursionError) as error:  # what msgspec raises
        raise CorruptData(str(error)) from error
    ends = [0]
    for begin, end in sorted(entry.data_offsets for entry in found.values()):
        if begin != ends[-1] or end < begin:
            raise CorruptData(f"a tensor is at byte {begin}, where {ends[-1]} is due")
        ends.append(end)
    if ends[-1] != len(raw) - start:
        raise CorruptData(f"it should end at byte {start + ends[-1]}, and has {len(raw)}")
    for entry in found.values():
        begin, end = entry.data_offsets
        if entry.dtype == "F32" and end - begin != 4 * math.prod(entry.shape):
            raise CorruptData(f"a tensor of {entry.shape} has {end - begin} bytes")
    data = np.frombuffer(raw, np.uint8, offset=start) if start < len(raw) else np.empty(0, np.uint8)
    return found, metadata, data
