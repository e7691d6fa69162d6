"""Whole swarms in virtual time: seeds of a rough world (``make sim`` runs thousands), and named scenarios.

A failing seed tells how to see it again. Once mended it goes to ``REGRESSIONS``, with what it found.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from potluck.peer.dataplane import DataPlane
from potluck.peer.layout import Carry, Vector
from potluck.protocol import steward
from potluck.protocol.plan import groups_for
from potluck.protocol.steward import Decision
from potluck.store.contents import MemoryStore
from potluck.testing.scenario import CALM as QUIET
from potluck.testing.scenario import fault, parse
from potluck.testing.simulator import InvariantBroken, Simulation, World, replay
from potluck.wire.codec import digest
from potluck.wire.records import Commit, Member

SEEDS = 150
WORKERS = 2

CALM = replace(QUIET, calm_s=1.0)


def world(seed: int) -> World:
    """The world of a seed: two to six peers, either outer optimizer, any of three codecs, half in fragments,
    some that mix, a third with evaluations, half rougher.
    """
    some = World(
        peers=2 + seed % 5,
        outer="nesterov" if seed % 2 else "average",
        codec=("fp32", "int8", "topk")[seed % 3],
        fragments=(1, 1, 2, 3)[seed // 3 % 4],
        mix=0.5 if seed % 8 == 7 else 0.0,
        thin=0.3 if seed % 7 < 4 else 0.0,
        blocks=300,
        epochs=2 if seed % 5 == 0 else 0,
        evaluate=2 if seed % 3 == 1 else 0,
        duration_s=40.0,
        calm_s=30.0,
    )
    if seed % 4 < 2:
        return some
    return replace(some, crashes=6, joins=4, pauses=3, partitions=3, torn=3, divergences=1, stalls=2)


def broken(seed: int) -> str | None:
    """What goes wrong in the world of a seed, if anything does."""
    try:
        Simulation(seed, world(seed)).run()
    except AssertionError as error:
        return f"{error}" if isinstance(error, InvariantBroken) else f"seed {seed}: {error!r}"
    return None


# -- many seeds --------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_hundreds_of_rough_worlds() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        failures = [text for text in pool.map(broken, range(SEEDS), chunksize=10) if text is not None]
    assert not failures, f"{len(failures)} of {SEEDS} seeds fail:\n\n" + "\n\n".join(failures[:3])


ROUGH = World(crashes=6, pauses=3, partitions=3)

# What each found when it was mended. A seed's fate changes with the simulator, so each has a unit test too.
REGRESSIONS = [
    # Parts of a committed round were spread over peers of which none had applied it, and not announced.
    (149, World(peers=6, codec="int8")),
    # The same, once the next round was open: only results of the open round were announced.
    (10240, replace(ROUGH, peers=2, outer="average", codec="int8")),
    (10434, replace(ROUGH, peers=6, outer="average", codec="fp32")),
    # A peer slow to apply a round no longer found itself among its members, and counted its tokens twice.
    (20263, replace(ROUGH, peers=5, outer="nesterov", codec="int8")),
    # A peer that came back dropped what its disk had at the first old snapshot that it read of.
    (98, replace(ROUGH, peers=5, outer="average", codec="int8")),
    # Cuts without any work behind them were sent as contributions with bytes and no weight.
    (12, replace(ROUGH, peers=4, outer="average", codec="fp32", stalls=2, divergences=1)),
]


# As text, shrunk: these say by themselves what went wrong.
SCENARIOS = {
    # Stopped before it reduced its parts, which another did instead: both kept the residual of the result.
    "a late reduction": """
        seed 176
        peers 3
        duration_s 29
        calm_s 0
        outer average
        at 5.87 pause peer2 for 16.08
    """,
    # The last blocks of the data died with their peer: who was left had nothing to give, and waited.
    "nothing to give": """
        seed 4599
        peers 4
        duration_s 96
        calm_s 0
        outer average
        codec fp32
        blocks 200
        epochs 2
        at 5 crash peer4
        at 9.3 hub away for 3.47
        at 10.44 crash peer1 for 10.09
        at 19.48 torn file peer3
        at 21.94 crash peer3
        at 26.9 stall peer2 for 8.75
        at 29.51 pause peer1 for 15.95
        at 53 join peer5
        at 54 crash peer2 for 15
    """,
    # Not heard for want of three announcements, and then of the hub, one of two was rightly taken for gone.
    "lost announcements, then no hub": """
        seed 3687
        peers 4
        duration_s 20
        calm_s 5
        outer average
        codec fp32
        flat 3
        blocks 200
        at 6 cut peer3 peer4 for 23
        at 7.85 pause peer1 for 7.59
        at 13 pause peer3 for 12
        at 15 loss 0.4 for 6
    """,
    # What a model keeps came with a state before its last one, which the simulated trainer alone took.
    "kept over two states": """
        seed 4174
        peers 3
        duration_s 20
        calm_s 4
        outer average
        codec int4
        keeps 1
        blocks 200
        epochs 2
        at 2 cut hub -> peer1 for 9
        at 4.02 crash peer1 for 8.1 without disk
        at 17 pause peer2 for 15
    """,
    # A lone peer that is twenty times as slow has twenty times as long for a round (seed 4999).
    "a slow peer alone": """
        seed 5000
        peers 1
        duration_s 70
        calm_s 0
        delay_s 0.05 0.05
        loss 0
        duplicate 0
        least_steps 8
        outer average
        codec fp32
        flat 3
        blocks 200
        epochs 2
        evaluate 1
        at 4 hub away for 5
        at 30 slow peer1 20x for 36
    """,
    # A late reduction again: what is not followed in contributions is not in the model that keeps it either.
    "a late reduction is kept": """
        seed 3380
        peers 3
        duration_s 20
        calm_s 8
        delay_s 0.05 0.05
        loss 0
        duplicate 0
        outer average
        codec bf16
        keeps 1
        blocks 200
        at 6 stall peer3 for 7
        at 8 pause peer3 for 14
    """,
}


@pytest.mark.parametrize("text", SCENARIOS.values(), ids=SCENARIOS)
def test_a_scenario_that_once_failed(text: str) -> None:
    replay(parse(text))


@pytest.mark.parametrize(("seed", "rough"), REGRESSIONS, ids=lambda value: str(value)[:6])
def test_a_seed_that_once_failed(seed: int, rough: World) -> None:
    Simulation(seed, rough).run()


# -- the same seed -----------------------------------------------------------------------------------

NOTES = """
from tests.protocol.test_simulator import notes
print(notes({seed}))
"""


def notes(seed: int) -> str:
    """Digest of everything that was said in a world, and when."""
    outcome = Simulation(seed, world(seed)).run()
    assert len(outcome.notes) > 50
    return digest(repr(outcome.notes).encode())


def test_the_same_seed_gives_the_same_run_here_and_in_other_processes() -> None:
    here = notes(3)
    assert notes(3) == here
    assert notes(7) != here
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        there = subprocess.run(
            [sys.executable, "-c", NOTES.format(seed=3)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert there.stdout.strip() == here


# -- joining -----------------------------------------------------------------------------------------


def first_rounds(sim: Simulation, member: Member) -> Iterator[int]:
    """Rounds that committed with a member, in order."""
    return (round_ for round_, seen in sorted(sim.referee.commits.items()) if member in seen.members)


@pytest.mark.parametrize("seed", range(12))
def test_a_joiner_is_a_member_within_two_rounds(seed: int) -> None:
    sim = Simulation(seed, replace(CALM, peers=1 + seed % 4, duration_s=40.0))
    joined: list[tuple[int, Member]] = []

    def join() -> None:
        known = set(sim.peers)
        sim.spawn(MemoryStore())
        [newcomer] = set(sim.peers) - known
        in_flight = max((p.core.view.round + (p.core.view.open is not None) for p in sim.living()), default=0)
        joined.append((in_flight, sim.peers[newcomer].me))

    sim.at(10 + seed * 0.37, join)
    sim.run()
    [(in_flight, newcomer)] = joined
    assert next(first_rounds(sim, newcomer)) <= in_flight + 2


# -- deaths ------------------------------------------------------------------------------------------

DEATH = replace(CALM, peers=6, duration_s=14.0, round_tokens=600)
GRID_S = 0.2


GROUPS = replace(DEATH, peers=9, flat=3, round_tokens=900)
"""Three groups of three."""


def a_round(world_: World = DEATH) -> tuple[float, float]:
    """When a round of that world is committed, and the next one."""
    sim = Simulation(11, world_)
    sim.run()
    times = [seen.at for seen in sim.referee.commits.values()]
    return times[2], times[3]


def opened_at() -> float:
    """When a round of that world is opened."""
    sim = Simulation(11, DEATH)
    sim.run()
    return next(at for at, _, text in sim.outcome.notes if text.startswith("round 4 opened"))


def death(place: int, at_s: float, world_: World = DEATH) -> tuple[float, set[Member], set[Member]]:
    """One peer dies: how long until the next commit, who is in every part of it, and who survived."""
    sim = Simulation(11, replace(world_, duration_s=at_s + 12))
    sim.at(at_s, lambda: sim.kill(sim.living()[place]))
    sim.run()
    survivors = {peer.me for peer in sim.living()}
    seen = next((seen for _, seen in sorted(sim.referee.commits.items()) if seen.at > at_s), None)
    if seen is None:
        return float("inf"), set(), survivors
    contributors = set.intersection(
        *({seen.members[index] for index, _ in info.contributors} for info in seen.commit.parts)
    )
    return seen.at - at_s, contributors, survivors


@pytest.mark.parametrize("place", range(6))
def test_after_the_death_of_any_one_peer_at_any_time_the_next_round_has_every_survivor(place: int) -> None:
    """Reducer or not (there are five parts), steward or not, in each phase of a round."""
    assert list(_left_out(place, DEATH, GRID_S, 10.0)) == []


def _left_out(place: int, world_: World, grid_s: float, bound_s: float) -> Iterator[str]:
    """In words, where a death at some time of a round costs a survivor that, or all of them much time."""
    begins, ends = a_round(world_)
    assert 1.0 < ends - begins < 6.0
    for tick in range(int((ends - begins) / grid_s) + 1):
        at_s = begins + tick * grid_s
        took_s, contributors, survivors = death(place, at_s, world_)
        if took_s > bound_s or not survivors <= contributors:
            missing = sorted(member.peer[:4] for member in survivors - contributors)
            yield f"death at {at_s:.1f} s: committed {took_s:.1f} s later, without {missing}"


def test_after_the_death_of_any_one_peer_the_next_round_of_groups_has_every_survivor() -> None:
    """The group finds another that gathers for it, and the reducer waits for that."""
    assert [said for place in range(9) for said in _left_out(place, GROUPS, 0.7, 20.0)] == []


def test_halves_that_reach_each_other_only_through_the_hub_go_on() -> None:
    """Each has results that the other can't get, so no peer has them all."""
    for seed in (1, 2, 3):
        cuts = [f"at 20 cut peer{a} peer{b} for 100" for a in (1, 2) for b in (3, 4)]
        world_ = replace(CALM, peers=4, duration_s=140.0, calm_s=30.0)
        outcome = Simulation(seed, world_, [fault(cut) for cut in cuts]).run()
        assert outcome.longest_s < 40


