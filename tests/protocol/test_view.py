"""The fold over the ledger: what a record does, and each reason for which one is skipped by everybody."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from potluck.protocol.view import KEEP_SNAPSHOTS, MAX_WEIGHT, RunView
from potluck.wire.codec import WIRE
from potluck.wire.records import Body, Finish, Move, PartInfo, Unreadable

from .support import Ledger, blob, committed, genesis, member, moved, opened, result, snapshot, view_of

GENESIS, OPEN, COMMIT = genesis(), opened(), committed()
OVER = Finish(0, "enough")


@pytest.mark.parametrize(
    ("before", "body", "reason"),
    [
        ([], OPEN, "it comes before the genesis"),
        ([], snapshot(0), "it comes before the genesis"),
        ([], genesis(wire=WIRE + 1), f"it is of wire version {WIRE + 1}, and this release speaks {WIRE}"),
        ([], genesis(wire=WIRE - 1), f"it is of wire version {WIRE - 1}, and this release speaks {WIRE}"),
        ([], Unreadable("it can't be read: garbage"), "it can't be read: garbage"),
        ([GENESIS], Unreadable("it can't be read: garbage"), "it can't be read: garbage"),
        ([GENESIS], genesis(), "the run has a genesis already"),
        ([GENESIS, OVER], OPEN, "the run is over"),
        ([GENESIS, OVER], OVER, "the run is over"),
        ([GENESIS, OPEN, OVER], COMMIT, "the run is over"),
        ([GENESIS], opened(2), "round 1, attempt 0 is due, not 2, 0"),
        ([GENESIS], opened(1, attempt=1), "round 1, attempt 0 is due, not 1, 1"),
        ([GENESIS, OPEN], opened(1), "round 1, attempt 1 is due, not 1, 0"),
        ([GENESIS, OPEN, COMMIT], opened(1), "round 2, attempt 0 is due, not 1, 0"),
        ([GENESIS], opened(members=(1, 1)), "it names a member twice"),
        ([GENESIS], opened(reducers=(0,)), "its plan does not give every part to a member"),
        ([GENESIS], opened(reducers=(0, 1, 0)), "its plan does not give every part to a member"),
        ([GENESIS], opened(reducers=(0, 2)), "its plan does not give every part to a member"),
        ([GENESIS], opened(grace_s=0), "its grace period is no time"),
        ([GENESIS], opened(grace_s=math.inf), "its grace period is no time"),
        ([GENESIS], opened(grace_s=math.nan), "its grace period is no time"),
        ([GENESIS], opened(groups=3), "it has more groups than members"),
        ([GENESIS], moved((0, 1)), "its round is not open"),
        ([GENESIS, OPEN], moved((0, 1), round_=2), "its round is not open"),
        ([GENESIS, OPEN], moved((0, 1), attempt=1), "its round is not open"),
        ([GENESIS, OPEN], moved((2, 1)), "it moves part 2 to member 1, and there is no such thing"),
        ([GENESIS, OPEN], moved((0, 1), (1, 2)), "it moves part 1 to member 2, and there is no such thing"),
        ([GENESIS], COMMIT, "its round is not open"),
        ([GENESIS, OPEN], committed(2), "its round is not open"),
        ([GENESIS, OPEN], committed(1, attempt=1), "its round is not open"),
        ([GENESIS, OPEN], committed(1, result(0)), "it does not name each part once, in order"),
        ([GENESIS, OPEN], committed(1, result(1), result(0)), "it does not name each part once, in order"),
        ([GENESIS, OPEN], committed(1, result(0), result(0)), "it does not name each part once, in order"),
        ([GENESIS], snapshot(1), "its round is not committed"),
        ([GENESIS, snapshot(0)], snapshot(0), "a snapshot as new as this one is recorded already"),
    ],
)
def test_a_record_that_does_not_fit_is_skipped(before: list[Body], body: Body, reason: str) -> None:
    ledger, view = Ledger(), RunView()
    for earlier in before:
        assert view.follow(ledger.add(earlier)) is None
    state = {name: value for name, value in vars(view).items() if name != "sequence"}
    snapshot_of_state = repr(state)
    assert view.follow(ledger.add(body)) == reason
    assert (
        repr({name: value for name, value in vars(view).items() if name != "sequence"}) == snapshot_of_state
    )
    assert view.sequence == len(before) + 1


@pytest.mark.parametrize(
    ("contributors", "reason"),
    [
        ((), "part 1 has contributors []: not members, each at most once"),
        (((0, 1.0), (0, 1.0)), "part 1 has contributors [0, 0]: not members, each at most once"),
        (((1, 1.0), (0, 1.0)), "part 1 has contributors [1, 0]: not members, each at most once"),
        (((0, 1.0), (2, 1.0)), "part 1 has contributors [0, 2]: not members, each at most once"),
        (((0, 0.0),), "part 1 has a weight that is no number of tokens"),
        (((0, -1.0),), "part 1 has a weight that is no number of tokens"),
        (((0, math.nan),), "part 1 has a weight that is no number of tokens"),
        (((0, math.inf),), "part 1 has a weight that is no number of tokens"),
        (((0, 2.0 * MAX_WEIGHT),), "part 1 has a weight that is no number of tokens"),
    ],
)
def test_a_member_counts_at_most_once_in_a_part(
    contributors: tuple[tuple[int, float], ...], reason: str
) -> None:
    bad = PartInfo(1, result(1).digest, 8, contributors)
    view = view_of(GENESIS, OPEN)
    ledger = Ledger()
    for body in (GENESIS, OPEN):
        ledger.add(body)
    assert view.follow(ledger.add(committed(1, result(0), bad))) == reason
    assert view.round == 0
    assert view.open is not None


def test_a_snapshot_whose_chunks_contradict_its_size_is_skipped() -> None:
    ledger, view = Ledger(), RunView()
    assert view.follow(ledger.add(GENESIS)) is None
    reason = view.follow(ledger.add(snapshot(0, replace(blob(), size=100))))
    assert reason is not None
    assert "made that up" in reason
    assert view.snapshots == {}


def test_the_life_of_a_round() -> None:
    view = view_of(GENESIS, OPEN)
    assert view.open is not None
    assert view.open.index(member(2)) == 1
    assert view.open.index(member(2, "later")) is None
    view = view_of(GENESIS, OPEN, moved((1, 0)))
    assert view.open is not None
    assert view.open.reducers == (0, 0)
    commit = committed(1, tokens=100)
    view = view_of(GENESIS, OPEN, moved((1, 0)), replace(commit, loss=2.5))
    assert (view.round, view.open, view.tokens, view.loss) == (1, None, 100, 2.5)
    assert view.members == {1: (member(1), member(2))}
    assert view.last_plan == {0: member(1), 1: member(1)}


def test_a_move_changes_nothing_in_the_run() -> None:
    ledger, view, still = Ledger(), RunView(), RunView()
    for body in (GENESIS, OPEN):
        entry = ledger.add(body)
        view.follow(entry)
        still.follow(entry)
    assert view.follow(ledger.add(Move(2, b"", "three hubs"))) is None
    assert view.sequence == still.sequence + 1
    assert (view.open, view.round, view.genesis) == (still.open, still.round, still.genesis)


def test_a_loss_stays_until_a_commit_brings_another() -> None:
    first, second = replace(committed(1), loss=2.5), committed(2)
    assert view_of(GENESIS, OPEN, first, opened(2), second).loss == 2.5


def test_an_attempt_replaces_the_one_before() -> None:
    view = view_of(GENESIS, OPEN, opened(1, (2, 3), attempt=1))
    assert view.open is not None
    assert (view.open.attempt, view.open.members, view.reopened) == (1, (member(2), member(3)), 1)


def test_what_came_before_the_older_snapshot_is_forgotten() -> None:
    bodies: list[Body] = [GENESIS, snapshot(0)]
    for round_ in range(1, 7):
        bodies += [opened(round_), committed(round_)]
        if round_ % 2 == 0:
            bodies.append(snapshot(round_))
    view = view_of(*bodies)
    assert KEEP_SNAPSHOTS == 2
    assert sorted(view.snapshots) == [4, 6]
    assert sorted(view.commits) == sorted(view.members) == [5, 6]


def test_the_end_closes_the_open_round_and_leaves_room_for_a_last_snapshot() -> None:
    view = view_of(GENESIS, OPEN, COMMIT, opened(2), Finish(1, "enough"), snapshot(1))
    assert view.finished is not None
    assert (view.finished.reason, view.open, sorted(view.snapshots)) == ("enough", None, [1])


# -- commits in few bytes ----------------------------------------------------------------------------


def test_a_commit_counts_the_same_however_it_is_written() -> None:
    whole = committed(1, result(0), result(1, (1, 40.0)))
    short, long = view_of(GENESIS, OPEN, whole.abridged()), view_of(GENESIS, OPEN, whole)
    assert whole.abridged() != whole
    assert short.commits == long.commits == {1: whole}


@pytest.mark.parametrize(
    ("weights", "without"),
    [
        ((), ()),
        (((0, 60.0), (1, 40.0)), (0, 1)),
        (((0, 60.0), (0, 40.0)), ()),
        (((1, 60.0), (0, 40.0)), ()),
        (((0, 60.0), (2, 40.0)), ()),
        (((0, 60.0), (1, math.nan)), ()),
        (((0, 60.0), (1, 0.0)), ()),
        (((0, 60.0), (1, 2.0 * MAX_WEIGHT)), ()),
    ],
)
def test_a_commit_whose_weights_can_not_be_is_skipped(
    weights: tuple[tuple[int, float], ...], without: tuple[int, ...]
) -> None:
    short = committed().abridged()
    parts = tuple(replace(info, without=without) for info in short.parts)
    ledger, view = Ledger(), view_of(GENESIS, OPEN)
    for body in (GENESIS, OPEN):
        ledger.add(body)
    assert view.follow(ledger.add(replace(short, parts=parts, weights=weights)))
    assert view.open is not None
