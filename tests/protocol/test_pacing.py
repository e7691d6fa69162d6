"""How fast one member sends to another while a round is open."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.protocol.pacing import LEAST, LOOK, ROUND_TRIPS, SLACK, WORTHWHILE_S, pace
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import OpenRound

from .support import heard, member, peer_id, says

SIZE = 100_000_000
RATE = 10e6


def round_of(reducers: tuple[int, ...], members: int = 4, groups: int = 1, number: int = 1) -> OpenRound:
    return OpenRound(number, 0, tuple(member(n) for n in range(members)), reducers, "base", 30.0, groups)


def swarm_of(downlinks: dict[int, float]) -> Swarm:
    return heard(*(says(n, downlink=rate, uplink=rate) for n, rate in downlinks.items()))


def paces(
    open_: OpenRound, swarm: Swarm, me: int, uplink: float, size: int = SIZE, rtt_s: float = 0.0
) -> dict[int, float]:
    others = (n for n in range(len(open_.members)) if n != me)
    return {n: pace(open_, member(me), peer_id(n), swarm, uplink, rtt_s, size, 0.0) for n in others}


def test_equal_links_are_shared_evenly() -> None:
    swarm = swarm_of(dict.fromkeys(range(4), RATE))
    found = paces(round_of((0, 1, 2, 3) * 4), swarm, 0, RATE)
    assert found == {n: pytest.approx(SLACK * RATE / 3) for n in (1, 2, 3)}


def test_who_gets_more_gets_it_faster() -> None:
    """A peer that reduces nothing gets results only, and gives contributions only."""
    swarm = swarm_of(dict.fromkeys(range(4), RATE))
    found = paces(round_of((0, 1, 2) * 4), swarm, 0, RATE)
    assert found[1] == found[2] == pytest.approx(2 * found[3])
    assert sum(found.values()) == pytest.approx(SLACK * RATE)


def test_a_thin_link_slows_only_what_goes_over_it() -> None:
    swarm = swarm_of({0: RATE, 1: RATE, 2: RATE, 3: RATE / 10})
    found = paces(round_of((0, 1, 2) * 4), swarm, 0, RATE)
    assert found[1] == found[2] == pytest.approx(SLACK * RATE * 2 / 5)
    assert found[3] == pytest.approx(SLACK * RATE / 10 / 3)


@given(
    st.lists(st.integers(0, 4), min_size=5, max_size=20),
    st.lists(st.floats(1e7, 1e8), min_size=5, max_size=5),
    st.lists(st.floats(1e7, 1e8), min_size=5, max_size=5),
)
def test_no_link_gets_more_than_it_carries_and_the_busiest_all_of_it(
    reducers: list[int], up: list[float], down: list[float]
) -> None:
    open_, swarm = round_of(tuple(reducers), 5), swarm_of(dict(enumerate(down)))
    found = {me: paces(open_, swarm, me, up[me], 10 * SIZE) for me in range(5)}
    for me, n in permutations(range(5), 2):
        if {me, n}.isdisjoint(reducers):
            assert found[me].pop(n) == LEAST, "they have nothing for each other"
            found[me][n] = 0.0
    loads = Counter(reducers)
    needs_s = {}
    for m in range(5):
        sent, got = sum(found[m].values()), sum(found[n][m] for n in range(5) if n != m)
        assert sent <= up[m] * SLACK * (1 + 1e-9)
        assert got <= down[m] * SLACK * (1 + 1e-9)
        carried = 10 * SIZE / len(reducers) * (len(reducers) + 3 * loads[m])
        needs_s["up", m], needs_s["down", m] = carried / up[m], carried / down[m]
    assert max(needs_s.values()) >= WORTHWHILE_S
    way, slowest = max(needs_s, key=lambda key: needs_s[key])
    busiest = (
        found[slowest].values() if way == "up" else [f[slowest] for m, f in found.items() if m != slowest]
    )
    assert sum(busiest) == pytest.approx((up if way == "up" else down)[slowest] * SLACK)


@pytest.mark.parametrize("unknown", [0.0, math.inf, math.nan])
def test_what_is_not_known_sets_no_pace(unknown: float) -> None:
    open_ = round_of((0, 1, 2, 3))
    assert set(paces(open_, swarm_of(dict.fromkeys(range(4), 0.0)), 0, unknown).values()) == {0.0}
    assert set(paces(open_, swarm_of(dict.fromkeys(range(4), RATE)), 0, unknown).values()) != {0.0}


def test_what_takes_next_to_no_time_goes_as_fast_as_it_can() -> None:
    open_, swarm = round_of((0, 1, 2, 3)), swarm_of(dict.fromkeys(range(4), RATE))
    size = int(RATE * WORTHWHILE_S / 1.5)
    assert set(paces(open_, swarm, 0, RATE, size - 9).values()) == {0.0}
    assert set(paces(open_, swarm, 0, RATE, size + 9).values()) != {0.0}


def test_a_downlink_that_only_a_snapshot_came_by_is_not_known() -> None:
    """Joiners that share one founder's uplink see a fraction of their own links."""
    joined = heard(says(1, downlink=RATE / 9), *(says(n, downlink=RATE, uplink=RATE) for n in (0, 2, 3)))
    open_ = round_of((0, 1, 2, 3))
    found = paces(open_, joined, 0, RATE)
    assert list(found.values()) == [pytest.approx(SLACK * RATE / 3)] * 3
    assert paces(open_, joined, 0, 0.0)[1] == 0.0


