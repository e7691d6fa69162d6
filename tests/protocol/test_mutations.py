"""Tests of the tests: bugs planted on purpose, each of which the simulator catches within a few seeds.

A bug changes the product, never the simulator. If one goes uncaught, either the referee looks away, or
another rule of the protocol makes up for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest

from potluck.codecs.feedback import ErrorFeedback
from potluck.peer import dataplane, residuals, state
from potluck.peer.dataplane import DataPlane
from potluck.peer.residuals import Returning
from potluck.peer.state import PeerState
from potluck.protocol import steward, swarm
from potluck.protocol.catchup import Catchup
from potluck.protocol.core import PeerCore
from potluck.protocol.effects import Effect, Revoked, SendContribution
from potluck.protocol.errand import Errand
from potluck.protocol.exchange import Exchange, Part
from potluck.protocol.leases import Leases
from potluck.protocol.retention import Retention
from potluck.protocol.steward import Decision
from potluck.protocol.swarm import Swarm
from potluck.testing import world
from potluck.testing.scenario import CALM, HEAVY, World, scenario
from potluck.testing.shrink import failure_of
from potluck.wire.messages import Answer, Progress, PushContribution, PushPartial
from potluck.wire.records import Commit, Member

Patch = pytest.MonkeyPatch

ROUGH = replace(HEAVY, peers=4, duration_s=40.0, calm_s=25.0, thin=0.0, leaves=0.0)
QUIET = replace(CALM, peers=4, duration_s=30.0, calm_s=25.0)
DEATHS = replace(QUIET, peers=5, crashes=2, duration_s=60.0, bound_s=20.0)
"""Nothing but deaths, after each of which a commit follows within 15 s; the first may take 5 s more: who has
just come listens before it decides."""


WRONG = replace(QUIET, peers=5, miscounts=4)
"""Nothing but outer steps that come out wrong."""

QUICK = replace(QUIET, bound_s=20.0)
"""Nothing goes wrong, so a commit follows soon."""

LAGS = replace(QUIET, delay_s=(0.01, 1.0))
"""News comes to some long before it comes to others."""

GROUPS = replace(QUIET, peers=9, flat=3)
"""Three groups of three, and nothing goes wrong."""

MANY = replace(QUIET, peers=36)
"""Six groups, in one of which nobody reduces."""

STIRRED = replace(HEAVY, peers=9, flat=3, duration_s=40.0, calm_s=25.0, mutes=10, hub_outages=0, restarts=0)
"""Groups in which some take for dead whom others do not."""

AWAY = replace(QUIET, peers=3, hub_outages=8, duration_s=60.0, loss=0.1)
"""A hub that comes and goes, and messages that are lost."""

OUTAGES = replace(AWAY, loss=0.0)
"""Nothing but a hub that comes and goes."""

LEAVES = replace(LAGS, codec="int4", leaves=8, duration_s=60.0)
"""Nothing but peers that leave in good order and come back, some before the round in flight is over."""


FRAGMENTS = replace(QUIET, fragments=2)
"""Two fragments that take turns, and nothing goes wrong."""

MIXING = replace(ROUGH, fragments=2, mix=0.5)
"""Models that mix, and not all that they give comes in time."""


@dataclass(frozen=True)
class Mutation:
    """How a bug is planted, what then is said, in which world, and within how many seeds."""

    plant: Callable[[Patch], None]
    broke: str
    world: World = ROUGH
    seeds: int = 60


def one_holder(patch: Patch) -> None:
    """A round is committed as soon as one member holds each part."""

    def hasty(*values: Any, **more: Any) -> Any:
        return 1 if len(values) == 2 and values[0] == 2 else min(*values, **more)

    patch.setattr(steward, "min", hasty, raising=False)


def counted_twice(patch: Patch) -> None:
    """The last contribution to a part is reduced twice."""
    reduce = DataPlane.reduce

    def doubling(self: DataPlane, round_: int, part: int, given: Any) -> Any:
        mean = reduce(self, round_, part, [*given, given[-1]])
        return mean._replace(contributors=tuple(sorted(set(mean.contributors))))

    patch.setattr(DataPlane, "reduce", doubling)


def digest_reused(patch: Patch) -> None:
    """A reducer names its results by their part alone: two of them have one digest."""
    describe = state.describe

    def reusing(raw: bytes) -> Any:
        tally, info = describe(raw)
        return tally, msgspec.structs.replace(info, digest=f"{len(raw):064x}")

    patch.setattr(state, "describe", reusing)


def weights_swapped(patch: Patch) -> None:
    """Contributors are reduced in another order than their weights."""
    mean = dataplane.weighted_mean
    patch.setattr(dataplane, "weighted_mean", lambda values, weights: mean(values, weights[::-1]))


def parts_out_of_order(patch: Patch) -> None:
    """A peer applies two parts in each other's place, if it is the first of the members."""
    apply = DataPlane.apply

    def broken(self: DataPlane, commit: Commit, raws: Any, index: int | None) -> Any:
        return apply(self, commit, [raws[1], raws[0], *raws[2:]] if index == 0 else raws, index)

    patch.setattr(DataPlane, "apply", broken)


