"""How fast a link is, by what its streams carried together."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.peer.meter import BIN_S, BINS, BURSTS, LEAST_BYTES, LONGEST_S, QUIET_S, Meter
from potluck.wire.messages import MAX_RATE

MB = 1_000_000


def burst(meter: Meter, at: float, rate: float, seconds: float = 2.0) -> float:
    """Six streams share a link for some time; returns when they end."""
    for stream in range(6):
        meter.moved(round(rate * seconds / 6), at, at + seconds - stream * 1e-3)
    return at + seconds


def test_streams_that_share_a_link_are_counted_together() -> None:
    meter = Meter()
    assert meter.rate == 0.0
    burst(meter, 100.0, 12 * MB)
    assert meter.rate == pytest.approx(12 * MB, rel=0.01)


def test_the_time_in_which_others_kept_us_waiting_does_not_count() -> None:
    meter = Meter()
    end = burst(meter, 0.0, 12 * MB, 1.0)
    meter.moved(2 * MB, end, end + 10.0)
    assert meter.rate == pytest.approx(12 * MB, rel=0.05)


def test_little_tells_nothing() -> None:
    meter = Meter()
    meter.moved(LEAST_BYTES - 1, 0.0, 0.5)
    assert meter.rate == 0.0
    meter.moved(1, 0.5, 0.6)
    assert meter.rate > 0


def test_the_fastest_of_some_bursts_counts_and_then_it_is_forgotten() -> None:
    meter = Meter()
    end = burst(meter, 0.0, 10 * MB)
    for _ in range(BURSTS - 1):
        end = burst(meter, end + QUIET_S + 1, 1 * MB)
        assert meter.rate == pytest.approx(10 * MB, rel=0.01)
    end = burst(meter, end + QUIET_S + 1, 1 * MB)
    assert meter.rate == pytest.approx(1 * MB, rel=0.01)
    # What is too little for a burst makes nothing be forgotten.
    for number in range(2 * BURSTS):
        meter.moved(1000, end + 10 * number + 5, end + 10 * number + 5.1)
    assert meter.rate == pytest.approx(1 * MB, rel=0.01)


def test_one_that_never_pauses_is_measured_anew_each_minute_and_takes_no_more_memory() -> None:
    meter = Meter()
    for second in range(10 * round(LONGEST_S)):
        meter.moved(5 * MB if second < 60 else MB, second, second + 1.0)
        assert len(meter._bins) <= LONGEST_S / BIN_S + 12
    assert meter.rate == pytest.approx(MB, rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.floats(0, 1e6), st.floats(0, 1e4)), max_size=6))
def test_whatever_is_under_way_when_the_rate_can_be_said(moved: list[tuple[int, float, float]]) -> None:
    meter, total = Meter(), 0
    for size, began, took in moved:
        meter.moved(size, began, began + took)
        total += size
        assert math.isfinite(meter.rate)
        assert 0 <= meter.rate <= MAX_RATE
        assert meter.rate <= total / (BINS * BIN_S) * (1 + 1e-9)
