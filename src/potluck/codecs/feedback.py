"""Error feedback (arXiv 1901.09847): what a lossy codec lost this time is added to what is sent next time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SLICE = 1 << 16
"""Values handled at a time, so that the scratch memory of 256 KiB stays in the processor's cache."""


class ErrorFeedback:
    """The residual e [n] of one sender, in two steps, since only the commit tells whether a sending counted.

    total = β e + x is encoded and sent; if the commit includes it, e ← total − decoded, which ``Codec.send``
    leaves. If not, e stays as it was. β, the codec's ``decay``, is 1 where little is lost. Where most values
    wait for many rounds, a smaller one forgets what is so old that the model has moved on (arXiv 2508.15706).
    """

    def __init__(self, n: int, decay: float = 1.0) -> None:
        self.residual = np.zeros(n, np.float32)
        self._decay = np.float32(decay)

    def add(
        self,
        values: NDArray[np.float32],
        within: slice = slice(None),
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """What to encode: β · residual + ``values``, all [n], or that range of them; into ``out``, which may
        be ``values``. Changes nothing else here.
        """
        residual = self.residual[within]
        if self._decay == 1:
            return np.add(residual, values, out=out)
        if values.shape != residual.shape:
            raise ValueError(f"values of shape {values.shape} for a residual of shape {residual.shape}")
        total = np.empty_like(residual) if out is None else out
        for start in range(0, residual.size, SLICE):
            some = slice(start, start + SLICE)
            np.add(residual[some] * self._decay, values[some], out=total[some])
        return total

    def settle(self, lost: NDArray[np.float32]) -> None:
        """The sending counted, and this is what it lost [n]; taken over, not copied."""
        self.residual = lost
