"""Which member reduces which part: evenly, or by links, and where it was; who is in which group."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.protocol.plan import (
    ALIKE,
    FASTEST,
    FLAT,
    PAYS,
    THINNEST,
    Plan,
    Work,
    assign,
    exchange_s,
    groups_for,
    plan,
    reassign,
    ring,
    speeds,
)
from potluck.wire.messages import MAX_GROUP

from .support import member

people = st.lists(st.integers(0, 40), min_size=1, max_size=12, unique=True).map(
    lambda numbers: tuple(member(n) for n in sorted(numbers))
)


@given(st.integers(1, 60), people, people)
def test_every_part_has_a_reducer_and_none_has_more_than_its_share(parts: int, before, now) -> None:  # type: ignore[no-untyped-def]
    last = {p: before[m] for p, m in enumerate(assign(parts, before, {}))}
    plan = assign(parts, now, last)
    load = Counter(plan)
    assert len(plan) == parts
    assert set(plan) <= set(range(len(now)))
    assert max(load.values()) <= -(-parts // len(now))
    assert plan == assign(parts, now, last)


@given(st.integers(1, 60), people)
def test_with_the_same_members_nothing_moves(parts: int, members) -> None:  # type: ignore[no-untyped-def]
    plan = assign(parts, members, {})
    assert assign(parts, members, {p: members[m] for p, m in enumerate(plan)}) == plan


@given(st.integers(1, 60), people, people)
def test_a_part_moves_only_from_who_left_or_has_more_than_its_share(parts: int, before, now) -> None:  # type: ignore[no-untyped-def]
    last = {p: before[m] for p, m in enumerate(assign(parts, before, {}))}
    plan = assign(parts, now, last)
    most = -(-parts // len(now))
    load = Counter(plan)
    for part, owner in last.items():
        if owner in now and now[plan[part]] != owner:
            assert load[now.index(owner)] == most


def test_a_plan_of_last_time_may_lack_parts_and_name_strangers() -> None:
    members = (member(1), member(2))
    assert assign(3, members, {0: member(9), 2: member(2)}) == (0, 0, 1)


@given(st.integers(1, 40), st.integers(2, 10), st.data())
def test_reassigned_parts_go_to_the_least_loaded_that_live(parts: int, members: int, data) -> None:  # type: ignore[no-untyped-def]
    reducers = data.draw(st.lists(st.integers(0, members - 1), min_size=parts, max_size=parts))
    live = data.draw(st.lists(st.integers(0, members - 1), min_size=1, unique=True).map(sorted))
    orphans = [part for part, reducer in enumerate(reducers) if reducer not in live]
    moves = reassign(orphans, reducers, live, [0.0] * members)
    assert [part for part, _ in moves] == orphans
    assert {heir for _, heir in moves} <= set(live)
    load = Counter(r for r in reducers if r in live)
    for _, heir in moves:
        assert load[heir] == min(load[m] for m in live)
        load[heir] += 1
    assert moves == reassign(orphans, reducers, live, [0.0] * members)


# -- by links ----------------------------------------------------------------------------------------

FAST, THIN = 12.5e6, 1.25e6
B = 25_000_000
rates = st.sampled_from([0.0, THIN, FAST / 2, FAST, 10 * FAST]) | st.floats(0, 1e12)


def four(*links: float, last: Plan | None = None, same: bool = True) -> Plan:
    """Members of these links, whose parts were spread evenly before, unless told otherwise."""
    members = tuple(member(n) for n in range(1, len(links) + 1))
    before = last.reducers if last is not None else assign(16, members, {})
    return plan(16, members, {p: members[m] for p, m in enumerate(before)}, links, B, same=same)


def loads(found: Plan, members: int = 4) -> list[int]:
    counts = Counter(found.reducers)
    return [counts[m] for m in range(members)]


def test_behind_a_thin_link_nothing_is_reduced() -> None:
    found = four(FAST, FAST, FAST, THIN)
    assert sorted(loads(found)) == [0, 5, 5, 6]
    assert loads(found)[3] == 0
    # B (1 + 4/16 · 2) at a tenth of the rate, and then that peer's own contribution alone.
    assert found.moved_s == (pytest.approx(30.0), pytest.approx(20.0))
    # What the others had stays theirs.
    even = assign(16, tuple(member(n) for n in range(4)), {})
    assert all(now == was for now, was in zip(found.reducers, even, strict=True) if was != 3)


def test_a_link_that_nobody_knows_counts_as_the_middle_one() -> None:
    assert loads(four(FAST, FAST, 0.0, THIN)) == loads(four(FAST, FAST, FAST, THIN))
    assert four(0.0, 0.0, 0.0, 0.0).moved_s is None
    assert loads(four(FAST, 0.0, 0.0, 0.0)) == [4, 4, 4, 4]


def test_who_alone_is_fast_reduces_most_and_not_all() -> None:
    assert loads(four(10 * FAST, FAST, FAST, FAST)) == [10, 2, 2, 2]
    assert loads(four(10 * FAST, *[FAST] * 7), 8) == [9, 1, 1, 1, 1, 1, 1, 1]
    assert loads(four(1e12, FAST, FAST, FAST)) == loads(four(10 * FAST, FAST, FAST, FAST))


def test_two_members_move_as_many_bytes_whoever_reduces() -> None:
    assert loads(four(FAST, THIN), 2) == [8, 8]
    assert loads(four(THIN), 1) == [16]


def test_noise_moves_nothing_and_a_link_that_recovers_gets_parts_again() -> None:
    even = four(FAST, FAST, FAST, FAST)
    assert even == four(FAST, 1.2 * FAST, FAST / 1.2, FAST)
    thin = four(FAST, FAST, FAST, THIN)
    for noise in (0.8, 0.95, 1.1, 1.25):
        again = four(FAST, FAST * noise, FAST / noise, THIN / noise, last=thin)
        assert again == Plan(thin.reducers)
    assert loads(four(FAST, FAST, FAST, FAST, last=thin)) == [4, 4, 4, 4]


def test_at_the_edge_of_noise_a_plan_does_not_go_to_and_fro() -> None:
    last = four(FAST, FAST, FAST, FAST)
    plans = []
    for times in (0.82, 0.79, 0.82, 0.78, 0.81, 1.0, 0.79):
        last = four(FAST, FAST, FAST, FAST * times, last=last)
        plans.append(last.reducers)
    assert len(set(plans)) == 2
    assert plans[1:] == [plans[1]] * 6


def test_a_gain_of_a_moment_moves_nothing() -> None:
    members = tuple(member(n) for n in range(4))
    last = {p: members[m] for p, m in enumerate(assign(16, members, {}))}
    little = plan(16, members, last, (FAST, FAST, FAST, THIN), 10_000, same=True)
    assert little == Plan(assign(16, members, {}))


def test_with_other_members_the_plan_is_made_anew_by_what_is_known() -> None:
    unlike = Plan((0,) * 5 + (1,) * 5 + (2,) * 5 + (3,))
    assert four(FAST, FAST, FAST, FAST, last=unlike) == unlike
    assert loads(four(FAST, FAST, FAST, FAST, last=unlike, same=False)) == [4, 4, 4, 4]


@given(st.integers(1, 60), people, people, st.data(), st.booleans())
def test_a_plan_by_links_gives_each_part_to_a_member_and_is_as_good_as_any(  # type: ignore[no-untyped-def]
    parts: int, before, now, data, same: bool
) -> None:
    last = {p: before[m] for p, m in enumerate(assign(parts, before, {}))}
    links = data.draw(st.lists(rates, min_size=len(now), max_size=len(now)))
    found = plan(parts, now, last, links, B, same=same)
    assert found == plan(parts, now, last, links, B, same=same)
    assert len(found.reducers) == parts
    assert set(found.reducers) <= set(range(len(now)))
    if len(now) < 3:
        return
    work, counts = Work(parts, speeds(links)), Counter(found.reducers)
    assert max(counts.values()) <= work.most
    # No single part could go elsewhere and all be done clearly sooner.
    takes = work.takes(counts)
    for giver in counts:
        for taker in range(len(now)):
            other = counts + Counter({taker: 1}) - Counter({giver: 1})
            assert (
                other[taker] > work.most
                or not work.takes(other) * PAYS < takes
                or _little(takes, other, work, links)
            )


def _little(takes: float, other: Counter[int], work: Work, links: list[float]) -> bool:
    """Whether what is gained is not worth a word."""
    middle = sorted(r for r in links if r > 0)[(sum(r > 0 for r in links) - 1) // 2] if any(links) else 1.0
    return (takes - work.takes(other)) * B / middle <= 0.2


@given(people, st.data())
def test_a_plan_that_was_made_by_links_stays_while_they_are_so(members, data) -> None:  # type: ignore[no-untyped-def]
    links = data.draw(st.lists(rates, min_size=len(members), max_size=len(members)))
    first = plan(16, members, {}, links, B, same=False)
    last = {p: members[m] for p, m in enumerate(first.reducers)}
    for same in (True, False):
        assert plan(16, members, last, links, B, same=same) == Plan(first.reducers)


@given(st.lists(st.floats(), min_size=1, max_size=12))
def test_speeds_are_within_bounds_whatever_is_said(said: list[float]) -> None:
    found = speeds(said)
    assert all(THINNEST <= speed <= FASTEST for speed in found)
    assert all(speed == 1 or not 1 / ALIKE <= speed <= ALIKE for speed in found)
    known = [rate for rate in said if 0 < rate < math.inf]
    assert not known or 1.0 in found


def test_a_dead_reducers_parts_go_where_links_are_faster() -> None:
    reducers, links = (0, 0, 0, 1, 1, 1, 2, 2), (FAST, FAST, FAST, THIN)
    assert reassign((6, 7), reducers, (0, 1, 3), links) == ((6, 0), (7, 1))
    assert reassign((6, 7), reducers, (0, 1, 3), (0.0,) * 4) == ((6, 3), (7, 3))
    assert reassign((6, 7), reducers, (3,), links) == ((6, 3), (7, 3))


def test_how_long_the_slowest_link_is_busy() -> None:
    assert exchange_s((0, 1, 2, 3), (FAST,) * 4, B) == pytest.approx(3.0)
    assert exchange_s((0, 1, 2, 0), (FAST, FAST, FAST, THIN), B) == pytest.approx(20.0)
    assert exchange_s((0, 1, 2, 3), (FAST, FAST, 0.0, THIN), B) == pytest.approx(30.0)
    assert exchange_s((0, 1, 2, 3), (FAST, FAST, FAST, THIN), B, groups=2) == pytest.approx(20.0)
    assert exchange_s((0, 0), (THIN,), B) == 0.0
    assert exchange_s((0, 1, 2), (0.0, math.nan, math.inf), B) == 0.0


# -- groups ------------------------------------------------------------------------------------------

sizes = st.integers(1, 20_000)


@given(sizes)
def test_up_to_a_number_of_members_there_is_one_group_and_then_about_the_square_root(members: int) -> None:
    groups = groups_for(members)
    assert (groups == 1) == (members <= FLAT)
    assert groups == 1 or abs(groups - math.sqrt(members)) <= 0.5
    assert groups_for(members, members) == 1
    assert groups_for(members, 0) in (math.floor(math.sqrt(members)), math.ceil(math.sqrt(members)))


@given(sizes)
def test_every_member_is_in_one_group_and_they_are_as_even_as_can_be(members: int) -> None:
    groups = groups_for(members)
    found = [list(ring(group, groups, members, 0)) for group in range(groups)]
    assert sorted(index for group in found for index in group) == list(range(members))
    assert all(index % groups == number for number, group in enumerate(found) for index in group)
    lengths = [len(group) for group in found]
    assert max(lengths) - min(lengths) <= 1
    assert groups == 1 or max(lengths) <= MAX_GROUP


@given(sizes, st.integers(0, 10**6), st.data())
def test_at_each_turn_another_one_of_a_group_comes_first_until_all_did(members: int, turn: int, data) -> None:  # type: ignore[no-untyped-def]
    groups = groups_for(members)
    group = data.draw(st.integers(0, groups - 1))
    one, after = (list(ring(group, groups, members, t)) for t in (turn, turn + 1))
    assert one[1:] + one[:1] == after
    assert sorted(one) == list(ring(group, groups, members, 0))
    assert list(ring(group, groups, members, turn + len(one))) == one


@given(st.integers(FLAT + 1, 5000))
def test_over_the_parts_of_a_round_the_work_goes_round_a_group(members: int) -> None:
    groups = groups_for(members)
    for group in (0, groups - 1):
        size = len(list(ring(group, groups, members, 0)))
        firsts = Counter(next(ring(group, groups, members, turn)) for turn in range(3 * size))
        assert set(firsts.values()) == {3}
