"""Error feedback (arXiv 1901.09847): what a lossy codec lost this time is added to what is sent next time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ErrorFeedback:
    """The residual e [n] of one sender, in two steps, since only the commit tells whether a sending counted.

    total = e + x is encoded and sent; if the commit includes it, e ← total − decoded. If not, e stays
    as it was.
    """

    def __init__(self, n: int) -> None:
        self.residual = np.zeros(n, np.float32)

    def add(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What to encode: residual + ``values`` [n]. Changes nothing here."""
        return np.add(self.residual, values)

    def settle(self, total: NDArray[np.float32], sent: NDArray[np.float32]) -> None:
        """The sending counted: ``total`` as ``add`` gave it, ``sent`` as it decodes; both [n]."""
        np.subtract(total, sent, out=self.residual)