def test_while_streams_are_getting_started_they_have_no_pace() -> None:
    open_, swarm = round_of((0, 1, 2, 3)), swarm_of(dict.fromkeys(range(4), RATE))
    busy_s = 1.5 * SIZE / RATE
    assert set(paces(open_, swarm, 0, RATE, rtt_s=1.01 * busy_s / ROUND_TRIPS).values()) == {0.0}
    assert 0.0 not in paces(open_, swarm, 0, RATE, rtt_s=0.99 * busy_s / ROUND_TRIPS).values()
    far = heard(*(says(n, downlink=RATE, uplink=RATE, rtt_s=1.0 if n == 1 else 0.0) for n in range(4)))
    assert [n for n, rate in paces(open_, far, 0, RATE).items() if not rate] == [1]


def test_the_dead_leave_their_share_to_others() -> None:
    open_ = round_of((0, 1, 2, 0, 1, 2))
    found = paces(open_, swarm_of(dict.fromkeys((0, 1, 2), RATE)), 0, RATE)
    assert found == {1: pytest.approx(SLACK * RATE / 2), 2: pytest.approx(SLACK * RATE / 2), 3: 0.0}


def test_one_round_in_some_has_none_so_that_a_link_that_got_faster_is_found_out() -> None:
    swarm = swarm_of(dict.fromkeys(range(4), RATE))
    rounds = [paces(round_of((0, 1, 2, 3), number=n), swarm, 0, RATE) for n in range(2 * LOOK)]
    assert [n for n, found in enumerate(rounds) if not any(found.values())] == [0, LOOK]


@pytest.mark.parametrize("rate", [1.0, LEAST / 2])
def test_what_is_said_of_a_very_thin_link_does_not_stop_what_goes_there(rate: float) -> None:
    swarm = swarm_of({0: RATE, 1: rate, 2: RATE, 3: RATE})
    assert paces(round_of((0, 1, 2, 3)), swarm, 0, RATE)[1] == LEAST


def test_without_a_round_or_in_groups_or_among_two_there_is_none() -> None:
    swarm = swarm_of(dict.fromkeys(range(4), RATE))
    assert pace(None, member(0), peer_id(1), swarm, RATE, 0.0, SIZE, 0.0) == 0.0
    assert set(paces(round_of((0, 1, 2, 3), groups=2), swarm, 0, RATE).values()) == {0.0}
    assert set(paces(round_of((0, 1), members=2), swarm, 0, RATE).values()) == {0.0}
    assert pace(round_of((0, 1, 2, 3)), member(9), peer_id(1), swarm, RATE, 0.0, SIZE, 0.0) == 0.0
