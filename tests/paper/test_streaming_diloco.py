"""Streaming DiLoCo (arXiv 2501.18512): whole peers without network against the paper's algorithm in float64.

Algorithm 2: fragments take turns, each at its own offset; what is sent of one after an inner step comes back
τ steps later, and is mixed with the model as it is then, θ ← α θ + (1 − α) Θ. Carrying over, the default,
is ours: θ ← Θ + (θ − what was sent). A mean's weights are the tokens behind a fragment's difference.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from potluck.codecs import codec
from potluck.peer.handover import CutRequest, Handover
from potluck.peer.layout import Carry, Vector, carried, part_bounds
from potluck.peer.state import PeerState, genesis_of
from potluck.recipe import Outer, Recipe, Rounds
from potluck.store.contents import MemoryStore
from potluck.wire.codec import WIRE, digest
from potluck.wire.records import Commit, PartInfo, TensorSpec

N, PARTS, STEPS = 41, 3, 4
"""Values, parts of a round, and inner steps of one."""

TENSORS = (TensorSpec("a", (5, 7)), TensorSpec("b", (6,)))
TOKENS = (10.0, 30.0, 5.0)
"""Of a step of each peer."""

AVERAGE, NESTEROV = Outer("average"), Outer("nesterov", 0.7, 0.6)

Exact = NDArray[np.float64]


@functools.cache
def values(*seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


START = values(0)


GOLDEN = "d8d45df14d9424cb0a3c013eb9d1dedf719aec7bb861785d7275b3460e99aa0f"
"""Of the release before, by the same steps."""


def change(model: Exact, peer: int, step: int) -> Exact:
    """What an inner step does: towards what this peer's data wants, and some noise."""
    noise: Exact = 0.05 * values(2, peer, step).astype(np.float64)
    return 0.1 * (values(1, peer) - model) + noise


def ranges(fragments: int, fragment: int) -> list[slice]:
    return part_bounds(N, PARTS * fragments)[fragment::fragments]


class Peer:
    """A peer without network; its model is one vector."""

    def __init__(self, index: int, recipe: Recipe) -> None:
        self.index, self.steps = index, 0
        self.state = PeerState(MemoryStore(), recipe, genesis_of("run", recipe, TENSORS, START, WIRE))
        self.state.begin(START.copy(), np.zeros_like(START), 0)
        self.handover = Handover(self._taken, recipe.rounds.fragments)
        self.model = START.copy()

    def step(self) -> None:
        self.model = self.model + change(self.model.astype(np.float64), self.index, self.steps).astype(
            np.float32
        )
        self.steps += 1
        self.handover.stepped(TOKENS[self.index], None)
        self.meet()

    def meet(self) -> None:
        self.handover.exchange(lambda _: self.model.copy(), self._take)

    def _take(self, carries: list[Carry], wanted: CutRequest | None) -> Vector | None:
        self.model = carried(self.model, carries)
        return self.model.copy() if wanted else None

    def _taken(self, request: CutRequest, local: Vector, weight: float, _: int) -> None:
        assert self.state.cut(request.round, request.attempt, request.index, local, weight)


class Team:
    """Peers of one pace; ``included[part]`` are those whose contribution of a part comes in time."""

    def __init__(self, peers: int, recipe: Recipe) -> None:
        self.peers = [Peer(index, recipe) for index in range(peers)]
        self.round, self.tokens = 0, 0.0

    def ask(self) -> None:
        """The next boundary is a cut."""
        self.round += 1
        for peer in self.peers:
            peer.handover.request(CutRequest(self.round, 0, peer.index))

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            for peer in self.peers:
                peer.step()

    def exchange(self, included: Sequence[Sequence[int]] | None = None, shift: int = 0) -> Commit:
        """Parts are reduced in turn, by another peer for another ``shift``."""
        everybody = list(range(len(self.peers)))
        infos = tuple(
            self._reduced(part, (part + shift) % len(self.peers), included[part] if included else everybody)
            for part in range(PARTS)
        )
        weights = {index: weight for info in infos for index, weight in info.contributors}
        self.tokens += sum(weights.values())
        return Commit(self.round, 0, infos, round(sum(weights.values())), None, "")

    def _reduced(self, part: int, reducer: int, included: Sequence[int]) -> PartInfo:
        home = self.peers[reducer].state
        for index in included:
            found = self.peers[index].state.contribution(self.round, 0, part)
            assert found is not None
            assert len(found.raw) in (home.contribution_sizes(self.round, part) or ())
            if index != reducer:
                home.take(self.round, 0, part, index, found)
        info, refused = home.reduce(self.round, 0, part, included)
        assert info is not None
        assert refused == ()
        raw = home.store.get(info.digest)
        assert raw is not None
        for peer in self.peers:
            peer.state.store.put(raw)
        return info

    def apply(self, commit: Commit, *, meet: bool = False) -> None:
        for peer in self.peers:
            peer.handover.offer(peer.state.apply(commit))
            if meet:
                peer.meet()
        assert len(set(self.digests)) == 1

    @property
    def digests(self) -> list[str]:
        return [peer.state.plane.digest for peer in self.peers if peer.state.plane]

    @property
    def theta(self) -> Vector:
        plane = self.peers[0].state.plane
        assert plane is not None
        return plane.theta