def contributors_ignored(patch: Patch) -> None:
    """Whoever cut takes its progress for included, also in parts that came without it."""
    apply = DataPlane.apply

    def broken(self: DataPlane, commit: Commit, raws: Any, index: int | None) -> Any:
        carry = apply(self, commit, raws, index)
        return replace(carry, origin=carry.origin if index is None else carry.theta * 0 + self.theta)

    patch.setattr(DataPlane, "apply", broken)


def carry_lost(patch: Patch) -> None:
    """A new shared state replaces the model in training, and with it the progress since the cut."""
    patch.setattr(world, "carried", lambda local, carries: carries[-1].theta.copy())


def mixed_with_all(patch: Patch) -> None:
    """A model mixes everywhere, and not only where its own progress is in the new shared state."""
    apply = DataPlane.apply

    def broken(self: DataPlane, commit: Commit, raws: Any, index: int | None) -> Any:
        carry = apply(self, commit, raws, index)
        shares = tuple(one._replace(share=self._mix or 1.0) for one in carry.stretches or ())
        return replace(carry, stretches=shares)

    patch.setattr(DataPlane, "apply", broken)


def member_residual_forgotten(patch: Patch) -> None:
    """What encoding took from a contribution is not given with the next one."""

    def add(self: ErrorFeedback, values: Any, within: slice = slice(None), out: Any = None) -> Any:
        return np.add(self.residual[within] if self.residual.size < 40 else 0, values, out=out)

    patch.setattr(ErrorFeedback, "add", add)


def reducer_residual_forgotten(patch: Patch) -> None:
    """What encoding took from a result is not in the next one."""
    patch.setattr(ErrorFeedback, "settle", lambda self, lost: None)


def residual_not_handed_on(patch: Patch) -> None:
    """A part goes to another reducer, and the old one drops what it owed."""

    def settle(self: DataPlane, info: Any, index: int | None, place: int) -> None:
        ours = self._results.get((place, info.digest))
        if ours is not None:
            self._down[place].settle(ours)
        else:
            self._down.pop(place, None)

    patch.setattr(DataPlane, "_settle_down", settle)


def residual_of_another_fragment(patch: Patch) -> None:
    """A reducer adds what it owes of the same part of the round before, and so of another fragment."""
    reduce = DataPlane.reduce

    def reducing(self: DataPlane, round_: int, part: int, given: Any) -> Any:
        here = self._layout.place(round_, part)
        other = self._down.get(self._layout.place(round_ - 1, part))
        if other is not None and other.residual.size == self._layout.size(round_, part):
            self._down[here] = other
        return reduce(self, round_, part, given)

    patch.setattr(DataPlane, "reduce", reducing)


def momentum_not_saved(patch: Patch) -> None:
    """Snapshots are written without the momentum."""
    files = state.snapshot_files
    patch.setattr(state, "snapshot_files", lambda tensors, theta, v: files(tensors, theta, v * 0))


def ack_skipped(patch: Patch) -> None:
    """What was refused for the moment counts as delivered, and is not sent again."""
    sent = Exchange.sent

    def broken(
        self: Exchange, part: int, to: str, digest: str | None, ok: bool, retry: bool, now: float
    ) -> None:
        sent(self, part, to, digest, ok, False, now)

    patch.setattr(Exchange, "sent", broken)


def stale_contribution(patch: Patch) -> None:
    """Contributions to an earlier attempt of the round are reduced into the one that is open."""
    reduce, routed = PeerState.reduce, PeerCore._routed

    def any_attempt(self: PeerState, round_: int, attempt: int, part: int, *rest: Any) -> Any:
        for (r, a, p, index), found in sorted(self._inbox.items()):
            if (r, p) == (round_, part) and a < attempt:
                self._inbox[round_, attempt, part, index] = found
        return reduce(self, round_, attempt, part, *rest)

    def let_in(self: PeerCore, push: PushContribution | PushPartial) -> Answer | None:
        here = self.exchange is not None and self.exchange.round == push.round
        return None if here and push.attempt < self.exchange.attempt else routed(self, push)  # type: ignore

    patch.setattr(PeerState, "reduce", any_attempt)
    patch.setattr(PeerCore, "_routed", let_in)


