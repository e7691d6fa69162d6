"""The interface of a codec. Every one passes ``tests/codecs/test_conformance.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from potluck.errors import CorruptData
from potluck.sparse import Sparse

DIVERGED = (
    "values to send hold NaN or infinity, so nothing was sent: training on this machine has diverged; "
    "rejoin the run from its last round, and lower the inner learning rate if it happens again"
)


class Codec(ABC):
    """Turns vectors of fp32 into bytes and back, with no state.

    What is decoded has the same bits on every machine. So has what is encoded, but for how long Huffman codes
    are: another build of zlib may choose others (``packed``).
    """

    name: str
    """As recipes spell it."""

    decay: float = 1.0
    """What error feedback keeps of an older residual in each sending: β in e ← β e + Δ."""

    @abstractmethod
    def sizes(self, n: int) -> range:
        """The numbers of bytes that n values may take: a single one, unless it depends on the values."""

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
            CorruptData: a size that is not in ``sizes(n)``, or bytes that no encoder writes.
        """

    def read(self, raw: bytes | memoryview, n: int) -> NDArray[np.float32] | Sparse:
        """As ``decode``, in the form that is least work; to be read only, it may lie in ``raw``."""
        return self.decode(raw, n)

    def send(self, values: NDArray[np.float32]) -> bytes:
        """As ``encode``; in ``values`` [n] is then what was lost, ``values`` - ``decode``."""
        raw = self.encode(values)
        np.subtract(values, self.decode(raw, values.size), out=values)
        return raw


def exactly(size: int) -> range:
    """The sizes of a codec that takes so many bytes whatever the values are."""
    return range(size, size + 1)


def said(sizes: range) -> str:
    """The sizes that there may be, in words."""
    return f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def check_size(codec: Codec, raw: bytes | memoryview, n: int) -> None:
    """Raises CorruptData unless ``raw`` has as many bytes as n values may take."""
    sizes, came = codec.sizes(n), memoryview(raw).nbytes
    if came not in sizes:
        raise CorruptData(f"{n} values in {codec.name} take {said(sizes)} bytes, and {came} came")
