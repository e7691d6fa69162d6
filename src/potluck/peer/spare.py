"""Vectors whose memory is used again: to touch fresh memory costs more than all that is done with it."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

KEPT = 2
"""So many vectors are kept for the next time."""


class Spare:
    """Hands out vectors, and takes them back by itself when nobody refers to them any more. (Measured: 50 MB
    anew cost up to 0.4 s on a virtual machine that hands free pages back to its host, and 0.01 s if not.)
    """

    def __init__(self) -> None:
        # The first is never handed out: it shows how many refer to a vector that only the list has.
        self._kept = [np.empty(0, np.float32)]

    def take(self, n: int) -> NDArray[np.float32]:
        """A vector [n] of any content, that nobody else has."""
        for place in range(1, len(self._kept)):
            if self._kept[place].size == n and self._users(place) == self._users(0):
                return self._kept[place]
        fresh = np.empty(n, np.float32)
        self._kept = [*self._kept[:1], *[v for v in self._kept[1:] if v.size == n][1 - KEPT :], fresh]
        return fresh

    def _users(self, place: int) -> int:
        return sys.getrefcount(self._kept[place])  # a view or a tensor of it counts too
