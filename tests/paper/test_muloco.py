"""MuLoCo (arXiv 2505.23725): DiLoCo with Muon inside, against a reference in float64 with whole matrices.

Inner step of a matrix: m ← μ m + g, θ ← (1 − λ lr) θ − 0.2 √max(rows, columns) lr · O(g + μ m), where O
makes the singular values about 1 (Newton-Schulz; the scale is that of arXiv 2502.16982). All else takes
AdamW's steps. The outer step is DiLoCo's, with the learning rate in the buffer: u ← μ u + η Δ,
Θ ← Θ − (η Δ + μ u). Ours keeps it outside, which with a constant η is the same; and so it is in the buffer of
error feedback.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from potluck.codecs import CODECS, Codec  # noqa: E402
from potluck.codecs.feedback import ErrorFeedback  # noqa: E402
from potluck.recipe import Outer  # noqa: E402
from potluck.tasks.muon import MOMENTUM, Muon, orthogonal  # noqa: E402
from tests.paper.swarm import Swarm  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

Exact = NDArray[np.float64]

ROWS, COLUMNS, SAMPLES, STEPS, REPLICAS, ROUNDS = 6, 8, 20, 5, 3, 6
LR, DECAY, BETAS, OUTER_LR, OUTER_MU = 0.05, 0.1, (0.9, 0.95), 0.7, 0.6
WEIGHTS = [100.0, 300.0, 50.0]


def random(rows: int, columns: int, seed: int = 0) -> Any:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (16, 64), (64, 16), (1, 8)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_become_about_one_and_directions_stay(rows: int, columns: int, scale: float) -> None:
    matrix = random(rows, columns)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(scale * matrix)
    assert found.shape == matrix.shape
    assert found.dtype == matrix.dtype
    inside = torch.diag(u.T @ found @ v.T)
    assert 0.6 < inside.min() <= inside.max() < 1.3
    assert torch.allclose(u @ torch.diag(inside) @ v, found, atol=1e-3)


def test_a_zero_gradient_moves_nothing() -> None:
    assert not orthogonal(torch.zeros(4, 8)).any()


def test_a_step_is_the_papers() -> None:
    """θ ← (1 − λ lr) θ − 0.2 √max(rows, columns) lr · orthogonal(g + μ m), with m ← μ m + g."""
    weight, expected = torch.nn.Parameter(random(8, 16)), random(8, 16)
    optimizer = Muon([weight], [], lr=0.1, weight_decay=0.5, betas=(0.9, 0.95))
    momentum = torch.zeros(8, 16)
    for seed in range(1, 4):
        weight.grad = random(8, 16, seed)
        momentum = MOMENTUM * momentum + weight.grad
        expected = 0.95 * expected - 0.1 * 0.2 * 4 * orthogonal(weight.grad + MOMENTUM * momentum)
        optimizer.step()
    assert torch.allclose(weight, expected, atol=1e-6)


# -- a whole run -------------------------------------------------------------------------------------


def orthogonal_exactly(matrix: Exact) -> Exact:
    """O in float64, with Keller Jordan's constants."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Replica:
    """One worker's linear regression of its own data, in float64: its weights, and its optimizers' states."""

    def __init__(self, inputs: Exact, targets: Exact) -> None:
        self.inputs, self.targets = inputs, targets
        self.momentum = np.zeros((ROWS, COLUMNS))
        self.first, self.second, self.steps = np.zeros(ROWS), np.zeros(ROWS), 0

    def train(self, theta: Exact) -> Exact:
        """θ [n] after its inner steps from Θ [n]."""
        matrix, bias = theta[: ROWS * COLUMNS].reshape(ROWS, COLUMNS), theta[ROWS * COLUMNS :]
        for _ in range(STEPS):
            off = (matrix @ self.inputs + bias[:, None] - self.targets) / SAMPLES
            matrix, bias = self._muon(matrix, off @ self.inputs.T), self._adamw(bias, off.sum(axis=1))
        return np.concatenate([matrix.reshape(-1), bias])

    def _muon(self, matrix: Exact, gradient: Exact) -> Exact:
        self.momentum = 0.95 * self.momentum + gradient
        update = orthogonal_exactly(gradient + 0.95 * self.momentum)
        return (1 - DECAY * LR) * matrix - 0.2 * np.sqrt(max(matrix.shape)) * LR * update

    def _adamw(self, bias: Exact, gradient: Exact) -> Exact:
        self.steps += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradient
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * gradient**2
        mean = self.first / (1 - BETAS[0] ** self.steps)
        size = np.sqrt(self.second / (1 - BETAS[1] ** self.steps)) + 1e-8
        return bias - LR * mean / size


