"""SparseLoCo (arXiv 2508.15706): chunked top-k with two bits a value and error feedback, as plain as can be.

Algorithm 1: e ← β e + Δ; what is sent is Q(TOP-k(e)), chunk by chunk; e ← e − what was sent. The outer
step takes the mean over all R replicas of what they sent. Chunks have 64 × 64 values, k = 64, β = 0.95.

Ours differs in Q: two bits are a sign and one of two magnitudes of the chunk, where the paper's authors lay
four bins over the range of the signed values. And results go down through the same codec, with a residual.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
from numpy.typing import NDArray

from potluck.codecs import codec
from potluck.codecs.feedback import ErrorFeedback
from potluck.optim.outer import OuterOptimizer
from potluck.peer.dataplane import DataPlane, Given
from potluck.peer.layout import Layout
from potluck.recipe import Outer
from tests.paper.swarm import Swarm

CHUNK, SHARE, BETA = 4096, 64, 0.95
TOPK = codec("topk")


def bf16(value: float) -> float:
    [bits] = struct.unpack("<I", struct.pack("<f", value))
    return float(struct.unpack("<f", struct.pack("<I", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16))[0])


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def sparse(vector: list[float]) -> list[float]:
    """Q(TOP-k(vector)), value by value."""
    sent = [0.0] * len(vector)
    for start in range(0, len(vector), CHUNK):
        chunk = vector[start : start + CHUNK]
        k = -(-len(chunk) // SHARE)
        kept = sorted(range(len(chunk)), key=lambda i: (-abs(chunk[i]), i))[:k]
        magnitudes = sorted(abs(chunk[i]) for i in kept)
        middle = mean(magnitudes)
        for _ in range(2):
            lower = mean([m for m in magnitudes if m < middle])
            upper = mean([m for m in magnitudes if m >= middle])
            parted, middle = middle, (lower + upper) / 2
        for i in kept:
            level = bf16(upper if abs(chunk[i]) >= parted else lower)
            sent[start + i] = level if chunk[i] >= 0 else -level
    return sent


def pseudo_gradients(n: int, seed: int) -> NDArray[np.float32]:
    """Heavy-tailed, and of other magnitudes in other places."""
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, n) * np.exp(rng.standard_normal(-(-n // 500)).repeat(500)[:n])).astype(
        np.float32
    )


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, CHUNK, CHUNK + 1, 2 * CHUNK + 333])
def test_what_is_sent_is_the_quantised_top_k_of_each_chunk(n: int) -> None:
    values = pseudo_gradients(n, seed=n)
    sent = TOPK.decode(TOPK.encode(values), n)
    assert sent.tolist() == sparse([float(v) for v in values])
    assert np.count_nonzero(sent) == sum(-(-min(CHUNK, n - s) // SHARE) for s in range(0, n, CHUNK))


def test_ten_rounds_of_error_feedback() -> None:
    n = 2 * CHUNK + 100
    assert TOPK.decay == BETA
    feedback, exact = ErrorFeedback(n, TOPK.decay), [0.0] * n
    for round_ in range(10):
        delta = pseudo_gradients(n, seed=round_)
        total = feedback.add(delta)
        sent = TOPK.decode(TOPK.encode(total), n)
        feedback.settle(total - sent)
        meant = [BETA * e + float(d) for e, d in zip(exact, delta, strict=True)]
        sent_exactly = sparse(meant)
        exact = [m - s for m, s in zip(meant, sent_exactly, strict=True)]
        # Means of almost the same values may lie on either side of a boundary of bf16.
        np.testing.assert_allclose(sent, sent_exactly, rtol=2.0**-7, atol=0)
        assert np.linalg.norm(feedback.residual - exact) < 1e-3 * np.linalg.norm(exact)


class Naive:
    """Algorithm 1 for all replicas, and our way down, with whole vectors of Python's float64."""

    def __init__(self, theta: list[float], replicas: int, lr: float) -> None:
        self.theta, self.lr = theta, lr
        self.owed = [[0.0] * len(theta) for _ in range(replicas)]
        self.owed_down = [0.0] * len(theta)

    def round(self, deltas: list[list[float]], weights: list[float]) -> None:
        sent = []
        for m, delta in enumerate(deltas):
            if weights[m]:
                self.owed[m], given = self.feedback(self.owed[m], delta)
                sent.append([weights[m] * s for s in given])
        mean_ = [sum(column) / sum(weights) for column in zip(*sent, strict=True)]
        self.owed_down, down = self.feedback(self.owed_down, mean_)
        self.theta = [t - self.lr * d for t, d in zip(self.theta, down, strict=True)]

    @staticmethod
    def feedback(owed: list[float], values: list[float]) -> tuple[list[float], list[float]]:
        """e ← β e + x, and what is sent of it; then e without that."""
        meant = [BETA * e + x for e, x in zip(owed, values, strict=True)]
        sent = sparse(meant)
        return [m - s for m, s in zip(meant, sent, strict=True)], sent