def decides_deaf(patch: Patch) -> None:
    """A peer that hears nobody, not even itself, thinks itself the only one left."""
    patch.setattr(Swarm, "deaf", lambda self, now: False)
    patch.setattr(Swarm, "_time", lambda self, now: now)


def dropped_too_early(patch: Patch) -> None:
    """With a new snapshot the parts of the commits since go too."""
    drop = Retention.drop

    def broken(self: Retention, have: set[str], keep: set[str]) -> Any:
        parts, self._parts = self._parts, {}
        try:
            return drop(self, have, keep)
        finally:
            self._parts = parts

    patch.setattr(Retention, "drop", broken)


def reducer_not_replaced(patch: Patch) -> None:
    """Nobody takes over what a dead reducer was to reduce."""
    patch.setattr(steward, "_replace", lambda *_: Decision(None, "never"))


def nobody_ever_dies(patch: Patch) -> None:
    """Presence does not expire."""
    patch.setattr(swarm, "EXPIRY_S", 1e9)


def drift_unnoticed(patch: Patch) -> None:
    """A peer whose state is not the others' goes on with it."""
    patch.setattr(Catchup, "drifted", lambda self: None)


def no_patience(patch: Patch) -> None:
    """A reducer reduces what it has, and waits for nobody."""
    init = Exchange.__init__

    def hasty(self: Exchange, *values: Any) -> None:
        init(self, *values)
        self.grace_s = 0.0

    patch.setattr(Exchange, "__init__", hasty)


def tokens_counted_by_part(patch: Patch) -> None:
    """A commit counts its tokens once for each part."""
    commit = steward._commit

    def broken(open_: Any, infos: Any, *rest: Any) -> Decision:
        decision = commit(open_, infos, *rest)
        assert isinstance(decision.body, Commit)
        tokens = int(sum(info.weight for info in infos))
        body = Commit(
            *(getattr(decision.body, f) if f != "tokens" else tokens for f in Commit.__struct_fields__)
        )
        return Decision(body, decision.reason)

    patch.setattr(steward, "_commit", broken)


def fetch_not_repeated(patch: Patch) -> None:
    """A fetch that failed is taken for one under way."""
    fetched = Catchup.fetched

    def broken(self: Catchup, digest: str, ok: bool, now: float) -> None:
        if ok:
            fetched(self, digest, ok, now)

    patch.setattr(Catchup, "fetched", broken)


def weights_of_a_group_ignored(patch: Patch) -> None:
    """Who gathers takes everybody's contribution for as much as any other."""
    combine = DataPlane.combine

    def broken(self: DataPlane, round_: int, part: int, given: Any) -> Any:
        alike = [one._replace(weights=tuple((index, 1.0) for index, _ in one.weights)) for one in given]
        mean = combine(self, round_, part, alike)
        return mean._replace(contributors=combine(self, round_, part, given).contributors)

    patch.setattr(DataPlane, "combine", broken)


def own_forgotten(patch: Patch) -> None:
    """Who gathers leaves itself out."""
    combine = PeerState.combine

    def broken(self: PeerState, round_: int, attempt: int, part: int, contributors: Any) -> Any:
        ours = self._member[2] if self._member is not None else None
        return combine(self, round_, attempt, part, [i for i in contributors if i != ours])

    patch.setattr(PeerState, "combine", broken)


def blocks_of_a_group_lost(patch: Patch) -> None:
    """A group's mean does not say how much data is behind it."""
    take = PeerState.take_partial

    def broken(self: PeerState, *rest: Any) -> None:
        *where, partial = rest
        take(self, *where, partial._replace(blocks=()))

    patch.setattr(PeerState, "take_partial", broken)


def groups_not_awaited(patch: Patch) -> None:
    """A reducer waits for nobody, and only who gathers does."""
    awaited = Part.awaited

    def broken(self: Part, members: Any) -> list[int]:
        return awaited(self, members) if members.step > 1 else []

    patch.setattr(Part, "awaited", broken)


def groups_not_named(patch: Patch) -> None:
    """A result names only those who gave straight to its reducer."""
    everybody = dataplane._all

    def broken(given: Any) -> Any:
        return everybody([one for one in given if not one.partial] or given)

    patch.setattr(dataplane, "_all", broken)


