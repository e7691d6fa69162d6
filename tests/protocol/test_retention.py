"""What stays on a disk: enough to bring the run back, and no more."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from potluck.protocol.core import PeerCore
from potluck.protocol.retention import Retention
from potluck.protocol.view import RunView
from potluck.testing import simulator
from potluck.wire.codec import digest
from potluck.wire.records import Blob, Chain, Commit, PartInfo, Snapshot

EVERY = 3


def name(what: str) -> str:
    return digest(what.encode())


def commit(round_: int) -> Commit:
    return Commit(round_, 0, (PartInfo(0, name(f"part {round_}"), 1, ((0, 1.0),)),), 1, None, "")


def snapshot(round_: int) -> Snapshot:
    chunks = (name("what all snapshots share"), name(f"chunk {round_}"))
    return Snapshot(round_, "0" * 64, (Blob("model", 2, 1, chunks),), "")


def run(retention: Retention, rounds: int, writes: set[int], late: int = 1) -> set[str]:
    """A run of so many rounds; snapshots are recorded ``late`` rounds on. Returns what is here at the end."""
    have: set[str] = set()
    for round_ in range(rounds + 1):
        if round_:
            retention.committed(commit(round_))
            have |= {info.digest for info in commit(round_).parts}
        if round_ % EVERY == 0 and round_ in writes:
            have |= set(snapshot(round_).files[0].chunks)
        if round_ >= late and (round_ - late) % EVERY == 0:
            retention.recorded(snapshot(round_ - late), have)
            have &= retention.keep()
    return have


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_last_snapshots_stay_with_the_parts_since_and_nothing_else(count: int) -> None:
    kept = run(Retention(count), 31, writes=set(range(32)))
    rounds = [30 - EVERY * back for back in range(count)]
    chunks = {c for r in rounds for c in snapshot(r).files[0].chunks}
    assert kept == chunks | {info.digest for r in range(rounds[-1] + 1, 32) for info in commit(r).parts}


def test_the_newest_snapshot_that_is_here_stays_when_later_ones_are_not() -> None:
    kept = run(Retention(2), 31, writes={0, 12})
    assert set(snapshot(12).files[0].chunks) <= kept
    assert {name(f"part {r}") for r in range(13, 32)} <= kept
    assert not {name(f"part {r}") for r in range(13)} & kept
    assert name("chunk 0") not in kept


def test_where_no_snapshot_ever_was_nothing_piles_up() -> None:
    retention = Retention(2)
    kept = run(retention, 31, writes=set())
    assert kept == {name(f"part {r}") for r in range(28, 32)}
    assert len(retention._snapshots) == 2


def test_one_that_comes_back_in_time_takes_the_old_ones_place() -> None:
    kept = run(Retention(2), 31, writes={0, 12, 27})
    assert name("chunk 12") not in kept
    assert name("chunk 27") in kept
    assert {name(f"part {r}") for r in range(28, 32)} <= kept


# -- in a swarm with faults --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_through_faults_each_disk_stays_bounded_and_enough_to_bring_the_run_back(
    monkeypatch: pytest.MonkeyPatch, seed: int, count: int
) -> None:
    monkeypatch.setattr(simulator, "PeerCore", partial(PeerCore, keep_snapshots=count))
    sim = simulator.Simulation(seed, simulator.World())
    sim.run()
    recorded = [b for _, b in followed(sim.ledger) if isinstance(b, Snapshot)]
    commits = {b.round: b for _, b in followed(sim.ledger) if isinstance(b, Commit)}
    assert len(recorded) > count + 2, "long enough for something to be dropped"
    oldest = recorded[-count - 1]  # the last one may have come this moment
    parts = sim.recipe.rounds.parts
    largest = max(sum(len(blob.chunks) for blob in snapshot.files) for snapshot in recorded)
    for peer in sim.living():
        held = peer.store.digests()
        # The recorded ones, those that are written and not recorded yet, and the round in flight.
        bound = (count + 2) * largest + parts * (max(commits) - oldest.round + 2)
        assert len(held) <= bound, f"{peer.name} holds {len(held)}, {bound} are enough"
        assert any(
            held.issuperset(c for blob in snapshot.files for c in blob.chunks)
            and all(
                info.digest in held
                for round_ in range(snapshot.round + 1, peer.core.catchup.round + 1)
                for info in commits[round_].parts
            )
            for snapshot in recorded
        ), f"the run can't be brought back from {peer.name}'s disk"


def followed(ledger: list[bytes]) -> list[tuple[int, Any]]:
    view, chain, bodies = RunView(), Chain(), []
    for raw in ledger:
        entry = chain.follow(chain.sequence + 1, raw)
        if view.follow(entry) is None:
            bodies.append((entry.sequence, entry.record.body))
    return bodies
