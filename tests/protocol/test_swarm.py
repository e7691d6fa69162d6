"""Presence: beats, sessions and expiry, by our own clock only."""

from __future__ import annotations

from potluck.protocol.swarm import EXPIRY_S, GAP_S, Swarm

from .support import BASE, heard, member, peer_id, says

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
