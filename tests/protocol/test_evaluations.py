"""Evaluations: what the ledger says of them, who makes them, and when."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from msgspec.structs import replace as changed

from potluck.protocol.evaluating import PATIENCE, TURN_S, Evaluating
from potluck.protocol.evaluations import KEPT, Evaluations, told
from potluck.protocol.keeping import Keeping
from potluck.protocol.swarm import EXPIRY_S, Swarm
from potluck.protocol.view import RunView
from potluck.testing.evaluations import overdue
from potluck.testing.scenario import CALM, World
from potluck.testing.simulator import InvariantBroken, Simulation
from potluck.wire.codec import digest
from potluck.wire.records import Chain, Evaluation, Finish

from .support import BASE, committed, genesis, opened, peer_id, says, snapshot, update, view_of

OTHER = digest(b"another state")


def follow(found: Evaluations, body: Evaluation, head: int) -> str | None:
    return found.follow(body, head, {}, {})


def judged(round_: int, loss: float = 2.5, state: str = BASE, rises: bool = False) -> Evaluation:
    return Evaluation(round_, state, (("loss", loss),), "by peer1", rises)


# -- what the ledger says ----------------------------------------------------------------------------


def test_the_first_evaluation_of_a_round_counts() -> None:
    found = Evaluations()
    assert found.last == -1
    assert follow(found, judged(0, 3.0), 4) is None
    assert follow(found, judged(4, 2.0), 4) is None
    assert follow(found, judged(2, 2.5), 4) is None, "one that took longer may come later"
    assert follow(found, judged(4, 1.0), 4) == "round 4 is evaluated already"
    assert follow(found, judged(5), 4) == "its round is not committed"
    assert (found.last, sorted(found.of)) == (4, [0, 2, 4])
    assert found.best == judged(4, 2.0)


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ((("loss", math.nan),), "no finite number"),
        ((("loss", 1.0), ("other", math.inf)), "no finite number"),
        ((("loss", 1.0), ("loss", 2.0)), "a metric twice"),
    ],
)
def test_figures_that_make_no_sense_are_skipped(metrics: tuple[tuple[str, float], ...], why: str) -> None:
    found = Evaluations()
    assert why in (follow(found, changed(judged(0), metrics=metrics), 0) or "")
    assert found.best is None


@pytest.mark.parametrize(("rises", "best"), [(False, 3), (True, 1)])
def test_the_best_is_by_the_first_metric_and_the_earliest_of_equals(rises: bool, best: int) -> None:
    found = Evaluations()
    for round_, value in ((1, 0.9), (2, 0.5), (4, 0.2), (3, 0.2), (5, 0.9)):
        assert follow(found, judged(round_, value, rises=rises), 5) is None
    assert found.best is not None
    assert found.best.round == best


def test_an_evaluation_of_another_state_than_the_runs_does_not_count() -> None:
    view = view_of(genesis(), judged(0, 1.0, OTHER), opened())
    assert view.evaluations.of == {}
    assert view.evaluations.best is None
    late = view_of(genesis(), opened(), committed())
    assert follow(late.evaluations, judged(0, 1.0, OTHER), late.round) is not None
    assert follow(late.evaluations, judged(0, 1.5), late.round) is None


def test_of_very_many_the_newest_stay_and_the_best() -> None:
    found = Evaluations()
    for round_ in range(KEPT + 50):
        follow(found, judged(round_, abs(round_ - 7.0)), round_)
    assert len(found.of) == KEPT
    assert found.best == judged(7, 0.0)
    assert 7 in found.of
    assert follow(found, judged(3), 2 * KEPT) is not None


def test_the_last_state_is_evaluated_when_the_run_is_over() -> None:
    view = view_of(genesis(), opened(), committed(), Finish(1, "enough"), judged(1))
    assert view.evaluations.last == 1


def test_an_evaluation_is_told_in_words() -> None:
    body = changed(judged(3), metrics=(("loss", 3.81234567), ("accuracy", 0.5)))
    assert told(body) == "loss 3.8123, accuracy 0.5"


def test_a_release_that_does_not_know_evaluations_skips_them() -> None:
    """To it the record is one that can't be read, which has its place in the chain and says nothing."""
    chain, view = Chain(), RunView()
    for body in (genesis(), judged(0), opened()):
        raw = chain.next(peer_id(1), body).replace(b"Evaluation", b"Evaluative")
        skipped = view.follow(chain.follow(chain.sequence + 1, raw))
        assert (skipped is not None) is isinstance(body, Evaluation)
        assert "can't be read" in (skipped or "can't be read")
    assert view.open is not None
    assert view.evaluations.of == {}


# -- whose turn it is --------------------------------------------------------------------------------