class Leaving(Simulation):
    """One of two peers only follows; the other leaves in a round to which it gave, and stays three seconds at
    most.
    """

    left_in: int | None = None
    until = math.inf

    def spawn(self, store: MemoryStore, theta: Vector | None = None, peer: str | None = None) -> None:
        super().spawn(store, theta, peer)
        if theta is None:
            assert peer is not None
            self.peers[peer].core.trains = False
            self.peers[peer].machine.stall(1e9)
        else:
            self.at(20.0, self._look)

    def _look(self) -> None:
        trainer = next(p for p in self.living() if p.core.trains)
        exchange = trainer.core.exchange
        if self.left_in is None and exchange is not None and exchange.weight:
            self.left_in, self.until = exchange.round, self.now + 3.0
            trainer.core.leaving = True
            trainer._announce()
        self.stopped = self.now > self.until or (self.left_in is not None and trainer.core.may_leave)
        self.at(0.1, self._look)


def test_the_last_round_of_a_trainer_that_leaves_followers_behind_is_committed() -> None:
    for seed in range(4):
        sim = Leaving(seed, replace(CALM, peers=2, bound_s=1000.0), ())
        sim.run()
        assert sim.left_in == max(sim.referee.commits)


def test_a_swarm_that_died_goes_on_from_any_one_disk() -> None:
    for place in range(3):
        sim = Simulation(5, replace(CALM, peers=3, duration_s=70.0, round_tokens=400))
        reached: list[int] = []

        def die(sim: Simulation = sim, place: int = place, reached: list[int] = reached) -> None:
            reached.append(max(sim.referee.commits))
            last = sim.living()[place]
            for peer in sim.living():
                sim.kill(peer)
            sim.spawn(last.store, peer=last.me.peer)

        sim.at(30.0, die)
        sim.run()
        assert reached[0] > 6, "there are snapshots and commits to come back to"
        assert max(sim.referee.commits) > reached[0] + 3


