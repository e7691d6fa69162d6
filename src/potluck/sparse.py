"""Vectors of which few values are not zero."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Sparse(NamedTuple):
    """A vector [size] with ``values`` [k] at ``places`` [k], which ascend, and zeros elsewhere."""

    size: int
    places: NDArray[np.int64]
    values: NDArray[np.float32]

    def dense(self) -> NDArray[np.float32]:
        """All values [size]."""
        whole = np.zeros(self.size, np.float32)
        whole[self.places] = self.values
        return whole