def test_six_rounds_of_three_replicas() -> None:
    """With weights, and one that misses two rounds: it gives all of it in the next."""
    n, weights = CHUNK + 300, [1.0, 2.0, 5.0]
    theta = np.random.default_rng(99).standard_normal(n).astype(np.float32)
    swarm, naive = Swarm(theta, 3, Outer("plain", 0.65), "topk"), Naive(theta.tolist(), 3, 0.65)
    late = np.zeros(n)
    for round_ in range(6):
        deltas = [0.01 * pseudo_gradients(n, seed=10 * round_ + m).astype(np.float64) for m in range(3)]
        for m in range(3):
            swarm.locals[m] = swarm.locals[m] - deltas[m].astype(np.float32)
        there = round_ not in (2, 3)
        late += deltas[2]
        given = [deltas[0].tolist(), deltas[1].tolist(), late.tolist()]
        now = [*weights[:2], weights[2] if there else 0.0]
        swarm.round(now)
        naive.round(given, now)
        late *= not there
        moved = np.array(naive.theta) - theta
        assert np.linalg.norm(swarm.theta - theta - moved) < 1e-3 * np.linalg.norm(moved)
        for m in range(3):
            owed = np.array(naive.owed[m])
            assert np.linalg.norm(swarm.planes[m]._up.residual - owed) < 1e-3 * np.linalg.norm(owed)


def test_a_coordinate_is_divided_by_the_weight_of_all_who_gave_not_of_those_who_sent_it() -> None:
    """Else whoever alone sends an unpopular coordinate owns it at full strength."""
    n, weights = CHUNK, [1.0, 2.0, 5.0]
    given = []
    for index, weight in enumerate(weights):
        values = np.zeros(n, np.float32)
        values[64 * index : 64 * (index + 1)] = 8.0
        values[4000] = 16.0  # all of them send this one
        given.append(Given(((index, weight),), TOPK.encode(values)))
    plane = DataPlane(
        np.zeros(n, np.float32), np.zeros(n, np.float32), 0, Layout(n, 1), TOPK, OuterOptimizer(Outer())
    )
    mean_ = np.frombuffer(plane.combine(1, 0, given).raw, "<f4")
    for index, weight in enumerate(weights):
        own = mean_[64 * index : 64 * index + 63]
        np.testing.assert_allclose(own, 8.0 * weight / sum(weights), rtol=1e-6)
    assert mean_[4000] == pytest.approx(16.0)
    result = TOPK.decode(plane.reduce(1, 0, given).raw, n)
    assert result.max() == pytest.approx(16.0)
    assert set(np.flatnonzero(result)) <= {*range(128, 192), 4000}, "the rest waits in the reducer's residual"
    np.testing.assert_allclose(np.unique(result), [0, 5.0, 16.0], rtol=1e-6)
