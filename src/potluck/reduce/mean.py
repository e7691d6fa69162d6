"""The weighted mean of contributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potluck.errors import CorruptData, ProtocolError
from potluck.sparse import Sparse

Values = NDArray[np.float32] | Sparse

SLICE = 1 << 18
"""Values handled at a time, so that sum and product stay in the processor's cache."""


def weighted_mean(values: Sequence[Values], weights: Sequence[float]) -> NDArray[np.float32]:
    """Σ (w_i / Σ w) · x_i over contributions x_i [n], summed in fp32 in the order given. Of sparse ones only
    the places that have values are touched, for the same bits: a zero adds nothing, and no sum is -0.

    Raises:
        ProtocolError: nobody contributed, a weight is not a positive number of tokens, shapes differ.
        CorruptData: a contribution holds NaN or infinity (its place in the order is named), or the mean
            does not fit fp32.
    """
    shares = _shares(values, weights)
    mean = np.zeros(values[0].size, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if all(isinstance(x, Sparse) for x in values):
            sound = _add_sparse(mean, [x for x in values if isinstance(x, Sparse)], shares)
        else:
            sound = _add(mean, [x.dense() if isinstance(x, Sparse) else x for x in values], shares)
    if not sound:
        raise CorruptData(_blame(values))
    return mean


def _add_sparse(mean: NDArray[np.float32], values: Sequence[Sparse], shares: Sequence[np.float32]) -> bool:
    """Add shares of ``values`` to ``mean``; whether all is finite."""
    for x, share in zip(values, shares, strict=True):
        mean[x.places] += x.values * share
    return all(bool(np.isfinite(mean[x.places]).all()) for x in values)


def _add(
    mean: NDArray[np.float32], values: Sequence[NDArray[np.float32]], shares: Sequence[np.float32]
) -> bool:
    """As ``_add_sparse``, of dense ones."""
    scratch = np.empty(min(SLICE, mean.size), np.float32)
    sound = True
    for start in range(0, mean.size, SLICE):
        total = mean[start : start + SLICE]
        term = scratch[: total.size]
        for x, share in zip(values, shares, strict=True):
            np.multiply(x[start : start + SLICE], share, out=term)
            np.add(total, term, out=total)
        sound &= bool(np.isfinite(total).all())
    return sound


def _shares(values: Sequence[Values], weights: Sequence[float]) -> list[np.float32]:
    if not values or len(values) != len(weights):
        raise ProtocolError(f"{len(values)} contributions with {len(weights)} weights can't be averaged")
    for index, (x, weight) in enumerate(zip(values, weights, strict=True)):
        if not 0 < weight < math.inf:
            raise ProtocolError(f"contribution {index} has weight {weight}, not a positive number of tokens")
        some = x.values if isinstance(x, Sparse) else x
        if x.size != values[0].size or some.ndim != 1 or some.dtype != np.float32:
            raise ProtocolError(
                f"contribution {index} is {some.dtype} of shape {some.shape}, "
                f"not {values[0].size} fp32 values"
            )
    total = math.fsum(weights)  # sum() rounds differently from Python 3.12 on
    return [np.float32(weight / total) for weight in weights]


def _blame(values: Sequence[Values]) -> str:
    for index, x in enumerate(values):
        if not np.isfinite(x.values if isinstance(x, Sparse) else x).all():
            return f"contribution {index} holds NaN or infinity; leave it out"
    return "the mean of these contributions does not fit fp32: somebody sent absurd values"
