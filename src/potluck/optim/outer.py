"""The outer step, with the same bits on every machine.

Two rules. Each value is the result of single IEEE-754 operations in fp32, one ufunc call each, in the order
written here: no fused multiply-add, no BLAS, no sums. And constants are rounded to fp32 once, at the start.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potluck.errors import ModelMismatch, RecipeError, UsageError
from potluck.recipe import Outer
from potluck.sparse import Sparse

SLICE = 1 << 18
"""Values handled at a time: all that a step touches stays in the processor's cache, and temporary memory is
1 MiB whatever the model's size."""

KINDS = ("average", "plain", "nesterov")


class OuterOptimizer:
    """Applies a reduced pseudo-gradient to the shared parameters.

    ``nesterov`` is DiLoCo's outer optimizer (arXiv 2311.08105, Algorithm 1 with Nesterov momentum):
    v ← μ v + Δ, then Θ ← Θ − η (Δ + μ v). ``plain`` is Θ ← Θ − η Δ, as in SparseLoCo (arXiv 2508.15706),
    and ``average`` Θ ← Θ − Δ, which makes Θ the members' mean.

    Raises:
        RecipeError: unknown kind, or constants outside 0 < η and 0 ≤ μ < 1.
    """

    def __init__(self, outer: Outer) -> None:
        if outer.kind not in KINDS:
            raise RecipeError(
                f"outer optimizer {outer.kind!r} is not known; choose one of {', '.join(KINDS)}"
            )
        with np.errstate(over="ignore"):
            self._lr = np.float32(outer.lr)
            self._momentum = np.float32(outer.momentum)
        if not 0 < self._lr < np.inf:
            raise RecipeError(f"outer learning rate {outer.lr} must be a positive number; 0.7 is usual")
        if not 0 <= self._momentum < 1:
            raise RecipeError(f"outer momentum {outer.momentum} must be at least 0 and below 1; 0.9 is usual")
        self._decays = outer.kind == "nesterov"
        self._step = {
            "average": _average,
            "plain": self._plain,
            "nesterov": self._nesterov,
        }[outer.kind]

    def step(
        self, theta: NDArray[np.float32], momentum: NDArray[np.float32], delta: NDArray[np.float32] | Sparse
    ) -> None:
        """One outer step, in place: ``theta`` and ``momentum`` change, ``delta`` does not; all are [n].

        Values that overflow become infinite, alike on every machine. Without momentum a sparse ``delta``
        costs as much as it has values, for the same bits: to take a zero away changes nothing.

        Raises:
            ModelMismatch: the three differ in shape, or are not fp32 vectors.
            UsageError: this thread flushes subnormal numbers to zero, and so would drift from the others.
        """
        _refuse_flushing()
        if isinstance(delta, Sparse):
            if self._decays or delta.size != theta.size:
                self.step(theta, momentum, delta.dense())
                return
            some = theta[delta.places]
            self.step(some, momentum[: some.size], delta.values)
            theta[delta.places] = some
            return
        for values in (theta, momentum, delta):
            if values.shape != (theta.size,) or values.dtype != np.float32:
                raise ModelMismatch(
                    f"an outer step of {theta.size} fp32 values was given {values.dtype} of shape "
                    f"{values.shape}: all peers must train the same tensors"
                )
        with np.errstate(over="ignore", invalid="ignore"):
            self._step(theta, momentum, delta)

    def _plain(
        self, theta: NDArray[np.float32], momentum: NDArray[np.float32], delta: NDArray[np.float32]
    ) -> None:
        scratch = np.empty(min(SLICE, theta.size), np.float32)
        for start in range(0, theta.size, SLICE):
            t = theta[start : start + SLICE]
            change = scratch[: t.size]
            np.multiply(delta[start : start + SLICE], self._lr, out=change)
            np.subtract(t, change, out=t)

    def _nesterov(
        self, theta: NDArray[np.float32], momentum: NDArray[np.float32], delta: NDArray[np.float32]
    ) -> None:
        scratch = np.empty(min(SLICE, theta.size), np.float32)
        for start in range(0, theta.size, SLICE):
            d = delta[start : start + SLICE]
            v = momentum[start : start + SLICE]
            t = theta[start : start + SLICE]
            change = scratch[: d.size]
            np.multiply(v, self._momentum, out=v)
            np.add(v, d, out=v)
            np.multiply(v, self._momentum, out=change)
            np.add(change, d, out=change)
            np.multiply(change, self._lr, out=change)
            np.subtract(t, change, out=t)


def _average(theta: NDArray[np.float32], momentum: NDArray[np.float32], delta: NDArray[np.float32]) -> None:
    np.subtract(theta, delta, out=theta)


def _refuse_flushing() -> None:
    # The momentum of a value that gets no gradient decays into the subnormals within a thousand rounds.
    subnormal = np.full(1, 1e-40, np.float32)
    if not np.add(subnormal, subnormal).view(np.uint32)[0]:
        raise UsageError(
            "this process flushes subnormal numbers to zero, so its parameters would drift from the other "
            "peers': remove torch.set_flush_denormal(True), or the library built with -ffast-math"
        )
