"""DiLoCo (arXiv 2311.08105): the outer step against a reference that is as plain as the equations.

Algorithm 1: the outer gradient is the members' mean Δ of (Θ − θ_m), and the outer optimizer is SGD with
Nesterov momentum: v ← μ v + Δ, Θ ← Θ − η (Δ + μ v). With η = 1 and μ = 0 it is federated averaging.
"""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from potluck.errors import ModelMismatch, RecipeError
from potluck.optim import outer as outer_module
from potluck.optim.outer import SLICE, OuterOptimizer
from potluck.optim.state import state_digest
from potluck.recipe import Outer, Recipe
from potluck.reduce.mean import weighted_mean
from tests.processors import DISABLED, printed

NESTEROV = Outer("nesterov", 0.7, 0.9)


def members(n: int, count: int, seed: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n, dtype=np.float32) for _ in range(count)]


def reference(
    theta: list[float], momentum: list[float], locals_: list[list[float]], weights: list[float]
) -> tuple[list[float], list[float]]:
    """One outer step of Algorithm 1 in float64, value by value."""
    new_theta, new_momentum = [], []
    for i in range(len(theta)):
        delta = sum(w * (theta[i] - m[i]) for w, m in zip(weights, locals_, strict=True)) / sum(weights)
        v = 0.9 * momentum[i] + delta
        new_momentum.append(v)
        new_theta.append(theta[i] - 0.7 * (delta + 0.9 * v))
    return new_theta, new_momentum


def test_ten_rounds_of_algorithm_1() -> None:
    n, weights = 200, [1000.0, 3000.0, 500.0]
    optimizer = OuterOptimizer(NESTEROV)
    theta, momentum = members(n, 1, seed=0)[0], np.zeros(n, np.float32)
    exact_theta, exact_momentum = theta.tolist(), momentum.tolist()
    for round_ in range(10):
        moves = [0.1 * m for m in members(n, 3, seed=round_ + 1)]
        exact_locals = [[t + d for t, d in zip(exact_theta, move.tolist(), strict=True)] for move in moves]
        delta = weighted_mean([theta - (theta + move) for move in moves], weights)
        optimizer.step(theta, momentum, delta)
        exact_theta, exact_momentum = reference(exact_theta, exact_momentum, exact_locals, weights)
    assert np.allclose(theta, exact_theta, rtol=0, atol=2e-5)
    assert np.allclose(momentum, exact_momentum, rtol=0, atol=2e-5)
    assert not np.allclose(theta, members(n, 1, seed=0)[0], atol=0.05)


def test_average_is_the_mean_of_the_members() -> None:
    n, weights = 500, [1.0, 2.0, 5.0]
    theta, locals_ = members(n, 1, seed=7)[0], members(n, 3, seed=8)
    momentum = np.full(n, 0.5, np.float32)
    expected = sum(w * m.astype(np.float64) for w, m in zip(weights, locals_, strict=True)) / 8
    OuterOptimizer(Outer("average")).step(
        theta, momentum, weighted_mean([theta - m for m in locals_], weights)
    )
    assert np.allclose(theta, expected, rtol=0, atol=1e-5)
    assert (momentum == 0.5).all()


def test_plain_is_a_step_along_the_mean() -> None:
    theta, delta = np.random.default_rng(4).standard_normal((2, (1 << 18) + 5), np.float32)
    momentum = np.ones_like(theta)
    expected = theta - np.float32(0.65) * delta
    OuterOptimizer(Outer("plain", 0.65, 0.9)).step(theta, momentum, delta)
    assert theta.tobytes() == expected.tobytes()
    assert (momentum == 1).all(), "it has none"


def test_nesterov_with_lr_1_and_momentum_0_is_average() -> None:
    theta, delta = members(SLICE + 5, 2, seed=4)
    average, momentum = theta.copy(), np.zeros_like(theta)
    OuterOptimizer(Outer("average")).step(average, momentum.copy(), delta)
    OuterOptimizer(Outer("nesterov", 1.0, 0.0)).step(theta, momentum, delta)
    assert theta.tobytes() == average.tobytes()


def test_each_value_is_single_fp32_operations_in_the_written_order() -> None:
    theta, momentum, delta = members(300, 3, seed=5)
    expected = []
    lr, mu = np.float32(0.7), np.float32(0.9)
    for t, v, d in zip(theta, momentum, delta, strict=True):
        v_new = v * mu + d
        expected.append((t - (v_new * mu + d) * lr, v_new))
    OuterOptimizer(NESTEROV).step(theta, momentum, delta)
    assert theta.tobytes() == np.array([t for t, _ in expected], np.float32).tobytes()
    assert momentum.tobytes() == np.array([v for _, v in expected], np.float32).tobytes()


@pytest.mark.parametrize("slice_", [1, 7, 64, 1000, 10_000])
def test_slicing_changes_no_bit(monkeypatch: pytest.MonkeyPatch, slice_: int) -> None:
    theta, momentum, delta = members(1009, 3, seed=6)
    whole = theta.copy(), momentum.copy()
    OuterOptimizer(NESTEROV).step(*whole, delta)
    monkeypatch.setattr(outer_module, "SLICE", slice_)
    kept = delta.copy()
    OuterOptimizer(NESTEROV).step(theta, momentum, delta)
    assert (theta.tobytes(), momentum.tobytes()) == (whole[0].tobytes(), whole[1].tobytes())
    assert delta.tobytes() == kept.tobytes()


