from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from potluck.errors import CorruptData, ProtocolError
from potluck.reduce import mean as mean_module
from potluck.reduce.mean import weighted_mean
from potluck.sparse import Sparse

finite = st.floats(-(2.0**100), 2.0**100, width=32)
contributions = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        arrays(np.float32, (count, 9), elements=finite),
        st.lists(st.floats(1e-3, 1e9), min_size=count, max_size=count),
    )
)


@settings(deadline=None)
@given(contributions)
def test_against_float64(given_: tuple[NDArray[np.float32], list[float]]) -> None:
    rows, weights = given_
    exact = (rows.astype(np.float64) * np.array(weights)[:, None]).sum(axis=0) / math.fsum(weights)
    found = weighted_mean(list(rows), weights)
    assert found.dtype == np.float32
    bound = np.abs(rows.astype(np.float64)).max(axis=0) * 1e-6 + 1e-44 * len(rows)
    assert (np.abs(found.astype(np.float64) - exact) <= bound).all()


def test_the_order_given_is_the_order_summed() -> None:
    big, small = np.array([1e8], np.float32), np.array([3], np.float32)
    share = np.float32(1 / 3)
    for order in ([big, small, -big], [big, -big, small]):
        expected = np.float32(0)
        for x in order:
            expected = expected + x[0] * share
        assert weighted_mean(order, [5, 5, 5])[0] == expected
    assert weighted_mean([big, small, -big], [1, 1, 1]) != weighted_mean([big, -big, small], [1, 1, 1])


def test_one_contribution_is_its_own_mean_and_stays_untouched() -> None:
    x = np.linspace(-1, 1, 1001, dtype=np.float32)
    for weight in (1e-300, 0.1, 12345.0):
        found = weighted_mean([x], [weight])
        assert found.tobytes() == x.tobytes()
        assert found is not x


def few(values: NDArray[np.float32]) -> Sparse:
    """What is not zero of some values."""
    places = np.flatnonzero(values)
    return Sparse(values.size, places, values[places])


def test_sparse_contributions_have_the_same_mean_in_every_bit() -> None:
    rng, weights = np.random.default_rng(3), [3.0, 1e-40, 2.0]
    rows = [rng.standard_normal(500, dtype=np.float32) * (rng.random(500) < 0.1) for _ in weights]
    rows[1][:5] = rows[0][:5] = -1e-30  # whose shares are zeros with a sign
    rows[2][:5] = 0
    whole = weighted_mean(rows, weights)
    assert np.count_nonzero(whole) > 50
    assert weighted_mean([few(row) for row in rows], weights).tobytes() == whole.tobytes()
    assert weighted_mean([rows[0], few(rows[1]), rows[2]], weights).tobytes() == whole.tobytes()


def test_bad_sparse_contributions_are_named() -> None:
    good, other = few(np.ones(3, np.float32)), few(np.ones(4, np.float32))
    with pytest.raises(ProtocolError, match="contribution 1 is float32 of shape"):
        weighted_mean([good, other], [1.0, 1.0])
    odd = Sparse(3, good.places, np.array([1, np.nan, 1], np.float32))
    with pytest.raises(CorruptData, match="contribution 1 holds NaN"):
        weighted_mean([good, odd], [1.0, 1.0])
    huge = Sparse(3, good.places, np.full(3, np.finfo(np.float32).max))
    with pytest.raises(CorruptData, match="does not fit fp32"):
        weighted_mean([huge] * 10, [1.0] * 10)


@pytest.mark.parametrize("slice_", [1, 7, 100, 5000])
def test_slicing_changes_no_bit(monkeypatch: pytest.MonkeyPatch, slice_: int) -> None:
    rows = list(np.random.default_rng(0).standard_normal((4, 1009), dtype=np.float32))
    whole = weighted_mean(rows, [1, 2, 3, 4.5])
    monkeypatch.setattr(mean_module, "SLICE", slice_)
    assert weighted_mean(rows, [1, 2, 3, 4.5]).tobytes() == whole.tobytes()


@pytest.mark.parametrize("weight", [0, -1, -0.0, math.nan, math.inf, -math.inf])
def test_weights_that_count_no_tokens_are_refused(weight: float) -> None:
    ones = np.ones(3, np.float32)
    with pytest.raises(ProtocolError, match="contribution 1 has weight"):
        weighted_mean([ones, ones], [1, weight])


def test_contributions_that_differ_in_shape_are_refused() -> None:
    ones = np.ones(3, np.float32)
    odd: Any
    for odd in (np.ones(1, np.float32), np.ones((3, 1), np.float32), np.ones(3, np.float64)):
        with pytest.raises(ProtocolError, match="contribution 1 is"):
            weighted_mean([ones, odd], [1, 1])
    with pytest.raises(ProtocolError, match="contribution 0 is"):
        weighted_mean([np.ones((3, 1), np.float32)], [1])


def test_nobody_contributed() -> None:
    for values, weights in (([], []), ([np.ones(2, np.float32)], []), ([], [1.0])):
        with pytest.raises(ProtocolError, match="can't be averaged"):
            weighted_mean(values, weights)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", [1e-300, 1.0, 1e9])
def test_who_sent_nan_is_named(bad: float, weight: float) -> None:
    good, odd = np.ones(9, np.float32), np.ones(9, np.float32)
    odd[8] = bad
    with pytest.raises(CorruptData, match="contribution 2 holds NaN or infinity"):
        weighted_mean([good, good, odd], [1.0, 1.0, weight])


def test_a_mean_that_does_not_fit_is_refused() -> None:
    # Ten shares of fp32(1/10) are a little more than 1.
    huge = np.full(2, np.finfo(np.float32).max)
    with pytest.raises(CorruptData, match="does not fit fp32"):
        weighted_mean([huge] * 10, [1.0] * 10)


def test_nothing_to_average() -> None:
    assert weighted_mean([np.empty(0, np.float32)] * 2, [1, 2]).shape == (0,)
