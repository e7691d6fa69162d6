"""Averaging (federated averaging, arXiv 1602.05629, Algorithm 1) and plain outer SGD.

θ_m are the members' models after their inner steps, w_m their weights. Averaging sets Θ to Σ w_m θ_m / Σ w_m;
plain outer SGD takes Θ ← Θ − η Δ with Δ = Σ w_m (Θ − θ_m) / Σ w_m, which with η = 1 is the same.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from potluck.optim.outer import SLICE, OuterOptimizer
from potluck.recipe import Outer
from tests.paper.swarm import Swarm

N, WEIGHTS = 203, [1000.0, 3000.0, 500.0]


def vectors(count: int, seed: int, n: int = N) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, n), np.float32)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("outer", [Outer("average"), Outer("plain", 0.65), Outer("plain", 1.0)])
def test_eight_rounds_of_three_members(outer: Outer, parts: int) -> None:
    """One of them misses every third round; what it learnt meanwhile is in the next that it is in."""
    theta = vectors(1, 0)[0]
    swarm = Swarm(theta, 3, outer, parts=parts)
    exact, lr = theta.astype(np.float64), outer.lr if outer.kind == "plain" else 1.0
    models = [exact.copy() for _ in range(3)]
    for round_ in range(8):
        for index, move in enumerate(vectors(3, round_ + 1)):
            swarm.locals[index] = swarm.locals[index] + np.float32(0.1) * move
            models[index] = models[index] + 0.1 * move.astype(np.float64)
        weights = [w if index or round_ % 3 < 2 else 0.0 for index, w in enumerate(WEIGHTS)]
        swarm.round(weights)
        mean = sum(w * model for w, model in zip(weights, models, strict=True)) / sum(weights)
        before, exact = exact, exact - lr * (exact - mean)
        # Who was in it goes on from Θ; who was not keeps what it has learnt.
        models = [exact.copy() if w else exact + m - before for w, m in zip(weights, models, strict=True)]
        np.testing.assert_allclose(swarm.theta, exact, rtol=0, atol=1e-5)
        for local, model in zip(swarm.locals, models, strict=True):
            np.testing.assert_allclose(local, model, rtol=0, atol=1e-5)
    assert np.abs(exact - theta).max() > 0.1
    assert not swarm.planes[0].momentum.any(), "neither has any"


def test_plain_is_a_step_along_the_mean() -> None:
    theta, delta = vectors(2, 4, SLICE + 5)
    momentum = np.ones_like(theta)
    expected = theta - np.float32(0.65) * delta
    OuterOptimizer(Outer("plain", 0.65, 0.9)).step(theta, momentum, delta)
    assert theta.tobytes() == expected.tobytes()
    assert (momentum == 1).all(), "it has none"


def test_nesterov_with_lr_1_and_momentum_0_is_average() -> None:
    theta, delta = vectors(2, 4, SLICE + 5)
    average, momentum = theta.copy(), np.zeros_like(theta)
    OuterOptimizer(Outer("average")).step(average, momentum.copy(), delta)
    OuterOptimizer(Outer("nesterov", 1.0, 0.0)).step(theta, momentum, delta)
    assert theta.tobytes() == average.tobytes()