class Peers:
    """Three peers that can evaluate, as the first of them in line and the others see them."""

    def __init__(self, every: int = 2, head: int = 0) -> None:
        bodies = [b for r in range(1, head + 1) for b in (opened(r), committed(r))]
        self.view, self.now, self.round = view_of(genesis(), *bodies), 100.0, head
        self.swarm = Swarm()
        for n in (1, 2, 3):
            self.swarm.hear(says(n, evaluates=True, round=head), 0.0)
        self.swarm.echo(0.0)
        self.ours = {n: Evaluating(peer_id(n)) for n in (1, 2, 3)}
        for one in self.ours.values():
            one.every = every
        self.hear()

    def hear(self, **said: object) -> None:
        """Everybody is heard again; ``said`` of the peer in front of the line."""
        self.swarm.echo(self.now)
        for n in (1, 2, 3):
            more = said if said and n == self.line[0] else {}
            update(self.swarm, self.now, says(n, **{"evaluates": True, "round": self.round, **more}))

    @property
    def line(self) -> list[int]:
        due = "last" if self.view.finished else self.round // self.ours[1].every
        return sorted((1, 2, 3), key=lambda n: digest(f"{due}/{peer_id(n)}".encode()))

    def begins(self) -> list[int]:
        return [
            n for n in self.line if self.ours[n].begins(self.view, self.swarm, self.round, BASE, self.now)
        ]

    def passes(self, seconds: float, **said: object) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 1.0)
            self.hear(**said)


def test_the_first_in_line_begins_at_once_and_the_others_wait_for_it() -> None:
    peers = Peers()
    first, second, third = peers.line
    assert peers.begins() == [first]
    peers.passes(30.0, evaluating=0)
    assert peers.begins() == []
    peers.ours[first].done(judged(0))
    assert peers.ours[first].verdict(peers.view).body == judged(0)
    assert follow(peers.view.evaluations, judged(0), 0) is None
    for n in (first, second, third):
        peers.ours[n].followed(judged(0))
        assert peers.ours[n].verdict(peers.view).body is None
    peers.passes(30.0)
    assert peers.begins() == [], "nothing is due"


def test_a_result_that_would_not_count_is_not_appended_again_and_again() -> None:
    peers = Peers()
    first = peers.ours[peers.line[0]]
    assert peers.begins() == [peers.line[0]]
    first.done(judged(0, state=OTHER))
    assert first.verdict(peers.view).body is not None
    peers.view.evaluations.opened(0, BASE)  # we had drifted, as the next open shows
    assert first.verdict(peers.view).body is None
    assert not first.busy


def test_another_takes_over_when_the_first_does_not_appear() -> None:
    peers = Peers()
    first, second, third = peers.line
    assert peers.ours[second].begins(peers.view, peers.swarm, 0, BASE, peers.now) is False
    assert peers.ours[third].begins(peers.view, peers.swarm, 0, BASE, peers.now) is False
    peers.passes(TURN_S)
    del peers.ours[first]
    began = [n for n in (second, third) if peers.ours[n].begins(peers.view, peers.swarm, 0, BASE, peers.now)]
    assert began == [second]


def test_who_fails_leaves_it_to_the_next_until_another_is_due() -> None:
    peers = Peers()
    first, second, _ = peers.line
    assert peers.begins() == [first]
    peers.ours[first].done(None)
    assert not peers.ours[first].busy
    peers.passes(TURN_S)
    assert peers.begins() == [second]


def test_who_is_at_it_for_too_long_is_waited_for_no_more() -> None:
    for since, begins in ((2, False), (1, True)):
        peers = Peers(every=2, head=2 * PATIENCE + 2)
        _, second, third = peers.line
        peers.passes(1.0, evaluating=since)
        assert peers.ours[second].begins(peers.view, peers.swarm, peers.round, BASE, peers.now) is begins
        peers.passes(TURN_S, evaluating=since)
        assert peers.ours[third].begins(peers.view, peers.swarm, peers.round, BASE, peers.now) is False


def test_who_says_to_be_at_a_round_that_is_not_there_is_not_waited_for() -> None:
    for said, begins in ((1 << 40, True), (2, True), (1, False)):
        peers = Peers()
        second = peers.line[1]
        peers.passes(1.0, evaluating=said)
        assert peers.ours[second].begins(peers.view, peers.swarm, 0, BASE, peers.now) is begins


def test_an_evaluation_that_fails_late_does_not_spoil_the_next_that_is_due() -> None:
    peers = Peers()
    first = peers.ours[peers.line[0]]
    assert peers.begins() == [peers.line[0]]
    peers.view.finished = Finish(0, "enough")
    assert not first.begins(peers.view, peers.swarm, 0, BASE, peers.now), "it is at one"
    first.done(None)
    assert first.awaited(peers.view), "it was another that failed"


def test_nobody_evaluates_a_state_that_is_not_the_others_or_not_the_head() -> None:
    peers = Peers()
    first = peers.line[0]
    assert not peers.ours[first].begins(peers.view, peers.swarm, 0, OTHER, peers.now)
    peers.passes(1.0)
    assert not peers.ours[first].begins(peers.view, peers.swarm, -1, BASE, peers.now)
    peers.passes(1.0)
    peers.now += EXPIRY_S  # nothing is heard any more, not even our own
    assert not peers.ours[first].begins(peers.view, peers.swarm, 0, BASE, peers.now)