@dataclass
class Paper:
    """The algorithm as it is written, value by value in float64, for a team of so many peers."""

    peers: int
    rounds: Rounds
    outer: Outer

    def __post_init__(self) -> None:
        self.theta = START.astype(np.float64)
        self.momentum = np.zeros(N)
        self.models = [self.theta.copy() for _ in range(self.peers)]
        self.steps = self.round = 0
        self.behind = np.zeros((self.rounds.fragments, self.peers))
        """Tokens since a fragment was sent last, by peer."""

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            for peer, model in enumerate(self.models):
                model += change(model, peer, self.steps)
                self.behind[:, peer] += TOKENS[peer]
            self.steps += 1

    def send(self) -> tuple[list[Exact], Exact]:
        """Models as they are sent, and their weights."""
        self.round += 1
        weights = self.behind[self.round % self.rounds.fragments].copy()
        self.behind[self.round % self.rounds.fragments] = 0
        return [model.copy() for model in self.models], weights

    def receive(self, sent: list[Exact], weights: Exact) -> None:
        for bounds in ranges(self.rounds.fragments, self.round % self.rounds.fragments):
            delta = sum(
                w * (self.theta[bounds] - s[bounds]) for w, s in zip(weights, sent, strict=True)
            ) / sum(weights)
            mu, lr = (0.0, 1.0) if self.outer.kind == "average" else (self.outer.momentum, self.outer.lr)
            self.momentum[bounds] = mu * self.momentum[bounds] + delta
            self.theta[bounds] -= lr * (delta + mu * self.momentum[bounds])
            for model, was in zip(self.models, sent, strict=True):
                if self.rounds.overlap == "mix":
                    alpha = self.rounds.mix
                    model[bounds] = alpha * model[bounds] + (1 - alpha) * self.theta[bounds]
                else:
                    model[bounds] += self.theta[bounds] - was[bounds]


def recipe(outer: Outer = AVERAGE, **rounds: object) -> Recipe:
    return Recipe(outer=outer, rounds=Rounds(parts=PARTS, **{"codec": "fp32", **rounds}))  # type: ignore[arg-type]


@pytest.mark.parametrize("outer", [AVERAGE, NESTEROV], ids=["average", "nesterov"])
@pytest.mark.parametrize("late", [0, 1, 3], ids="τ={}".format)
@pytest.mark.parametrize("overlap", ["carry", 0.0, 0.5, 1.0], ids="α={}".format)
@pytest.mark.parametrize("fragments", [1, 2, 3], ids="F={}".format)
def test_twelve_rounds_of_algorithm_2(fragments: int, overlap: str | float, late: int, outer: Outer) -> None:
    how = {"overlap": "carry"} if overlap == "carry" else {"overlap": "mix", "mix": overlap}
    settings = recipe(outer, fragments=fragments, **how)
    team, paper = Team(3, settings), Paper(3, settings.rounds, outer)
    for _ in range(12):
        team.step(STEPS - 1 - late)
        team.ask()
        team.step()
        commit = team.exchange()
        # A boundary comes after its step: what is offered before step n is taken in after step n.
        team.step(late - 1 if late else 0)
        team.apply(commit, meet=not late)
        team.step(1 if late else 0)
        paper.step(STEPS - late)
        sent = paper.send()
        paper.step(late)
        paper.receive(*sent)
        np.testing.assert_allclose(team.theta, paper.theta, atol=1e-5)
        for peer, model in zip(team.peers, paper.models, strict=True):
            np.testing.assert_allclose(peer.model, model, atol=1e-5)
    assert np.abs(team.theta - START).max() > 0.1