# -- what nobody must lose ---------------------------------------------------------------------------


def test_with_the_hub_away_peers_train_on_and_no_work_is_lost() -> None:
    for seed in range(4):
        sim = Simulation(seed, replace(CALM, peers=3, hub_outages=4, calm_s=30.0))
        sim.run()
        assert sum(life.lost for life in sim.referee.lives.values()) == 0
        assert len(sim.referee.lives) == 3


@pytest.mark.parametrize(("fragments", "mix"), [(1, 0.0), (3, 0.0), (2, 0.5)])
def test_every_token_of_a_calm_world_is_counted_once(fragments: int, mix: float) -> None:
    sim = Simulation(2, replace(CALM, peers=4, fragments=fragments, mix=mix))
    outcome = sim.run()
    for seen in sim.referee.commits.values():
        everybody = list(range(len(seen.members)))
        assert all([index for index, _ in part.contributors] == everybody for part in seen.commit.parts)
    lives = sim.referee.lives.values()
    assert abs(outcome.tokens - sum(life.included for life in lives)) <= 2 * outcome.rounds
    assert outcome.tokens > 0.8 * sum(life.tokens for life in lives)
    assert all(life.lost == 0 for life in lives)


def test_as_a_swarm_grows_its_rounds_get_no_shorter_than_the_least_steps() -> None:
    world_ = replace(CALM, peers=2, joins=6, round_tokens=300, duration_s=45.0)
    usual, longer = Simulation(1, world_).run(), Simulation(1, replace(world_, least_steps=6)).run()
    said = [re.search(r"opened: .* (\S+) of at least 6 steps each", text) for _, _, text in longer.notes]
    steps = [float(found[1]) for found in said if found]
    assert len(steps) >= longer.rounds > 4
    assert min(steps) >= 6
    assert usual.joins == longer.joins > 1
    assert usual.rounds > 1.5 * longer.rounds