def given_twice(patch: Patch) -> None:
    """Who gathers gives its own contribution to the next one of its group as well."""
    contribute = Exchange._contribute

    def broken(self: Exchange, part: int, swarm: Swarm, now: float) -> list[Effect]:
        effects, me = contribute(self, part, swarm, now), self.index
        if me is None or self._weight is None or not self._gathers(part, me):
            return effects
        others = [i for i in self._group(me % self.groups) if i != me and swarm.lives(self.members[i], now)]
        errand = self._sends.setdefault((part, others[0]), Errand()) if others else Errand(done=True)
        if self._target(part, swarm, now) == me and errand.due(now):
            errand.flying = True
            effects.append(SendContribution(self.round, self.attempt, part, self.members[others[0]].peer))
        return effects

    patch.setattr(Exchange, "_contribute", broken)


def counted_in_two_means(patch: Patch) -> None:
    """A reducer takes a mean whoever of it is counted already, and names them once."""
    given_twice(patch)
    offered, everybody = Exchange.partial_offered, dataplane._all

    def broken(self: Exchange, part: int, *rest: Any) -> Answer:
        answer = offered(self, part, *rest)
        return self._wanted(part, self.reduces(part)) if answer.known else answer

    patch.setattr(Exchange, "partial_offered", broken)
    patch.setattr(dataplane, "_all", lambda given: tuple(sorted(set(everybody(given)))))


def block_leased_again(patch: Patch) -> None:
    """When a peer is gone, the first block of the data goes out once more with those that it had."""
    release = Leases.release

    def broken(self: Leases, member: Member) -> int:
        self._returned.insert(0, (0, 1))
        return release(self, member)

    patch.setattr(Leases, "release", broken)


def idle_without_hub(patch: Patch) -> None:
    """A peer that does not reach the hub takes its data for gone, and stands still."""
    poll = PeerCore.poll

    def broken(self: PeerCore, now: float) -> list[Effect]:
        heard_at = self.swarm._echoed or now
        is_alone = now - heard_at > 1.6 and self.view.round > 0  # before it has used its data up
        return [*poll(self, now), *([Revoked()] if is_alone else [])]

    patch.setattr(PeerCore, "poll", broken)


def outage_undoes_work(patch: Patch) -> None:
    """A peer that finds the hub again takes the state from the others, and drops its own progress."""
    heard = PeerCore.heard

    def broken(self: PeerCore, progress: Progress, now: float) -> bool:
        if progress.member == self.me and self.swarm.deaf(now) and self.view.round > 0:
            self.catchup.drifted()
        return heard(self, progress, now)

    patch.setattr(PeerCore, "heard", broken)


def outage_undoes_rounds(patch: Patch) -> None:
    """A peer that finds the hub again drops its state, and looks for no other."""
    outage_undoes_work(patch)
    drifted, poll = Catchup.drifted, Catchup.poll
    lost: set[Catchup] = set()

    def drop(self: Catchup) -> None:
        lost.add(self)
        drifted(self)

    patch.setattr(Catchup, "drifted", drop)
    patch.setattr(Catchup, "poll", lambda self, *rest: [] if self in lost else poll(self, *rest))


def returning_counted_anyway(patch: Patch) -> None:
    """A peer that comes back owes what it left, also what its last contribution or result brought along."""
    patch.setattr(residuals, "settled", lambda owed, commit, parts: owed)


def returning_not_awaited(patch: Patch) -> None:
    """A peer that comes back does not wait for what becomes of its last life's contribution."""
    meet = Returning.meet

    def hasty(self: Returning, *values: Any) -> Any:
        if self._owed is not None:
            self._owed = replace(self._owed, flying=None, results={})
        return meet(self, *values)

    patch.setattr(Returning, "meet", hasty)


def returning_twice(patch: Patch) -> None:
    """A peer that comes back takes up twice what it left."""
    take_up = DataPlane.take_up
    patch.setattr(
        DataPlane, "take_up", lambda self, owed, carry: take_up(self, owed, take_up(self, owed, carry))
    )


def returning_beside_the_model(patch: Patch) -> None:
    """A model that keeps what is not sent begins without it."""
    take_up = DataPlane.take_up

    def broken(self: DataPlane, owed: Any, carry: Any) -> Any:
        take_up(self, owed, carry)
        return carry

    patch.setattr(DataPlane, "take_up", broken)