class Trainer:
    """The same with PyTorch and the product's optimizer, in fp32."""

    def __init__(self, inputs: Exact, targets: Exact) -> None:
        self.inputs, self.targets = (torch.from_numpy(v.astype(np.float32)) for v in (inputs, targets))
        self.matrix = torch.nn.Parameter(torch.zeros(ROWS, COLUMNS))
        self.bias = torch.nn.Parameter(torch.zeros(ROWS))
        others = [{"params": [self.bias], "weight_decay": 0.0}]
        self.optimizer = Muon([self.matrix], others, LR, DECAY, BETAS)

    def train(self, theta: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            self.matrix.copy_(torch.from_numpy(theta[: ROWS * COLUMNS]).reshape(ROWS, COLUMNS))
            self.bias.copy_(torch.from_numpy(theta[ROWS * COLUMNS :]))
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            off = self.matrix @ self.inputs + self.bias[:, None] - self.targets
            (off.square().sum() / (2 * SAMPLES)).backward()
            self.optimizer.step()
        local: NDArray[np.float32] = torch.cat([self.matrix.reshape(-1), self.bias]).detach().numpy()
        return local


def tasks() -> list[tuple[Exact, Exact]]:
    """Data of each replica: of one linear map, with noise."""
    rng = np.random.default_rng(5)
    truth = rng.standard_normal((ROWS, COLUMNS))
    inputs = [rng.standard_normal((COLUMNS, SAMPLES)) for _ in range(REPLICAS)]
    return [(x, truth @ x + 1 + 0.1 * rng.standard_normal((ROWS, SAMPLES))) for x in inputs]


def loss(theta: Exact) -> float:
    matrix, bias = theta[: ROWS * COLUMNS].reshape(ROWS, COLUMNS), theta[ROWS * COLUMNS :]
    return float(np.mean([np.square(matrix @ x + bias[:, None] - y).mean() for x, y in tasks()]))


def test_six_rounds_with_muon_inside_and_the_learning_rate_in_the_buffer() -> None:
    n = ROWS * COLUMNS + ROWS
    theta = np.random.default_rng(6).standard_normal(n).astype(np.float32)
    swarm = Swarm(theta, REPLICAS, Outer("nesterov", OUTER_LR, OUTER_MU), parts=2)
    trainers, replicas = [Trainer(*task) for task in tasks()], [Replica(*task) for task in tasks()]
    exact, buffer = theta.astype(np.float64), np.zeros(n)
    for _ in range(ROUNDS):
        swarm.locals = [t.train(swarm.theta) for t in trainers]
        swarm.round(WEIGHTS)
        locals_ = [replica.train(exact) for replica in replicas]
        delta = sum(w * (exact - m) for w, m in zip(WEIGHTS, locals_, strict=True)) / sum(WEIGHTS)
        buffer = OUTER_MU * buffer + OUTER_LR * delta
        exact = exact - (OUTER_LR * delta + OUTER_MU * buffer)
        np.testing.assert_allclose(swarm.theta, exact, rtol=0, atol=1e-4)
    assert loss(exact) < 0.5 * loss(theta.astype(np.float64))


@pytest.mark.parametrize("coder", CODECS.values(), ids=list(CODECS))
def test_in_the_buffer_of_error_feedback_it_is_the_same(coder: Codec) -> None:
    """e ← β e + η Δ, and Θ ← Θ − C(e): as η times what goes without it; to the bit if η is a power of two."""
    n, lr = 5000, np.float32(0.5)
    inside, outside = ErrorFeedback(n, coder.decay), ErrorFeedback(n, coder.decay)
    rng = np.random.default_rng(7)
    for _ in range(10):
        delta = rng.standard_normal(n, np.float32)
        sent = []
        for feedback, values in ((inside, lr * delta), (outside, delta)):
            total = feedback.add(values)
            sent.append(coder.decode(coder.encode(total), n))
            feedback.settle(total - sent[-1])
        np.testing.assert_array_equal(sent[0], lr * sent[1])
        np.testing.assert_array_equal(inside.residual, lr * outside.residual)