def test_data_that_ends_ends_the_run_whatever_the_least_steps_are() -> None:
    world_ = replace(CALM, peers=3, blocks=100, epochs=1, least_steps=1000, duration_s=60.0)
    sim = Simulation(1, world_)
    outcome = sim.run()
    assert sim.head().finished is not None
    assert outcome.rounds == 1, "never so many steps"


def test_progress_that_is_all_zero_goes_through_like_any_other() -> None:
    """Every part of every round then has the same values."""
    sim = Simulation(1, replace(CALM, peers=3, learning=0.0, duration_s=45.0))
    outcome = sim.run()
    assert outcome.rounds >= 5
    assert outcome.reopened == 0


def test_peers_of_which_no_two_reach_each_other_do_not_block_the_run() -> None:
    sim = Simulation(4, replace(CALM, peers=3, duration_s=150.0, calm_s=40.0, bound_s=80.0))
    for at_s in range(5, 150):
        sim.at(at_s, lambda: _part(sim))
    sim.run()
    assert len([seen for seen in sim.referee.commits.values() if 10 < seen.at < 150]) >= 3


def one_way(seed: int, *ways: str) -> tuple[Simulation, float]:
    """Four peers, between some of which nothing gets through one way for 40 s; the longest time between two
    commits.
    """
    faults = [fault(f"at 10 cut {way} for 40") for way in ways]
    sim = Simulation(seed, replace(CALM, peers=4, duration_s=60.0, calm_s=25.0), faults)
    sim.run()
    times = [seen.at for seen in sim.referee.commits.values()]
    return sim, max(later - earlier for earlier, later in pairwise(times))


