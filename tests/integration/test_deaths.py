"""Peers die, stop and join in the middle; the run goes on, and all that are left have the same bits."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.integration.swarm import Swarm

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def in_exchange(swarm: Swarm, name: str) -> Callable[[], bool]:
    def exchanging() -> bool:
        open_ = swarm.view.open
        names = swarm._names
        return open_ is not None and name in {names.get(m) for m in open_.members}

    return exchanging


@pytest.mark.parametrize("victim", ["p1", "p3"])
def test_after_a_death_in_an_exchange_the_round_commits_with_the_survivors_work(
    swarm: Callable[[int], Swarm], victim: str
) -> None:
    s = swarm(1000)
    s.join("p2", "p3", "p4")
    s.until(lambda: s.training() == {"p1", "p2", "p3", "p4"}, 30, "all peers train")
    s.wait_round(s.view.round + 2, 30)
    s.until(in_exchange(s, victim), 30, f"a round with {victim}")
    died = s.peers[victim].kill()
    round_ = s.view.open.round if s.view.open else s.view.round + 1
    survivors = {"p1", "p2", "p3", "p4"} - {victim}
    s.wait_round(round_, 10)
    assert time.monotonic() - died < 10
    members = s.members(round_)
    assert survivors & members <= s.contributors(round_), (
        "the survivors' work in the round in flight is in it"
    )
    s.wait_round(round_ + 2, 20)
    assert s.view.reopened == 0
    states = {p.name: p.state for p in s.observer.peers if p.round == s.observer.round}
    assert len(set(states.values())) == 1, states


def test_a_joiner_is_a_member_within_two_rounds_and_nobody_pauses(swarm: Callable[[int], Swarm]) -> None:
    s = swarm(1000)
    s.join("p2")
    s.wait_round(4, 60)
    steps = {p.name: p.bytes_sent for p in s.observer.peers if p.phase == "training"}
    s.join("p3")
    joined_at = s.view.round
    s.until(lambda: "p3" in s.members(s.view.round), 30, "the joiner is a member")
    assert s.view.round <= joined_at + 3  # the round open when it came can't have it
    # A machine that is busy with something else may be late for one round.
    s.until(lambda: s.contributors(s.view.round) == {"p1", "p2", "p3"}, 30, "all three are in a round")
    assert s.view.reopened == 0
    assert {p.name for p in s.observer.peers if p.name in steps} == set(steps)


def test_a_stopped_peer_is_gone_within_five_seconds_and_comes_back(swarm: Callable[[int], Swarm]) -> None:
    s = swarm(1000)
    s.join("p2", "p3")
    s.until(lambda: s.training() == {"p1", "p2", "p3"}, 30, "all peers train")
    s.wait_round(s.view.round + 1, 30)
    s.peers["p2"].signal(signal.SIGSTOP)
    try:
        s.until(lambda: "p2" not in {p.name for p in s.observer.peers}, 6, "the silent peer is seen as gone")
        s.wait_round(s.view.round + 2, 20)
    finally:
        s.peers["p2"].signal(signal.SIGCONT)
    s.until(lambda: "p2" in s.training(), 20, "it is back")
    s.until(lambda: "p2" in s.members(s.view.round), 30, "it is a member again")


@pytest.mark.parametrize("fragments", [1, 2])
def test_a_run_to_its_end_leaves_the_same_bits_everywhere(
    swarm: Callable[..., Swarm], fragments: int
) -> None:
    s = swarm(8, fragments=fragments)
    s.join("p2", "p3")
    s.until(lambda: s.observer.over is not None, 90, "the run is over")
    ends = [s.peers[name].wait("digest", 30) for name in ("p1", "p2", "p3")]
    assert {end["round"] for end in ends} == {8}
    assert {end["digest"] for end in ends} == {s.observer.state.state}
    assert len({end["sum"] for end in ends}) == 1, "the user's own model holds the run's parameters"
    for name in ("p1", "p2", "p3"):
        assert s.peers[name].process.wait(20) == 0


def test_control_c_leaves_within_five_seconds_and_the_others_go_on(swarm: Callable[[int], Swarm]) -> None:
    s = swarm(1000)
    s.join("p2")
    s.until(lambda: s.training() == {"p1", "p2"}, 30, "both train")
    s.peers["p1"].signal(signal.SIGINT)
    s.peers["p1"].process.wait(5)
    s.until(lambda: s.training() == {"p2"}, 5, "the others know at once")
    s.wait_round(s.view.round + 2, 30)


def test_who_only_follows_keeps_one_shared_state(swarm: Callable[[int], Swarm]) -> None:
    """Found by the soak: a follower's memory grew by the size of the model with every round."""
    s = swarm(1000)
    s.join("p2")
    s.wait_round(4, 60)
    s.until(lambda: s.observer.round >= 4, 20, "the follower applied four rounds")
    states = s.observer._node.actions.handover.wait_first()
    assert len(states) == 1
    assert s.observer._node.actions.state.plane is not None
    assert states[0].origin is None
