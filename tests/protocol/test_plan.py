"""Which member reduces which part: evenly, and where it was if that is even."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from potluck.protocol.plan import assign, reassign

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