@pytest.mark.parametrize("seed", range(4))
def test_a_way_that_is_cut_in_one_direction_costs_nobody_its_place_or_work(seed: int) -> None:
    """It did: each round began with four seconds of waiting for the peer that could not answer."""
    sim, longest_s = one_way(seed, "peer1 -> peer2")
    assert longest_s < 12
    assert sum(life.lost for life in sim.referee.lives.values()) == 0
    there = [seen.members for seen in sim.referee.commits.values() if 20 < seen.at < 50]
    for peer in sim.living():
        assert sum(peer.me in members for members in there) > len(there) / 3, peer.name


@pytest.mark.parametrize(
    "ways",
    [
        ["peer1 -> peer2", "peer2 -> peer3", "peer3 -> peer1"],
        [f"peer1 -> peer{n}" for n in (2, 3, 4)],
        [f"peer{n} -> peer1" for n in (2, 3, 4)],
    ],
    ids=["a ring", "who is not heard", "who hears nobody"],
)
def test_ways_that_are_cut_in_one_direction_hang_no_round(ways: list[str]) -> None:
    _, longest_s = one_way(1, *ways)
    assert longest_s < 25


def _part(sim: Simulation) -> None:
    for a in sim.peers:
        for b in sim.peers:
            sim.faults.cut(sim.named(a), sim.named(b), 2.0)


# -- large rounds ------------------------------------------------------------------------------------


def test_a_hundred_peers_are_all_in_every_part_and_none_sends_more_than_its_group_needs() -> None:
    """Besides its own parts: that is ten times less than if each reducer talked to all."""
    sim = Simulation(3, replace(CALM, peers=100, duration_s=17.0, round_tokens=0))
    sent: dict[int, Counter[tuple[str, str]]] = defaultdict(Counter)

    def asked(peer: str, other: str, what: str) -> None:
        sent[sim.head().round][peer, what] += 1

    sim.asked = asked  # type: ignore[method-assign]
    outcome = sim.run()
    assert outcome.rounds >= 3
    assert (outcome.reopened, outcome.reassigned) == (0, 0)
    parts, groups = sim.recipe.rounds.parts, groups_for(100)
    for seen in sim.referee.commits.values():
        everybody = list(range(100))
        assert all([index for index, _ in part.contributors] == everybody for part in seen.commit.parts)
    for round_ in range(1, outcome.rounds):
        given = {peer: n for (peer, what), n in sent[round_].items() if what == "contribution"}
        rest: Counter[str] = Counter()
        for (peer, what), n in sent[round_].items():
            rest[peer] += n if what != "contribution" else 0
        assert max(given.values()) <= parts, "once each, and each counted at once"
        assert sum(given.values()) == parts * (100 - groups)
        assert max(rest.values()) <= 4 * groups
        assert sum(rest.values()) <= parts * (100 + 2 * groups)


# -- the referee can say no --------------------------------------------------------------------------


def _drifting(apply: Callable[..., Carry]) -> Callable[..., Carry]:
    def broken_apply(self: DataPlane, commit: Commit, raws: Any, index: int | None) -> Carry:
        carry = apply(self, commit, raws, index)
        self.theta[0] += np.float32(index == 0)
        return carry

    return broken_apply


def test_rounds_that_never_end_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    at = opened_at() + 0.3
    monkeypatch.setattr(steward, "_replace", lambda *_: Decision(None, "never"))
    took_s = [death(place, at)[0] for place in range(6)]
    assert max(took_s) > 10.0
    monkeypatch.setattr(steward, "_reopen", lambda *_, **__: Decision(None, "never"))
    sim = Simulation(11, replace(DEATH, duration_s=80.0))
    sim.at(at, lambda: sim.kill(sim.living()[took_s.index(max(took_s))]))
    with pytest.raises(InvariantBroken, match="no commit for 45 s"):
        sim.run()


def test_a_seed_that_fails_tells_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DataPlane, "apply", _drifting(DataPlane.apply))
    failure = next(filter(None, map(broken, range(3))))
    again = failure.partition("to see it again: ")[2].partition("\n")[0]
    seed = int(failure.partition("seed ")[2].partition(",")[0])
    assert again == f"Simulation({seed}, {world(seed)}).run()"
