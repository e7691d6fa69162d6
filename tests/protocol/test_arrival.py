"""When what is being fetched will be here."""

from __future__ import annotations

import pytest

from potluck.protocol.arrival import WINDOW_S, Arrival


def test_what_is_left_takes_as_long_as_what_came() -> None:
    arrival = Arrival()
    arrival.began(10.0)
    assert arrival.eta_s(100, 10.0) is None
    assert arrival.eta_s(100, 11.0) is None, "nothing has come yet"
    arrival.came(50, 12.0)
    assert arrival.eta_s(100, 12.0) == pytest.approx(4.0)
    assert arrival.eta_s(0, 12.0) == 0


def test_only_what_came_lately_counts() -> None:
    arrival = Arrival()
    arrival.began(0.0)
    arrival.came(10_000, 1.0)
    arrival.came(30, 8.0)
    assert arrival.eta_s(60, 9.0) == pytest.approx(2 * WINDOW_S)
    assert arrival.eta_s(60, 12.0) is None, "it has come to a stop"


def test_a_new_beginning_forgets() -> None:
    arrival = Arrival()
    arrival.began(0.0)
    arrival.came(30, 1.0)
    arrival.began(2.0)
    assert arrival.eta_s(60, 3.0) is None


def test_what_came_long_ago_is_forgotten_though_nobody_asks() -> None:
    arrival = Arrival()
    for second in range(1000):
        arrival.came(1, float(second))
    assert len(arrival._came) == WINDOW_S + 1
