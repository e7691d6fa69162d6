"""Error feedback (arXiv 1901.09847): nothing is lost, only late."""

from __future__ import annotations

import numpy as np
import pytest

from potluck.codecs import CODECS, Codec, codec
from potluck.codecs.feedback import ErrorFeedback


@pytest.mark.parametrize("coder", CODECS.values(), ids=list(CODECS))
def test_what_arrives_is_what_was_meant_up_to_one_residual(coder: Codec) -> None:
    n, rounds = 3000, 60
    rng = np.random.default_rng(1)
    feedback = ErrorFeedback(n)
    meant, arrived, naive = np.zeros(n), np.zeros(n), np.zeros(n)
    for _ in range(rounds):
        values = (rng.standard_normal(n) + 0.3).astype(np.float32)
        values[0] = 300  # a coarse scale for the others of its block, so that much is lost each time
        total = feedback.add(values)
        sent = coder.decode(coder.encode(total), n)
        feedback.settle(total, sent)
        meant += values.astype(np.float64)
        arrived += sent.astype(np.float64)
        naive += coder.decode(coder.encode(values), n).astype(np.float64)
    late = np.abs(meant - arrived - feedback.residual.astype(np.float64))
    assert late.max() < 1e-3  # fp32 rounding of 60 sums
    one_step = 303 / 127 if coder.name == "int8" else 0
    assert np.abs(feedback.residual).max() <= one_step / 2 * 1.001
    if coder.name == "int8":
        assert np.abs(meant - naive)[1:1024].max() > 4 * one_step  # without feedback the loss piles up


def test_a_sending_that_did_not_count_changes_nothing() -> None:
    coder, feedback = codec("int8"), ErrorFeedback(4)
    total = feedback.add(np.array([1, 0.3, 0.2, 0.1], np.float32))
    feedback.settle(total, coder.decode(coder.encode(total), 4))
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
