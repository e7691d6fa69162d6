"""The interface of a codec. Every one passes ``tests/codecs/test_conformance.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from potluck.errors import CorruptData

DIVERGED = (
    "values to send hold NaN or infinity, so nothing was sent: training on this machine has diverged; "
    "rejoin the run from its last round, and lower the inner learning rate if it happens again"
)


class Codec(ABC):
    """Turns vectors of fp32 into bytes and back, with no state and the same bits on every machine."""

    name: str
    """As recipes spell it."""

    @abstractmethod
    def size(self, n: int) -> int:
        """Exact number of bytes that n values take."""

    @abstractmethod
    def encode(self, values: NDArray[np.float32]) -> bytes:
        """Bytes of ``values`` [n].

        Raises:
            CorruptData: some value is NaN or infinite.
        """

    @abstractmethod
    def decode(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32]:
        """The n values in ``raw``, finite and in memory of their own.

        Raises:
            CorruptData: not ``size(n)`` bytes, or bytes that no encoder writes.
        """


def check_size(codec: Codec, raw: bytes | memoryview, n: int) -> None:
    """Raises CorruptData unless ``raw`` has exactly the bytes that n values take."""
    if memoryview(raw).nbytes != codec.size(n):
        raise CorruptData(
            f"{n} values in {codec.name} take {codec.size(n)} bytes, and {memoryview(raw).nbytes} came"
        )