MUTATIONS = [
    Mutation(one_holder, "held by one only"),
    Mutation(counted_twice, "not the mean"),
    Mutation(digest_reused, "no commit for 20 s", QUICK, 3),
    Mutation(weights_swapped, "not the mean"),
    Mutation(parts_out_of_order, "has state|the mean and the residual"),
    Mutation(contributors_ignored, "own progress"),
    Mutation(carry_lost, "own progress"),
    Mutation(member_residual_forgotten, "progress and residual"),
    Mutation(reducer_residual_forgotten, "the mean and the residual"),
    Mutation(residual_not_handed_on, "and (the )?residual"),
    Mutation(residual_of_another_fragment, "the mean and the residual", FRAGMENTS, 3),
    Mutation(mixed_with_all, "own progress", MIXING, 20),
    Mutation(momentum_not_saved, "CorruptData"),
    Mutation(ack_skipped, "leaves living members out", LAGS, 20),
    Mutation(stale_contribution, "the mean and the residual"),
    Mutation(decides_deaf, "held by one only", AWAY),
    Mutation(drift_unnoticed, "has state", WRONG),
    Mutation(dropped_too_early, "nobody has it"),
    Mutation(reducer_not_replaced, "no commit for 20 s", DEATHS),
    Mutation(nobody_ever_dies, "no commit for 20 s", DEATHS),
    Mutation(no_patience, "leaves living members out"),
    Mutation(tokens_counted_by_part, "tokens, its contributors"),
    Mutation(fetch_not_repeated, "not at the head after calm"),
    Mutation(weights_of_a_group_ignored, "the mean and the residual", GROUPS, 3),
    Mutation(own_forgotten, "leaves living members out", GROUPS, 3),
    Mutation(blocks_of_a_group_lost, "has data", MANY, 2),
    Mutation(groups_not_awaited, "leaves living members out", GROUPS, 3),
    Mutation(groups_not_named, "the mean and the residual", GROUPS, 3),
    Mutation(counted_in_two_means, "not the mean", GROUPS, 3),
    Mutation(block_leased_again, "a second time"),
    Mutation(idle_without_hub, "does not train on while the hub is away", OUTAGES),
    Mutation(outage_undoes_work, "throws work away over an outage", OUTAGES),
    Mutation(outage_undoes_rounds, "lacks rounds after an outage", OUTAGES),
    Mutation(returning_counted_anyway, "progress and residual", LEAVES, 10),
    Mutation(returning_not_awaited, "(progress|mean) and (the )?residual|taken up without it", LEAVES, 10),
    Mutation(returning_twice, "progress and residual", LEAVES, 10),
    Mutation(returning_beside_the_model, "own progress", replace(LEAVES, keeps=1), 10),
]


def failure(world_: World, seed: int) -> str | None:
    """What the world of a seed breaks."""
    broken, _ = failure_of(scenario(seed, world_))
    return str(broken).partition("\n")[0] if broken is not None else None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.plant.__name__)
def test_a_planted_bug_is_caught(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation.plant(monkeypatch)
    said = (failure(mutation.world, seed) for seed in range(mutation.seeds))
    first = next(filter(None, said), None)
    assert first is not None, f"{mutation.plant.__doc__} Nothing notices in {mutation.seeds} seeds"
    assert re.search(mutation.broke, first), first


@pytest.mark.parametrize(
    "name",
    [
        "ROUGH",
        "QUIET",
        "QUICK",
        "LAGS",
        "DEATHS",
        "WRONG",
        "AWAY",
        "GROUPS",
        "MANY",
        "STIRRED",
        "OUTAGES",
        "LEAVES",
        "FRAGMENTS",
        "MIXING",
    ],
)
def test_without_a_bug_nothing_is_said_in_these_worlds(name: str) -> None:
    world_: World = globals()[name]
    most = max((mutation.seeds for mutation in MUTATIONS if mutation.world is world_), default=5)
    assert [said for seed in range(most) if (said := failure(world_, seed))] == []


def test_what_comes_to_a_reducer_by_two_ways_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that makes up for a bug: the reducer says whom it has, and the rest is combined anew."""
    refused = []
    offered = Exchange.partial_offered

    def watching(self: Exchange, *values: Any) -> Answer:
        answer = offered(self, *values)
        refused.append(bool(answer.known))
        return answer

    monkeypatch.setattr(Exchange, "partial_offered", watching)
    given_twice(monkeypatch)
    assert [said for seed in range(3) if (said := failure(GROUPS, seed))] == []
    assert any(refused)
