"""Which member reduces which part, evenly and where it was if that is even; and who is in which group."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from potluck.protocol.plan import FLAT, assign, groups_for, reassign, ring
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
    moves = reassign(orphans, reducers, live)
    assert [part for part, _ in moves] == orphans
    assert {heir for _, heir in moves} <= set(live)
    load = Counter(r for r in reducers if r in live)
    for _, heir in moves:
        assert load[heir] == min(load[m] for m in live)
        load[heir] += 1
    assert moves == reassign(orphans, reducers, live)


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