@pytest.mark.parametrize("n", [0, 1, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE + 3])
def test_every_value_is_stepped_once(n: int) -> None:
    theta, momentum, delta = np.ones(n, np.float32), np.ones(n, np.float32), np.full(n, 2, np.float32)
    OuterOptimizer(Outer("nesterov", 1.0, 0.5)).step(theta, momentum, delta)
    assert (momentum == 2.5).all()
    assert (theta == 1 - (2 + 1.25)).all()


SEVERAL_ROUNDS = """
import numpy as np
from potluck.codecs import codec
from potluck.optim.outer import OuterOptimizer
from potluck.optim.state import state_digest
from potluck.recipe import Outer
from potluck.reduce.mean import weighted_mean
state = np.arange(5000, dtype=np.uint32)
theta, momentum = np.zeros(5000, np.float32), np.zeros(5000, np.float32)
int8, optimizer = codec("int8"), OuterOptimizer(Outer("nesterov", 0.7, 0.9))
for _ in range(5):
    deltas = []
    for _ in range(3):
        state = state * np.uint32(1664525) + np.uint32(1013904223)
        x = (state >> np.uint32(9)).astype(np.float32) / np.float32(1 << 22) - np.float32(1)
        deltas.append(int8.decode(int8.encode(x), 5000))
    mean = weighted_mean(deltas, [1.0, 2.5, 3.0])
    optimizer.step(theta, momentum, int8.decode(int8.encode(mean), 5000))
print(state_digest(5, theta, momentum))
"""
# Computed once without numpy: Python floats (float64), each operation rounded to fp32 by struct.
GOLDEN = "c9fa589eda341f0d3f701957582d17d9e6ed934961184e6bc5681bbe3fc92913"


@pytest.mark.parametrize("disabled", DISABLED)
def test_the_processor_changes_no_bit(disabled: str) -> None:
    assert printed(SEVERAL_ROUNDS, disabled).strip() == GOLDEN


def test_values_that_overflow_do_so_quietly() -> None:
    theta, momentum = np.full(2, 3e38, np.float32), np.full(2, 3e38, np.float32)
    OuterOptimizer(NESTEROV).step(theta, momentum, np.full(2, -3e38, np.float32))
    OuterOptimizer(NESTEROV).step(theta, momentum, np.full(2, -3e38, np.float32))
    assert np.isinf(theta).all()
    assert len(state_digest(2, theta, momentum)) == 64


@pytest.mark.parametrize(
    "outer",
    [
        Outer("adam"),
        Outer("nesterov", 0.0, 0.9),
        Outer("nesterov", -0.7, 0.9),
        Outer("nesterov", math.nan, 0.9),
        Outer("nesterov", math.inf, 0.9),
        Outer("nesterov", 1e300, 0.9),
        Outer("nesterov", 1e-300, 0.9),
        Outer("nesterov", 0.7, -0.1),
        Outer("nesterov", 0.7, 1.0),
        Outer("nesterov", 0.7, 0.999999999),
        Outer("nesterov", 0.7, math.nan),
    ],
)
def test_nonsense_recipes_are_refused(outer: Outer) -> None:
    with pytest.raises(RecipeError, match=r"outer (optimizer|learning rate|momentum)"):
        OuterOptimizer(outer)


FLUSHING = """
import numpy as np, sys, torch
from potluck.errors import UsageError
from potluck.optim.outer import OuterOptimizer
from potluck.recipe import Outer
vectors = [np.ones(2, np.float32) for _ in range(3)]
OuterOptimizer(Outer()).step(*vectors)
if not torch.set_flush_denormal(True):
    sys.exit(77)
try:
    OuterOptimizer(Outer()).step(*vectors)
except UsageError as error:
    print(error, [vector.tolist() for vector in vectors])
"""


def test_a_process_that_flushes_subnormals_is_told() -> None:
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", FLUSHING], capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip("this processor has no such mode")
    assert done.returncode == 0, done.stderr
    assert "remove torch.set_flush_denormal" in done.stdout
    assert done.stdout.endswith("[[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]\n")  # the second step did nothing


@pytest.mark.parametrize("kind", outer_module.KINDS)
def test_a_recipe_may_name_each_kind(kind: str) -> None:
    recipe = Recipe.from_toml(f'[outer]\nkind = "{kind}"\n')
    OuterOptimizer(recipe.outer)


@pytest.mark.parametrize("kind", ["average", "nesterov"])
@pytest.mark.parametrize("wrong", range(3))
def test_values_that_do_not_fit_change_nothing(kind: str, wrong: int) -> None:
    misfit: Any
    for misfit in (np.ones(1, np.float32), np.ones(4, np.float64), np.ones((4, 1), np.float32)):
        vectors = [np.ones(4, np.float32) for _ in range(3)]
        vectors[wrong] = misfit
        with pytest.raises(ModelMismatch, match="same tensors"):
            OuterOptimizer(Outer(kind)).step(*vectors)
        assert all((vector == 1).all() for vector in vectors)