def test_a_round_exchanges_one_fragment_and_leaves_the_rest_as_it_is() -> None:
    team = Team(2, recipe(NESTEROV, fragments=3))
    for round_ in range(1, 7):
        team.ask()
        team.step()
        before, models = team.theta.copy(), [peer.model.copy() for peer in team.peers]
        team.apply(team.exchange(), meet=True)
        theirs = np.zeros(N, bool)
        for bounds in ranges(3, round_ % 3):
            theirs[bounds] = True
        assert ((team.theta != before) == theirs).all()
        for peer, model in zip(team.peers, models, strict=True):
            assert (peer.model[~theirs] == model[~theirs]).all()
            assert (peer.model[theirs] != model[theirs]).all()


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("fragments", [1, 2])
def test_who_is_in_a_part_mixes_and_who_is_not_carries_over(alpha: float, fragments: int) -> None:
    """Else (1 − α) of what nobody has yet would be lost, and its tokens counted all the same."""
    team = Team(2, recipe(overlap="mix", mix=alpha, fragments=fragments))
    team.ask()
    team.step()
    old, included = team.theta.copy(), [[0], [0, 1], [0]]
    commit = team.exchange(included)
    team.step()
    one = team.peers[1].model.copy()
    team.apply(commit, meet=True)
    for bounds, members in zip(ranges(fragments, 1 % fragments), included, strict=True):
        mixed = alpha * one[bounds] + (1 - alpha) * team.theta[bounds]
        whole = team.theta[bounds] + one[bounds] - old[bounds]
        due = mixed if 1 in members else whole
        np.testing.assert_allclose(team.peers[1].model[bounds], due, atol=1e-6)
        assert alpha == 1 or np.abs(mixed - whole).max() > 1e-3


@pytest.mark.parametrize("fragments", [1, 2, 3])
def test_a_token_counts_once_when_it_is_in_all_fragments(fragments: int) -> None:
    """In each it counts for its share of them, also if a round or a part of it is missed meanwhile."""
    team, turns = Team(2, recipe(fragments=fragments)), 12
    for number in range(turns):
        team.step(2)
        team.ask()
        team.step()
        team.apply(team.exchange([[0]] * PARTS if number in (2, 6) else None))
    for _ in range(fragments):  # and nothing more is done
        team.ask()
        for peer in team.peers:
            peer.meet()
        if any(peer.state.contribution(team.round, 0, 0) for peer in team.peers):
            team.apply(team.exchange())
    assert team.tokens == pytest.approx(3 * turns * sum(TOKENS[:2]), rel=1e-12)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("fragments", [2, 3])
def test_nothing_is_lost_on_either_leg_whoever_reduces(fragments: int, keeps: bool) -> None:
    """Mean model less all that is owed changes by the mean of the inner steps only (equal weights, all in).

    What members owe is in their models, if those keep it.
    """
    team = Team(2, recipe(codec="int8", fragments=fragments, keeps=keeps))
    meant = START.astype(np.float64)
    bounds, moved = part_bounds(N, PARTS * fragments), 0
    for number in range(24):
        before = [peer.model.astype(np.float64) for peer in team.peers]
        team.ask()
        for peer in team.peers:
            peer.model = peer.model + 0.1 * values(3, number, peer.index)
            peer.handover.stepped(10.0, None)
            meant += (peer.model - before[peer.index]) / 2
            peer.meet()
        team.apply(team.exchange(shift=number // 5), meet=True)
        planes = [peer.state.plane for peer in team.peers if peer.state.plane]
        owed = np.zeros(N) if keeps else np.mean([plane._up.residual for plane in planes], axis=0)
        for plane in planes:
            for place, feedback in plane._down.items():
                owed[bounds[place]] += feedback.residual
            moved = max(moved, len(plane._down))
        np.testing.assert_allclose(
            np.mean([peer.model for peer in team.peers], axis=0) - owed, meant, atol=2e-5
        )
    assert moved > PARTS, "residuals of several fragments wait at once"


@pytest.mark.parametrize("fragments", [1, 2, 5])
def test_the_bytes_of_a_round_fall_by_the_number_of_fragments(fragments: int) -> None:
    settings = recipe(codec="int8", fragments=fragments)
    state = Peer(0, settings).state
    assert state.fragments == fragments
    bounds, int8, fp32 = part_bounds(N, PARTS * fragments), codec("int8"), codec("fp32")
    totals = []
    for round_ in range(1, 1 + fragments):
        due = [int8.sizes(b.stop - b.start) for b in bounds[round_ % fragments :: fragments]]
        assert [state.contribution_sizes(round_, part) for part in range(PARTS)] == due
        assert state.contribution_sizes(round_, PARTS) is None
        assert state.partial_sizes(round_, PARTS) is None
        full = [state.partial_sizes(round_, part) for part in range(PARTS)]
        assert full == [fp32.sizes(b.stop - b.start) for b in bounds[round_ % fragments :: fragments]]
        totals.append(sum(sizes[-1] for sizes in due))
    assert state.round_bytes == max(totals)


def test_with_one_fragment_all_bits_are_as_they_were_before_there_were_fragments() -> None:
    team = Team(3, recipe(NESTEROV, codec="int8"))
    for number in range(6):
        team.step(2)
        team.ask()
        team.step()
        commit = team.exchange([[0, 1], [1, 2], [0]] if number == 2 else None, shift=number // 2)
        team.step()
        team.apply(commit)
    team.step()
    assert digest(team.theta.tobytes() + team.peers[1].model.tobytes()) == GOLDEN
    assert team.tokens == 1035