def test_between_two_multiples_nothing_is_due_and_after_the_end_the_last_state_is() -> None:
    peers = Peers(every=4, head=2)
    assert follow(peers.view.evaluations, judged(0), 2) is None
    assert peers.begins() == []
    peers.view.finished = Finish(2, "enough")
    assert peers.ours[1].awaited(peers.view)
    peers.passes(1.0)
    assert peers.begins() == [peers.line[0]]


def test_who_can_not_evaluate_does_not() -> None:
    peers = Peers()
    first = peers.ours[peers.line[0]]
    first.every = 0
    assert not first.begins(peers.view, peers.swarm, 0, BASE, peers.now)
    assert not first.awaited(peers.view)


# -- in a swarm --------------------------------------------------------------------------------------

QUIET = replace(CALM, peers=5, evaluate=2, duration_s=60.0, calm_s=20.0)


@pytest.mark.parametrize("seed", [1, 2])
def test_in_a_calm_world_each_multiple_is_evaluated_by_one_peer(seed: int) -> None:
    sim = Simulation(seed, QUIET)
    sim.run()
    view = sim.head()
    rounds = sorted(view.evaluations.of)
    assert len(rounds) > 4
    assert [r // 2 for r in rounds] == list(range(rounds[-1] // 2 + 1))
    assert sim.outcome.evaluated <= len(rounds) + 1, "one is on its way"
    authors = Counter(body.reason for body in view.evaluations.of.values())
    assert len(authors) > 1, "they take turns"


def test_a_swarm_that_stops_evaluating_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: who is first in line never begins, and nobody takes over."""
    place = Evaluating._place

    def first_only(self: Evaluating, *given: object) -> int | None:
        return place(self, *given) or None  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluating, "_place", first_only)
    monkeypatch.setattr("potluck.protocol.evaluating.TURN_S", 1e9)
    with pytest.raises(InvariantBroken, match="round 0 is not evaluated"):
        Simulation(3, QUIET).run()


def test_an_evaluation_of_ones_own_model_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the figures are said to be of another state than the shared one."""
    done = Evaluating.done

    def lies(self: Evaluating, result: Evaluation | None) -> None:
        done(self, changed(result, state=OTHER) if result is not None else None)

    monkeypatch.setattr(Evaluating, "done", lies)
    monkeypatch.setattr(Evaluations, "opened", lambda *_: None)
    with pytest.raises(InvariantBroken, match=r"is evaluated in state"):
        Simulation(3, QUIET).run()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_the_best_state_follows_from_stays_on_the_disks(seed: int) -> None:
    sim = Simulation(seed, replace(World(), evaluate=2, crashes=1.0, torn=0.0))
    sim.run()
    assert overdue(sim, sim.head()) is None
    kept = 0
    for peer in sim.living():
        grounds = peer.core.view.evaluations.grounds
        assert grounds is not None
        if stays := peer.core.keeping.retention._best:
            assert stays == {digest for digest, _ in grounds.content()}
            assert stays <= peer.store.digests()
            kept += 1
    assert kept >= 2, "those that were there when it was evaluated"


def test_the_best_state_stays_only_where_it_is_and_where_that_is_wanted() -> None:
    view = view_of(genesis(), snapshot(0), opened(), committed(), judged(1))
    grounds = view.evaluations.grounds
    assert grounds is not None
    assert (grounds.snapshot.round, [c.round for c in grounds.commits]) == (0, [1])
    chunks = {c for b in grounds.snapshot.files for c in b.chunks}
    parts = {info.digest for info in grounds.commits[0].parts}
    for have, wanted, stays in (
        (chunks, True, chunks | parts),  # parts of a round that is just committed are to come
        (parts, True, set()),
        (chunks | parts, False, set()),
    ):
        keeping = Keeping(set(have), 2, best=wanted)
        keeping.judged(grounds)
        assert keeping.retention.keep() == stays
        keeping.judged(None)
        assert keeping.retention.keep() == set()


def test_a_state_of_before_the_snapshots_that_are_kept_has_no_grounds() -> None:
    rounds = [b for r in range(1, 4) for b in (opened(r), committed(r), snapshot(r))]
    view = view_of(genesis(), *rounds, judged(1, 1.0))
    assert view.evaluations.best == judged(1, 1.0)
    assert view.evaluations.grounds is None


def test_when_the_best_does_not_count_the_one_before_it_has_its_grounds() -> None:
    bodies = (genesis(), snapshot(0), judged(0, 3.0), opened(), committed(), judged(1, 2.0, OTHER))
    view = view_of(*bodies)
    assert view.evaluations.grounds is not None
    assert len(view.evaluations.grounds.commits) == 1
    view = view_of(*bodies, opened(2))
    assert view.evaluations.best == judged(0, 3.0)
    assert view.evaluations.grounds is not None
    assert view.evaluations.grounds.commits == ()
