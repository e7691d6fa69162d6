"""Error feedback (arXiv 1901.09847): nothing is lost, only late."""

from __future__ import annotations

import numpy as np
import pytest

from potluck.codecs import CODECS, Codec, codec
from potluck.codecs.feedback import ErrorFeedback

every_codec = pytest.mark.parametrize("coder", CODECS.values(), ids=list(CODECS))

LATE = {"fp32": 0.0, "bf16": 301 / 256, "int8": 303 / 127 / 2, "int4": 325 / 7 / 2, "topk": 65 * 0.3 * 1.5}
"""How much of a value is still owed at most: half a step of the coarsest block; in topk a value's turn comes
when it has grown with the others, of which one in 64 is sent each time."""


@every_codec
def test_what_arrives_is_what_was_meant_up_to_one_residual(coder: Codec) -> None:
    n, rounds = 3000, 300
    rng = np.random.default_rng(1)
    feedback = ErrorFeedback(n)
    meant, arrived, naive = np.zeros(n), np.zeros(n), np.zeros(n)
    for _ in range(rounds):
        values = (rng.standard_normal(n) + 0.3).astype(np.float32)
        values[0] = 300  # a coarse scale for the others of its block, so that much is lost each time
        total = feedback.add(values)
        sent = coder.decode(coder.encode(total), n)
        feedback.settle(total - sent)
        meant += values.astype(np.float64)
        arrived += sent.astype(np.float64)
        naive += coder.decode(coder.encode(values), n).astype(np.float64)
    late = np.abs(meant - arrived - feedback.residual.astype(np.float64))
    assert late.max() < 5e-3  # fp32 rounding of 300 sums
    assert np.abs(feedback.residual).max() <= LATE[coder.name] * 1.001
    if coder.name in ("int8", "int4", "topk"):  # without feedback the loss piles up
        assert np.abs(meant - naive)[1:64].max() > 3 * LATE[coder.name]


@every_codec
@pytest.mark.parametrize("decay", [None, 1.0, 0.5])
def test_the_residual_is_what_float64_says(coder: Codec, decay: float | None) -> None:
    n, rng = 4096 + 700, np.random.default_rng(2)
    kept = coder.decay if decay is None else decay
    feedback, owed = ErrorFeedback(n, kept), np.zeros(n)
    for _ in range(40):
        values = rng.standard_t(4, n).astype(np.float32)
        total = feedback.add(values)
        sent = coder.decode(coder.encode(total), n)
        feedback.settle(total - sent)
        owed = kept * owed + values - sent
        np.testing.assert_allclose(feedback.residual, owed, rtol=0, atol=1e-4)


def test_only_where_most_is_lost_old_residuals_fade() -> None:
    assert {name: coder.decay for name, coder in CODECS.items() if coder.decay != 1} == {"topk": 0.95}


@every_codec
def test_a_residual_stays_bounded_however_long_it_goes_on(coder: Codec) -> None:
    """If an encoding loses no more than q of a norm, e never grows over q / (1 - q β) of what is given."""
    n, rng, q = 4 * 4096, np.random.default_rng(3), {"topk": 0.94, "int4": 0.11}.get(coder.name, 0.01)
    feedback, norms = ErrorFeedback(n, coder.decay), []
    for _ in range(250):
        values = rng.standard_normal(n).astype(np.float32)
        values *= np.float32(np.sqrt(n) / np.linalg.norm(values))
        total = feedback.add(values)
        feedback.settle(total - coder.decode(coder.encode(total), n))
        norms.append(float(np.linalg.norm(feedback.residual)) / np.sqrt(n))
    assert max(norms) <= q / (1 - q * coder.decay)
    assert max(norms[200:]) <= 1.05 * max(norms[100:200])


def test_a_sending_that_did_not_count_changes_nothing() -> None:
    coder, feedback = codec("int8"), ErrorFeedback(4)
    total = feedback.add(np.array([1, 0.3, 0.2, 0.1], np.float32))
    feedback.settle(total - coder.decode(coder.encode(total), 4))
    before = feedback.residual.copy()
    assert before.any()
    feedback.add(np.array([5, 5, 5, 5], np.float32))
    assert feedback.residual.tobytes() == before.tobytes()
    assert (feedback.add(np.zeros(4, np.float32)) == before).all()


def test_add_gives_memory_of_its_own() -> None:
    feedback = ErrorFeedback(3)
    values = np.ones(3, np.float32)
    total = feedback.add(values)
    total += 1
    assert (values == 1).all()
    assert (feedback.residual == 0).all()


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        ErrorFeedback(3).add(np.ones(4, np.float32))
