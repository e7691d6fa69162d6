"""The referee's own account of what lossy encoding took, where rounding alone may look like a loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from potluck.codecs import codec
from potluck.codecs.bf16 import narrowed, widened
from potluck.testing.residuals import Residuals
from potluck.wire.records import Member

WHO = Member("a" * 64, "s")
INT4 = codec("int4")


def off(progress: NDArray[np.float64], sent: NDArray[np.float64]) -> float:
    """By how much a first contribution is off that is ``progress`` by the account, but encodes ``sent``."""
    decoded = INT4.decode(INT4.encode(sent.astype(np.float32)), sent.size).astype(np.float64)
    return Residuals(sent.size, [[slice(0, sent.size)]], INT4).cut(WHO, (1, 0), progress, [decoded])


def at_the_edge() -> NDArray[np.float64]:
    """Values whose scale lies midway between two that bf16 has (seed 1749)."""
    low = widened(narrowed(np.array([0.0142], np.float32)))
    high = widened((low.view(np.uint32) >> 16).astype(np.uint16) + np.uint16(1))
    scale = (float(low[0]) + float(high[0])) / 2
    return np.array([7 * scale, 4.35 * scale, *6 * [0.0]])


def test_a_scale_that_is_rounded_the_other_way_is_no_broken_invariant() -> None:
    for nudge in (1 - 1e-6, 1 + 1e-6):
        assert off(at_the_edge() * (2 - nudge), at_the_edge() * nudge) <= 0


def test_a_forgotten_residual_is_one() -> None:
    progress = at_the_edge()
    assert off(progress, progress - np.array([0.0, 0.02, *6 * [0.0]])) > 0
