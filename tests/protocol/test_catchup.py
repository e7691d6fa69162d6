"""Reaching the head of the ledger: snapshot if it must be, then every commit, from whoever has what."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from potluck.protocol.catchup import (
    AHEAD,
    FLYING,
    FLYING_PER_SOURCE,
    LOAD_BYTES_S,
    NO_STATE,
    Catchup,
    chunks,
)
from potluck.protocol.effects import Apply, Effect, Fetch, LoadSnapshot
from potluck.protocol.errand import RETRY_S
from potluck.protocol.swarm import EXPIRY_S
from potluck.protocol.view import RunView
from potluck.wire.records import Body, Commit

from .support import blob, committed, genesis, heard, opened, peer_id, result, says, snapshot, view_of

ME = peer_id(1)


def ledger(rounds: int, *snapshots: int, parts: int = 2, size: int = 2) -> RunView:
    """A run of so many rounds, with snapshots of ``size`` chunks recorded after some of them."""
    bodies: list[Body] = [genesis(parts)]
    for round_ in range(rounds + 1):
        if round_:
            named = tuple(result(p, label=str(round_)) for p in range(parts))
            bodies += [opened(round_, reducers=(0,) * parts), committed(round_, *named)]
        if round_ in snapshots:
            bodies.append(snapshot(round_, blob(f"model{round_}", size)))
    return view_of(*bodies)


def holder(n: int, round_: int, *snapshots: int, parts_from: int = 0, **more: Any) -> Any:
    """A peer that applied a round and keeps its parts, and holds some snapshots."""
    return says(n, round=round_, parts_from=parts_from, snapshots=dict.fromkeys(snapshots, "a" * 64), **more)


def names(view: RunView, round_: int) -> list[str]:
    return [digest for digest, _ in chunks(view.snapshots[round_].files)]


def parts(commit: Commit) -> list[str]:
    return [info.digest for info in commit.parts]


def fetches(effects: list[Effect]) -> list[tuple[str, str]]:
    assert all(isinstance(effect, Fetch) for effect in effects), effects
    return [(e.digest, e.source) for e in effects if isinstance(e, Fetch)]


def asked(effects: list[Effect], digests: list[str]) -> set[str]:
    """Who is asked for some content."""
    return {source for digest, source in fetches(effects) if digest in digests}


def deliver(catchup: Catchup, effects: list[Effect], now: float = 0.0) -> None:
    for effect in effects:
        assert isinstance(effect, Fetch)
        catchup.fetched(effect.digest, True, now)


# -- joining -----------------------------------------------------------------------------------------


def test_there_is_nothing_to_do_before_the_genesis_and_at_the_head() -> None:
    catchup = Catchup(ME, set())
    assert catchup.poll(RunView(), heard(), 0.0) == []
    catchup.applied(2, "state")
    assert catchup.poll(ledger(2, 0), heard(holder(2, 2, 0)), 0.0) == []


def test_a_joiner_loads_a_snapshot_and_applies_every_commit_since() -> None:
    view, swarm = ledger(2, 0), heard(holder(2, 2, 0))
    catchup = Catchup(ME, set())
    wanted = catchup.poll(view, swarm, 0.0)
    assert fetches(wanted) == [(digest, peer_id(2)) for digest in names(view, 0)]
    assert [effect.size for effect in wanted if isinstance(effect, Fetch)] == [4, 3]
    assert catchup.reason == "fetching 2 chunks of the snapshot of round 0"
    deliver(catchup, wanted)
    load, *ahead = catchup.poll(view, swarm, 0.1)
    assert load == LoadSnapshot(view.snapshots[0])
    assert catchup.reason == "loading the snapshot of round 0"
    for round_ in (1, 2):
        assert [digest for digest, _ in fetches(ahead)] == parts(view.commits[round_]), "meanwhile"
        deliver(catchup, ahead)
        ahead = catchup.poll(view, swarm, 0.2)
    assert ahead == [], "one step at a time"
    catchup.applied(0, "s0")
    for round_ in (1, 2):
        assert catchup.poll(view, swarm, 1.1) == [Apply(view.commits[round_])]
        assert catchup.reason == f"applying round {round_}"
        catchup.applied(round_, f"s{round_}")
    assert (catchup.round, catchup.state) == (2, "s2")
    assert catchup.poll(view, swarm, 2.0) == []


def test_a_snapshot_that_is_not_what_it_says_is_given_up_for_another() -> None:
    view = ledger(5, 2, 4)
    swarm = heard(holder(2, 5, 2, 4))
    catchup = Catchup(ME, set(names(view, 4)))
    load, *ahead = catchup.poll(view, swarm, 0.0)
    assert load == LoadSnapshot(view.snapshots[4])
    assert catchup.fetching == 4
    deliver(catchup, ahead)
    catchup.spoilt(4)
    assert catchup.fetching == NO_STATE
    assert asked(catchup.poll(view, swarm, 1.0), names(view, 2)) == {peer_id(2)}
    assert catchup.fetching == 2
    catchup.spoilt(2)
    assert catchup.poll(view, swarm, 2.0) == []
    assert catchup.reason == "waiting for a peer that holds a snapshot of the run"


def test_who_is_behind_fetches_and_applies_round_by_round_and_fetches_ahead() -> None:
    view, swarm = ledger(AHEAD + 3, parts=1), heard(*(holder(n, AHEAD + 3) for n in range(2, 9)))
    catchup = at_round(view, 0)
    wanted = catchup.poll(view, swarm, 0.0)
    assert catchup.reason == "fetching 1 parts of round 1"
    assert [d for d, _ in fetches(wanted)] == [parts(view.commits[r])[0] for r in range(1, FLYING + 1)]
    deliver(catchup, wanted[1:])
    more = catchup.poll(view, swarm, 0.1)
    assert more == [], "no further ahead"
    deliver(catchup, wanted[:1])
    assert catchup.poll(view, swarm, 0.2)[0] == Apply(view.commits[1])


def test_what_may_be_on_its_way_to_us_is_not_fetched_ahead() -> None:
    view, swarm = ledger(2, parts=1), heard(holder(2, 2))
    catchup = at_round(view, 0)
    assert [d for d, _ in fetches(catchup.poll(view, swarm, 0.0, patient=True))] == parts(view.commits[1])


def test_the_newest_snapshot_that_somebody_holds_is_chosen() -> None:
    view = ledger(5, 2, 4)
    both = heard(holder(2, 5, 2), holder(3, 5, 2, 4))
    assert asked(Catchup(ME, set()).poll(view, both, 0.0), names(view, 4)) == {peer_id(3)}
    older = Catchup(ME, set())
    assert fetches(older.poll(view, heard(holder(2, 5, 2)), 0.0)) == [
        (digest, peer_id(2)) for digest in names(view, 2)
    ]


@pytest.mark.parametrize(("missing", "chosen"), [(7, 2), (11, 2), (12, 4), (20, 4)])
def test_a_snapshot_that_is_half_here_is_kept_to_while_a_newer_one_is_further_away(
    missing: int, chosen: int
) -> None:
    # Chunks have 4 bytes, the last one 3; two rounds lie between, each of two parts of 8 bytes.
    view = ledger(5, 2, 4, size=20)
    catchup = Catchup(ME, set(names(view, 2)[: 20 - missing]))
    asked = {digest for digest, _ in fetches(catchup.poll(view, heard(holder(2, 5, 2, 4)), 0.0))}
    assert asked
    assert asked <= set(names(view, chosen))


def test_a_joiner_tells_when_it_will_have_its_state() -> None:
    view, swarm = ledger(4, 4, size=80), heard(holder(2, 4, 4), holder(3, 4, 4))
    catchup = Catchup(ME, set())
    sizes = dict(chunks(view.snapshots[4].files))
    effects, came = catchup.poll(view, swarm, 0.0), 0
    assert catchup.eta_s(0.0) is None
    while effects[0] != LoadSnapshot(view.snapshots[4]):
        for digest, _ in fetches(effects):
            catchup.fetched(digest, True, 1.0)
            came += sizes[digest]
        effects = catchup.poll(view, swarm, 1.0)
        left = sum(size for digest, size in sizes.items() if digest not in catchup.have)
        assert catchup.eta_s(1.0) == pytest.approx(left / came, abs=1e-5)
    assert catchup.eta_s(1.0) == sum(sizes.values()) / LOAD_BYTES_S
    catchup.applied(4, "s4")
    assert catchup.eta_s(1.0) is None


def test_a_snapshot_in_our_own_store_needs_nobody() -> None:
    view = ledger(3, 2)
    catchup = Catchup(ME, set(names(view, 2)) | set(parts(view.commits[3])))
    assert catchup.poll(view, heard(), 0.0) == [LoadSnapshot(view.snapshots[2])]
    catchup.applied(2, "s2")
    assert catchup.poll(view, heard(), 0.0) == [Apply(view.commits[3])]


def test_when_the_holder_of_the_newest_snapshot_dies_an_older_one_does() -> None:
    view = ledger(5, 2, 4)
    swarm = heard(holder(2, 5, 2), holder(3, 5, 4))
    catchup = Catchup(ME, set())
    wanted = catchup.poll(view, swarm, 0.0)
    assert asked(wanted, names(view, 4)) == {peer_id(3)}
    assert swarm.hear(holder(2, 5, 2, beat=1), EXPIRY_S)
    for digest, source in fetches(wanted):
        catchup.fetched(digest, source == peer_id(2), EXPIRY_S)
    assert asked(catchup.poll(view, swarm, EXPIRY_S), names(view, 2)) == {peer_id(2)}


def test_without_a_holder_the_joiner_says_what_it_waits_for() -> None:
    catchup = Catchup(ME, set())
    assert catchup.poll(ledger(1, 0), heard(holder(2, 1)), 0.0) == []
    assert catchup.reason == "waiting for a peer that holds a snapshot of the run"


def test_our_own_announcements_are_no_source() -> None:
    catchup = Catchup(ME, set())
    assert catchup.poll(ledger(1, 0), heard(holder(1, 1, 0)), 0.0) == []


def test_who_is_far_behind_takes_a_snapshot_and_who_is_near_replays() -> None:
    view = ledger(5, 2, 4)
    near, far = Catchup(ME, set()), Catchup(ME, set())
    near.applied(3, "s3")
    far.applied(1, "s1")
    swarm = heard(holder(2, 5, 2, 4))
    assert [d for d, _ in fetches(near.poll(view, swarm, 0.0))] == parts(view.commits[4])
    assert [d for d, _ in fetches(far.poll(view, swarm, 0.0))] == names(view, 4)


def test_parts_that_nobody_has_any_more_are_jumped_over_by_a_snapshot() -> None:
    view = ledger(5, 2, 4)
    catchup = Catchup(ME, set())
    catchup.applied(3, "s3")
    swarm = heard(holder(2, 5, 4, parts_from=5))
    assert [d for d, _ in fetches(catchup.poll(view, swarm, 0.0))] == names(view, 4)


# -- sources -----------------------------------------------------------------------------------------


def at_round(view: RunView, round_: int, have: set[str] | None = None) -> Catchup:
    catchup = Catchup(ME, have if have is not None else set())
    catchup.applied(round_, "state")
    assert catchup.round < view.round
    return catchup


def test_content_comes_from_several_peers_at_once_within_bounds() -> None:
    view = ledger(1, parts=20)
    swarm = heard(*(holder(n, 1) for n in range(2, 9)))
    catchup = at_round(view, 0)
    asked = fetches(catchup.poll(view, swarm, 0.0))
    assert len(asked) == FLYING
    load = [source for _, source in asked]
    assert max(load.count(source) for source in load) - min(load.count(s) for s in load) <= 1
    assert catchup.poll(view, swarm, 0.1) == []
    catchup.fetched(asked[0][0], True, 0.2)
    assert len(fetches(catchup.poll(view, swarm, 0.2))) == 1


def test_one_source_is_not_asked_for_everything_at_once() -> None:
    view = ledger(1, parts=20)
    catchup = at_round(view, 0)
    assert len(fetches(catchup.poll(view, heard(holder(2, 1)), 0.0))) == FLYING_PER_SOURCE


def test_everything_comes_in_the_end() -> None:
    view = ledger(1, parts=20)
    swarm = heard(holder(2, 1), holder(3, 1))
    catchup = at_round(view, 0)
    got: list[str] = []
    for _ in range(20):
        effects = catchup.poll(view, swarm, 0.0)
        if effects == [Apply(view.commits[1])]:
            break
        got += [digest for digest, _ in fetches(effects)]
        deliver(catchup, effects)
    assert got == parts(view.commits[1]), "each once, in order"


def test_failing_sources_take_turns_after_a_pause() -> None:
    view = ledger(1, parts=1)
    swarm = heard(*(holder(n, 1) for n in (2, 3, 4)))
    catchup = at_round(view, 0)
    digest = parts(view.commits[1])[0]
    asked = []
    for turn in range(6):
        now = turn * RETRY_S
        [(_, source)] = fetches(catchup.poll(view, swarm, now))
        asked.append(source)
        assert catchup.manifest == {digest: turn + 1}
        catchup.fetched(digest, False, now)
        assert catchup.poll(view, swarm, now + RETRY_S - 0.01) == []
    assert set(asked) == {peer_id(2), peer_id(3), peer_id(4)}
    assert all(a != b for a, b in itertools.pairwise(asked))


def test_a_source_that_failed_is_asked_after_all_others_for_a_while() -> None:
    view = ledger(1, parts=1)
    swarm = heard(*(holder(n, 2) for n in (2, 3)))
    catchup = at_round(view, 0)
    [(digest, silent)] = fetches(catchup.poll(view, swarm, 0.0))
    catchup.fetched(digest, False, 0.5)
    [(_, other)] = fetches(catchup.poll(view, swarm, 0.5 + RETRY_S))
    assert other != silent
    catchup.fetched(digest, True, 2.0)
    catchup.applied(1, "")
    view = ledger(2, parts=1)
    [(digest, source)] = fetches(catchup.poll(view, swarm, 2.0))
    assert source == other, "also for other content"
    catchup.fetched(digest, False, 2.5)
    [(_, source)] = fetches(catchup.poll(view, swarm, 2.5 + RETRY_S))
    assert source in (silent, other), "rather than nobody, anybody is asked"


def test_parts_spread_over_peers_none_of_which_has_applied_the_round() -> None:
    view = ledger(1)
    first, second = view.commits[1].parts
    swarm = heard(holder(2, 0, held=(first,)), holder(3, 0, held=(second,)))
    assert fetches(at_round(view, 0).poll(view, swarm, 0.0)) == [
        (first.digest, peer_id(2)),
        (second.digest, peer_id(3)),
    ]


def test_a_part_that_nobody_has_is_waited_for_while_the_others_come() -> None:
    view = ledger(1)
    first, _ = view.commits[1].parts
    catchup = at_round(view, 0)
    assert fetches(catchup.poll(view, heard(holder(2, 0, held=(first,))), 0.0)) == [
        (first.digest, peer_id(2))
    ]
    assert catchup.reason == "waiting for a peer that holds the 1 parts of round 1 missing here"


def test_the_same_bytes_twice_in_a_round_are_fetched_once() -> None:
    same = result(0)
    twin = type(same)(1, same.digest, same.size, same.contributors)
    view = view_of(genesis(), opened(), committed(1, same, twin))
    catchup = at_round(view, 0)
    assert fetches(catchup.poll(view, heard(holder(2, 1)), 0.0)) == [(same.digest, peer_id(2))]
    catchup.fetched(same.digest, True, 0.0)
    assert catchup.poll(view, heard(), 0.0) == [Apply(view.commits[1])]


def test_each_peer_begins_with_another_source() -> None:
    """Else all that lack the same would ask the same one first."""
    view, swarm = ledger(1, parts=1), heard(*(holder(n, 1) for n in range(2, 8)))
    asked = []
    for turn in range(12):
        catchup = Catchup(f"{turn:08x}" + "0" * 56, set())
        catchup.applied(0, "state")
        [(_, source)] = fetches(catchup.poll(view, swarm, 0.0))
        asked.append(source)
    assert asked[:6] == [peer_id(n) for n in range(2, 8)]
    assert asked[6:] == asked[:6]


# -- patience ----------------------------------------------------------------------------------------


def test_parts_of_the_last_round_that_are_on_their_way_are_waited_for() -> None:
    view, swarm = ledger(2), heard(holder(2, 2))
    first, second = parts(view.commits[2])
    catchup = at_round(view, 1)
    assert catchup.poll(view, swarm, 0.0, patient=True) == []
    assert catchup.reason == "waiting for 2 parts of round 2"
    catchup.fetched(first, True, 0.1)
    assert catchup.poll(view, swarm, 0.1, patient=True) == []
    assert catchup.reason == "waiting for 1 parts of round 2"
    assert fetches(catchup.poll(view, swarm, 0.2, patient=False)) == [(second, peer_id(2))]


def test_once_they_are_here_nothing_is_waited_for() -> None:
    view = ledger(2)
    catchup = at_round(view, 1, set(parts(view.commits[2])))
    assert catchup.poll(view, heard(holder(2, 2)), 0.0, patient=True) == [Apply(view.commits[2])]


@pytest.mark.parametrize("round_", [NO_STATE, 0])
def test_nobody_who_is_further_behind_waits(round_: int) -> None:
    """What it lacks first is on no way to it."""
    view, swarm = ledger(2, 0), heard(holder(2, 2, 0))
    catchup = Catchup(ME, set())
    if round_ != NO_STATE:
        catchup.applied(round_, "state")
    assert fetches(catchup.poll(view, swarm, 0.0, patient=True))


# -- damage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snapshots", [(), (0,)])
def test_damaged_content_is_fetched_again(snapshots: tuple[int, ...]) -> None:
    view, swarm = ledger(1, *snapshots), heard(holder(2, 1, *snapshots))
    catchup = at_round(view, 0, set(parts(ledger(1).commits[1])))
    assert catchup.poll(view, swarm, 0.0) == [Apply(view.commits[1])]
    lost = parts(view.commits[1])[1]
    catchup.missing((lost,))
    assert catchup.round == 0
    assert fetches(catchup.poll(view, swarm, 0.0)) == [(lost, peer_id(2))]


def test_a_state_that_drifted_is_taken_from_the_others_again() -> None:
    view, swarm = ledger(3, 0, 2), heard(holder(2, 3, 0, 2))
    catchup = Catchup(ME, set())
    catchup.applied(3, "wrong")
    assert catchup.poll(view, swarm, 0.0) == []
    catchup.drifted()
    assert (catchup.round, catchup.state) == (NO_STATE, "")
    deliver(catchup, catchup.poll(view, swarm, 0.0))
    assert catchup.poll(view, swarm, 0.0)[0] == LoadSnapshot(view.snapshots[2])


def test_an_answer_that_nobody_waits_for_any_more_is_kept_all_the_same() -> None:
    catchup = Catchup(ME, set())
    catchup.fetched("a" * 64, True, 0.0)
    catchup.fetched("b" * 64, False, 0.0)
    assert catchup.have == {"a" * 64}


def test_chunks_name_every_piece_of_every_file_in_order() -> None:
    one, two = blob("one"), blob("two", 1)
    assert list(chunks((one, two))) == [(one.chunks[0], 4), (one.chunks[1], 3), (two.chunks[0], 3)]
