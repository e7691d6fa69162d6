"""Presence: beats, sessions and expiry, by our own clock only."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.protocol.swarm import CROWD, EXPIRY_S, GAP_S, Swarm
from potluck.wire.messages import MAX_EVERY_S, Progress

from .support import BASE, heard, member, peer_id, says, update

OTHER = "f" * 64
ALMOST = EXPIRY_S - 0.01


def names(swarm: Swarm, now: float) -> list[str]:
    return [p.name for p in swarm.alive(now)]


def test_who_is_not_heard_for_a_while_is_gone() -> None:
    swarm = heard(says(1), says(2))
    assert swarm.hear(says(2, beat=1), 3.0)
    assert names(swarm, ALMOST) == ["peer1", "peer2"]
    assert names(swarm, EXPIRY_S) == ["peer2"]
    assert not swarm.lives(member(1), EXPIRY_S)
    assert swarm.lives(member(2), EXPIRY_S)
    last = swarm.last(peer_id(1))
    assert last is not None
    assert last.name == "peer1"


def test_the_longest_present_come_first_and_keys_break_ties() -> None:
    swarm = heard(says(3, since=5), says(2, since=5), says(1, since=9))
    assert names(swarm, 0.0) == ["peer2", "peer3", "peer1"]


def test_the_list_of_the_living_follows_time_and_news() -> None:
    swarm = heard(says(1))
    assert names(swarm, 1.0) == ["peer1"]
    assert swarm.hear(says(2), 1.0)
    assert names(swarm, 1.0) == ["peer1", "peer2"]
    assert names(swarm, EXPIRY_S) == ["peer2"]


def test_an_announcement_that_comes_late_or_twice_is_dropped() -> None:
    swarm = heard(says(1, beat=5, tokens=50))
    assert not swarm.hear(says(1, beat=5, tokens=50), 1.0)
    assert not swarm.hear(says(1, beat=4, tokens=40), 1.0)
    assert swarm.hear(says(1, beat=6, tokens=60), 1.0)
    assert [p.tokens for p in swarm.alive(1.0)] == [60]


def test_a_later_session_replaces_an_earlier_one_and_not_the_reverse() -> None:
    swarm = heard(says(1, session="a", beat=100))
    assert swarm.hear(says(1, session="b", beat=1), 0.1)
    assert not swarm.hear(says(1, session="a", beat=101), 0.2)
    assert not swarm.lives(member(1, "a"), 0.2)
    assert swarm.lives(member(1, "b"), 0.2)


def test_a_clock_that_went_back_is_believed_once_the_old_session_has_expired() -> None:
    swarm = heard(says(1, session="b", beat=7))
    assert not swarm.hear(says(1, session="a", beat=1), ALMOST)
    assert swarm.hear(says(1, session="a", beat=2), EXPIRY_S)
    assert swarm.lives(member(1, "a"), EXPIRY_S)


def test_while_our_own_announcements_do_not_come_back_nobody_expires() -> None:
    swarm = heard(says(1), says(2))
    assert not swarm.echo(0.5)
    assert names(swarm, 100.0) == ["peer1", "peer2"]
    assert swarm.lives(member(2), 100.0)
    assert swarm.echo(100.0)
    assert swarm.hear(says(1, beat=1), 101.0)
    assert not swarm.echo(100.0 + GAP_S)
    assert names(swarm, 100.0 + ALMOST) == ["peer1", "peer2"]
    assert names(swarm, 100.0 + EXPIRY_S) == ["peer1"], "who is not heard once it is back is gone"


def test_who_was_gone_before_the_hub_is_not_there_again_after_it() -> None:
    swarm = heard(says(1), says(2))
    for now in (0.0, 2.0, 4.0):
        swarm.echo(now)
        assert swarm.hear(says(1, beat=int(now) + 1), now)
    assert swarm.echo(50.0)
    assert names(swarm, 50.0) == ["peer1"]


def test_what_we_say_of_ourselves_counts_while_the_hub_is_away() -> None:
    swarm = heard(says(1))
    swarm.echo(0.0)
    assert swarm.hear(says(1, beat=1), 50.0)
    assert names(swarm, 60.0) == ["peer1"]


def test_who_says_goodbye_is_gone_at_once() -> None:
    swarm = heard(says(1, beat=1))
    assert swarm.hear(says(1, beat=2, phase="gone"), 0.5)
    assert names(swarm, 0.5) == []
    assert not swarm.lives(member(1), 0.5)
    assert not swarm.hear(says(1, beat=1), 1.0), "what was said before the goodbye does not revive it"


def test_names_are_for_reading() -> None:
    swarm = heard(says(1), says(2, name=""))
    assert swarm.name(member(1)) == "peer1"
    assert swarm.name(member(2)) == peer_id(2)[:8]
    assert swarm.name(member(3)) == peer_id(3)[:8]


def test_the_state_of_most_is_the_base_and_the_longest_present_break_a_tie() -> None:
    assert heard(says(1), says(2, state=OTHER), says(3, state=OTHER)).majority(0, 0.0) == OTHER
    assert heard(says(1, state=OTHER), says(2)).majority(0, 0.0) == OTHER
    assert heard(says(1), says(2, state=OTHER)).majority(0, 0.0) == BASE
    assert heard(says(1, round=1, state=OTHER), says(2)).majority(0, 0.0) == BASE
    assert heard(says(1, state=""), says(2, round=3)).majority(0, 0.0) is None
    assert heard(says(1)).majority(0, EXPIRY_S) is None


# -- crowds ------------------------------------------------------------------------------------------


def crowd(size: int, **more: Any) -> Swarm:
    return heard(*(says(n, **more) for n in range(size)))


def test_up_to_a_number_of_peers_each_announces_itself_once_a_second_and_then_all_together_as_often() -> None:
    assert Swarm().every_s(0.0) == crowd(1).every_s(0.0) == crowd(CROWD).every_s(0.0) == 1.0
    assert crowd(CROWD + 20).every_s(0.0) == pytest.approx(1.1)
    many = crowd(CROWD * 3)
    assert many.every_s(0.0) == 3.0
    assert many.every_s(EXPIRY_S) == 1.0, "those that are there count"


def test_nobody_announces_itself_more_seldom_than_a_message_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.protocol.swarm.CROWD", 1)
    assert crowd(int(MAX_EVERY_S) + 50).every_s(0.0) == MAX_EVERY_S


def test_who_announces_itself_seldom_is_missed_the_later() -> None:
    swarm = heard(says(1, every_s=3.0), says(2))
    assert names(swarm, EXPIRY_S) == ["peer1"]
    assert swarm.lives(member(1), 3 * EXPIRY_S - 0.01)
    assert not swarm.lives(member(1), 3 * EXPIRY_S)
    assert swarm.hear(says(1, beat=1, every_s=1.0), 20.0)
    assert not swarm.lives(member(1), 20.0 + EXPIRY_S), "what it said last counts"


def test_a_gap_is_as_long_as_what_we_said_of_our_next_announcement() -> None:
    swarm = heard(says(1))
    assert not swarm.echo(0.0, 4.0)
    assert not swarm.deaf(4 * GAP_S)
    assert swarm.deaf(4 * GAP_S + 0.1)
    assert not swarm.echo(4 * GAP_S, 1.0)
    assert swarm.deaf(5 * GAP_S + 0.1)


def test_in_a_crowd_one_listens_the_longer_before_it_is_settled() -> None:
    swarm = crowd(CROWD * 3, every_s=3.0)
    assert not swarm.settled(0.0)
    swarm.echo(0.0, 3.0)
    assert not swarm.settled(EXPIRY_S)
    for n in range(CROWD * 3):
        assert swarm.hear(says(n, beat=1, every_s=3.0), EXPIRY_S)
    assert not swarm.settled(3 * EXPIRY_S - 0.1)
    assert swarm.settled(3 * EXPIRY_S)


def test_those_that_were_there_before_the_hub_get_as_long_as_they_said_to_be_heard_again() -> None:
    swarm = heard(says(1, every_s=3.0), says(2))
    swarm.echo(0.0)
    assert swarm.echo(50.0)
    assert names(swarm, 50.0) == ["peer1", "peer2"]
    for now in range(50, 50 + int(EXPIRY_S) + 1):
        swarm.echo(float(now))
    assert names(swarm, 50.0 + EXPIRY_S) == ["peer1"]


@pytest.mark.parametrize(("before_s", "after_s", "there"), [(1.0, 2.0, True), (2.0, 1.0, False)])
def test_where_time_stood_still_depends_on_what_was_said_before_and_not_on_what_is_said_now(
    before_s: float, after_s: float, there: bool
) -> None:
    swarm = Swarm()
    swarm.echo(0.0, before_s)
    assert swarm.hear(says(1), 0.0)
    stood_s = GAP_S * before_s
    assert swarm.lives(member(1), 40.0) == (stood_s < EXPIRY_S) == there
    assert swarm.echo(50.0, after_s)
    assert swarm.lives(member(1), 50.0) == there


# -- the line of stewards ----------------------------------------------------------------------------


def line(swarm: Swarm, *numbers: int, members: tuple[int, ...] = (), now: float = 0.0) -> list[int | None]:
    inside = tuple(member(n) for n in members)
    return [swarm.place(peer_id(n), inside, now) for n in numbers]


def test_members_of_the_open_round_come_first_and_then_the_longest_present() -> None:
    swarm = heard(says(1), says(2), says(3, phase="following"), says(4))
    assert line(swarm, 1, 2, 3, 4) == [0, 1, 2, 3]
    assert line(swarm, 1, 2, 3, 4, members=(4, 2)) == [2, 0, 3, 1]
    assert line(swarm, 9) == [None]


@pytest.mark.parametrize("phase", ["joining", "leaving", "gone"])
def test_who_comes_or_leaves_has_no_place(phase: str) -> None:
    swarm = heard(says(1), says(2, phase=phase), says(3))
    assert line(swarm, 1, 2, 3) == [0, None, 1]


def test_the_line_follows_time_and_news() -> None:
    swarm, members = heard(says(1), says(2), says(3)), (member(3),)
    assert [swarm.place(peer_id(n), members, 0.0) for n in (1, 2, 3)] == [1, 2, 0]
    update(swarm, 1.0, says(1, phase="leaving"), says(2), says(3))
    assert [swarm.place(peer_id(n), members, 1.0) for n in (1, 2, 3)] == [None, 1, 0]
    update(swarm, 3.0, says(2), says(0))
    assert [swarm.place(peer_id(n), members, 1.0 + EXPIRY_S) for n in (0, 1, 2, 3)] == [0, None, 1, None]
    assert line(swarm, 0, 2, members=(2,), now=1.0 + EXPIRY_S) == [1, 0], "another round, another line"


def test_in_a_crowd_a_line_does_for_a_second() -> None:
    swarm, members = heard(*(says(n) for n in range(CROWD + 2)), at=0.0), ()
    for n in range(1, CROWD + 2):
        assert swarm.hear(says(n, beat=1), 3.5)
    assert swarm.place(peer_id(1), members, 3.5) == 1
    assert swarm.place(peer_id(1), members, 4.4) == 1, "who was before it is gone"
    assert swarm.place(peer_id(1), members, 4.5) == 0
    assert swarm.hear(says(1, beat=2, phase="leaving"), 4.6)
    assert swarm.place(peer_id(1), members, 4.6) is None, "news of who comes and leaves counts at once"


# -- what is remembered is what would be found anew --------------------------------------------------


def naive_alive(swarm: Swarm, now: float) -> list[Progress]:
    now = swarm._time(now)
    there = [h.progress for h in swarm._heard.values() if now < h.until and h.progress.phase != "gone"]
    return sorted(there, key=lambda p: (p.since, p.peer))


def naive_place(swarm: Swarm, peer: str, members: tuple[int, ...], now: float) -> int | None:
    inside = {peer_id(n) for n in members}
    order = [p for p in naive_alive(swarm, now) if p.phase in ("training", "following")]
    order.sort(key=lambda p: p.peer not in inside)
    return next((place for place, p in enumerate(order) if p.peer == peer), None)


says_something = st.builds(
    says,
    st.integers(1, 4),
    session=st.sampled_from("ab"),
    since=st.integers(0, 2),
    beat=st.integers(0, 30),
    every_s=st.sampled_from([1.0, 1.5, 4.0]),
    phase=st.sampled_from(["training", "training", "following", "joining", "gone"]),
)
happens = st.one_of(
    says_something,
    says_something,
    st.floats(0.0, 6.0).map(lambda s: ("time", s)),
    st.sampled_from([1.0, 3.0]).map(lambda s: ("echo", s)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(happens, max_size=40), st.data())
def test_whoever_is_there_is_found_as_if_looked_for_anew(events: list[Any], data: st.DataObject) -> None:
    swarm, now = Swarm(), 0.0
    lines = [(), (2,), (3, 1)]
    members = [tuple(member(n) for n in some) for some in lines]
    for event in events:
        if isinstance(event, Progress):
            swarm.hear(event, now)
        elif event[0] == "time":
            now += event[1]
        else:
            swarm.echo(now, event[1])
        if data.draw(st.booleans()):
            continue  # not looked at each time: what is remembered may be old
        found = swarm.alive(now)
        assert found == naive_alive(swarm, now)
        assert {p.peer for p in found} == {p.peer for p in found if swarm.lives(p.member, now)}
        which = data.draw(st.integers(0, 2))
        for n in range(1, 5):
            due = naive_place(swarm, peer_id(n), lines[which], now)
            assert swarm.place(peer_id(n), members[which], now) == due
