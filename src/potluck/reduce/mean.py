"""The weighted mean of contributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potluck.errors import CorruptData, ProtocolError

SLICE = 1 << 18
"""Values handled at a time, so that sum and product stay in the processor's cache."""


def weighted_mean(values: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> NDArray[np.float32]:
    """Σ (w_i / Σ w) · x_i over contributions x_i [n], summed in fp32 in the order given.

    Raises:
        ProtocolError: nobody contributed, a weight is not a positive number of tokens, shapes differ.
        CorruptData: a contribution holds NaN or infinity (its place in the order is named), or the mean
            does not fit fp32.
    """
    shares = _shares(values, weights)
    mean = np.zeros(values[0].size, np.float32)
    scratch = np.empty(min(SLICE, mean.size), np.float32)
    for start in range(0, mean.size, SLICE):
        total = mean[start : start + SLICE]
        term = scratch[: total.size]
        with np.errstate(over="ignore", invalid="ignore"):
            for x, share in zip(values, shares, strict=True):
                np.multiply(x[start : start + SLICE], share, out=term)
                np.add(total, term, out=total)
        if not np.isfinite(total).all():
            raise CorruptData(_blame(values))
    return mean


def _shares(values: Sequence[NDArray[np.float32]], weights: Sequence[float]) -> list[np.float32]:
    if not values or len(values) != len(weights):
        raise ProtocolError(f"{len(values)} contributions with {len(weights)} weights can't be averaged")
    for index, (x, weight) in enumerate(zip(values, weights, strict=True)):
        if not 0 < weight < math.inf:
            raise ProtocolError(f"contribution {index} has weight {weight}, not a positive number of tokens")
        if x.shape != (values[0].size,) or x.dtype != np.float32:
            raise ProtocolError(
                f"contribution {index} is {x.dtype} of shape {x.shape}, not {values[0].size} fp32 values"
            )
    total = math.fsum(weights)  # sum() rounds differently from Python 3.12 on
    return [np.float32(weight / total) for weight in weights]


def _blame(values: Sequence[NDArray[np.float32]]) -> str:
    for index, x in enumerate(values):
        if not np.isfinite(x).all():
            return f"contribution {index} holds NaN or infinity; leave it out"
    return "the mean of these contributions does not fit fp32: somebody sent absurd values"
