"""The digest by which peers compare their states."""

from __future__ import annotations

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray


def state_digest(round: int, theta: NDArray[np.float32], momentum: NDArray[np.float32]) -> str:  # noqa: A002
    """BLAKE3 (64 hexadecimal digits) of a state: round as 8 bytes, then both [n], all little-endian."""
    hasher = blake3(round.to_bytes(8, "little"))
    for values in (theta, momentum):
        hasher.update(np.ascontiguousarray(values, dtype="<f4").view(np.uint8).data)
    return hasher.hexdigest()
