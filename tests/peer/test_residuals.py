"""A peer that leaves and comes back owes what it did, to the bit; once, and only while it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from potluck.peer.dataplane import MAX_SHARE
from potluck.peer.layout import Layout, carried
from potluck.peer.residuals import Returning, found, kept, settled
from potluck.peer.state import PeerState, genesis_of
from potluck.protocol.view import RunView
from potluck.recipe import Outer, Recipe, Rounds
from potluck.store.contents import MemoryStore
from potluck.store.residuals import Owed, ResidualsFile, Whose
from potluck.wire.codec import WIRE
from potluck.wire.records import Commit, Member, PartInfo, Snapshot, TensorSpec

N, PARTS = 41, 3
LAYOUT = Layout(N, PARTS)
BOUNDS = LAYOUT.bounds
TENSORS = (TensorSpec("w", (N,)),)


def values(seed: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(N)).astype(np.float32)


class Peer:
    """One life of one peer, and its disk."""

    def __init__(self, directory: Path, codec: str = "topk", keeps: bool = False) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        rounds = Rounds(codec=codec, parts=PARTS, keeps=keeps)
        self.recipe = Recipe(outer=Outer("nesterov"), rounds=rounds)
        self.genesis = genesis_of("run", self.recipe, TENSORS, values(0), WIRE)
        self.file = ResidualsFile(directory, Whose("run", directory.name, codec, N, PARTS))
        self.store = MemoryStore()
        self.snapshot: Snapshot
        self.state = PeerState(self.store, self.recipe, self.genesis)
        self.local = values(0)

    def begin(self) -> Peer:
        self.state.begin(values(0), np.zeros(N, np.float32), 0)
        return self

    def leave(self) -> str:
        """As a node does when its tasks have ended."""
        self.snapshot = self.state.write_snapshot()
        return kept(self.file, self.state.owed(), self.state.sent, over=False)

    def come_back(self, load: Snapshot | None = None) -> list[str]:
        """Another process with the same disk: its state is that of the snapshot, its model too."""
        self.state = PeerState(self.store, self.recipe, self.genesis)
        self.state.returning = found(self.file, LAYOUT)
        carry = self.state.load(load or self.snapshot)
        self.local = carry.theta.copy()
        return self.state.returning.news()

    @property
    def up(self) -> np.ndarray:
        assert self.state.plane is not None
        return self.state.plane._up.residual

    @property
    def down(self) -> dict[int, np.ndarray]:
        assert self.state.plane is not None
        return {part: feedback.residual for part, feedback in self.state.plane._down.items()}


class Team:
    """Peers that train, exchange and apply, with nothing between them but function calls."""

    def __init__(self, directory: Path, codec: str = "topk", keeps: bool = False) -> None:
        directory.mkdir(exist_ok=True)
        self.peers = [Peer(directory / str(index), codec, keeps).begin() for index in range(3)]
        self.round = 0

    def cut(self, members: Sequence[int] = (0, 1, 2)) -> None:
        """All train, and give what they did."""
        self.round += 1
        for place, index in enumerate(members):
            peer = self.peers[index]
            peer.local = peer.local + values(100 * self.round + index, 0.1)
            assert peer.state.cut(self.round, 0, place, peer.local.copy(), 10.0 + index)

    def reduce(self, members: Sequence[int] = (0, 1, 2), reducers: Sequence[int] = (0, 1, 2)) -> Commit:
        """Each part by its reducer; everybody gets the result."""
        infos = []
        for part, reducer in enumerate(reducers):
            for place, index in enumerate(members):
                given = self.peers[index].state.contribution(self.round, 0, part)
                assert given is not None
                self.peers[reducer].state.take(self.round, 0, part, place, given)
            info, _ = self.peers[reducer].state.reduce(self.round, 0, part, range(len(members)))
            assert info is not None
            raw = self.peers[reducer].store.get(info.digest)
            assert raw is not None
            for peer in self.peers:
                peer.store.put(raw)
            infos.append(info)
        return Commit(self.round, 0, tuple(infos), 33, None, "")

    def apply(self, commit: Commit, peers: Sequence[int] = (0, 1, 2)) -> None:
        for index in peers:
            peer = self.peers[index]
            peer.local = carried(peer.local, [peer.state.apply(commit)])

    def rounds(self, count: int) -> None:
        for _ in range(count):
            self.cut()
            self.apply(self.reduce())

    @property
    def states(self) -> list[str]:
        return [peer.state.plane.digest for peer in self.peers if peer.state.plane is not None]


def everything(team: Team) -> list[bytes]:
    """State, residuals and models, to the bit."""
    found = [peer.local.tobytes() for peer in team.peers] + [peer.up.tobytes() for peer in team.peers]
    for peer in team.peers:
        found += [values.tobytes() for _, values in sorted(peer.down.items())]
    return [*found, *(state.encode() for state in team.states)]


@pytest.mark.parametrize("codec", ["topk", "int4", "int8"])
def test_who_left_and_came_back_ends_where_it_would_have_to_the_bit(tmp_path: Path, codec: str) -> None:
    stayed, left = Team(tmp_path / "a", codec), Team(tmp_path / "b", codec)
    for team in (stayed, left):
        team.rounds(3)
    one = left.peers[1]
    before = one.up.copy()
    assert "kept in" in one.leave()
    assert one.file.path.exists()
    assert "taken up again" in one.come_back()[0]
    assert not one.file.path.exists(), "never twice"
    assert np.abs(one.up).max() > 0
    np.testing.assert_array_equal(one.up, before)
    for team in (stayed, left):
        team.rounds(3)
    assert everything(stayed) == everything(left)


def test_without_its_residuals_it_would_end_elsewhere(tmp_path: Path) -> None:
    stayed, left = Team(tmp_path / "a"), Team(tmp_path / "b")
    for team in (stayed, left):
        team.rounds(3)
    left.peers[1].leave()
    left.peers[1].file.remove()
    assert left.peers[1].come_back() == []
    for team in (stayed, left):
        team.rounds(3)
    assert everything(stayed) != everything(left)


def test_a_model_that_keeps_what_was_not_sent_has_it_again(tmp_path: Path) -> None:
    """To a rounding, since the model is put together anew; and nothing of it counts twice."""
    stayed, left = Team(tmp_path / "a", keeps=True), Team(tmp_path / "b", keeps=True)
    for team in (stayed, left):
        team.rounds(3)
    left.peers[1].leave()
    left.peers[1].come_back()
    np.testing.assert_allclose(left.peers[1].local, stayed.peers[1].local, atol=2e-6)
    for team in (stayed, left):
        team.rounds(1)
    assert np.abs(left.peers[1].local - left.peers[1].state.plane.theta).max() > 0.01  # type: ignore[union-attr]
    np.testing.assert_allclose(left.peers[1].local, stayed.peers[1].local, atol=1e-5)


def test_what_a_model_begins_with_that_does_not_train_yet(tmp_path: Path) -> None:
    team = Team(tmp_path / "a", keeps=True)
    team.rounds(2)
    one = team.peers[1]
    one.leave()
    one.come_back()
    team.cut((0, 2))
    commit = team.reduce((0, 2), (0, 0, 2))
    model = one.local.copy()
    carry = one.state.apply(commit)
    afresh = one.state.afresh(carry)
    assert afresh.origin is None
    np.testing.assert_allclose(afresh.theta, carried(model, [carry]), atol=2e-6)
    assert one.state.plane is not None
    assert np.abs(afresh.theta - one.state.plane.theta).max() > 0.01


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("codec", ["topk", "int4"])
def test_what_was_in_flight_is_settled_by_the_commit(tmp_path: Path, codec: str, counts: bool) -> None:
    """It left after its part of the exchange: whether that counts, the commit tells its next life."""
    stayed, left = Team(tmp_path / "a", codec), Team(tmp_path / "b", codec)
    for team in (stayed, left):
        team.rounds(2)
        team.cut()
    before = left.peers[1].up.copy()
    commits = [team.reduce() for team in (stayed, left)]
    one = left.peers[1]
    one.leave()
    left.apply(commits[1], (0, 2))
    assert one.come_back() == [], "nobody knows yet"
    np.testing.assert_array_equal(one.up, 0)
    if counts:
        stayed.apply(commits[0])
        left.apply(commits[1], (1,))
        assert everything(stayed) == everything(left)
    else:
        without = tuple(replace_info(info) for info in commits[1].parts)
        one.state.apply(Commit(left.round, 1, without, 33, None, ""))
        np.testing.assert_array_equal(one.up, before)
    assert "taken up again" in one.state.returning.news()[0]


def replace_info(info: PartInfo) -> PartInfo:
    """The same of another attempt, in which we are not."""
    return PartInfo(info.part, info.digest, info.size, ((0, 10.0),))


def test_while_it_is_away_others_reduce_and_it_still_owes_what_it_did(tmp_path: Path) -> None:
    team = Team(tmp_path / "a")
    team.rounds(3)
    one = team.peers[1]
    up, down = one.up.copy(), one.down[1].copy()
    one.leave()
    for _ in range(2):
        team.cut((0, 2))
        commit = team.reduce((0, 2), (0, 0, 2))
        team.apply(commit, (0, 2))
        one.come_back()
        assert one.state.plane is not None
        one.state.apply(commit)
        np.testing.assert_array_equal(one.up, up)
        np.testing.assert_array_equal(one.down[1], down)
        one.leave()
    one.come_back()
    team.cut()
    before = one.up + sum_of_losses(one, team)
    commit = team.reduce(reducers=(0, 0, 2))
    team.apply(commit)
    share = np.float32(min(33.0 / 11.0, MAX_SHARE))
    np.testing.assert_allclose(one.up[BOUNDS[1]], before[BOUNDS[1]] + share * down, atol=1e-6)
    assert 1 not in one.down, "handed on, once"


def sum_of_losses(one: Peer, team: Team) -> np.ndarray:
    """What the contribution in flight loses over what is owed before it."""
    plane = one.state.plane
    assert plane is not None
    assert plane._cut is not None
    for part in range(PARTS):
        assert plane.contribution(team.round, 0, part), "in its place is then what that lost"
    lost: np.ndarray = plane._cut.total - one.up
    return lost


# -- what does not hold ------------------------------------------------------------------------------


def gone(tmp_path: Path) -> Peer:
    """A peer that has left after two rounds."""
    team = Team(tmp_path / "a")
    team.rounds(2)
    team.peers[1].leave()
    return team.peers[1]


def test_of_another_history_of_the_run_they_are_dropped(tmp_path: Path) -> None:
    one, other = gone(tmp_path), Team(tmp_path / "b")
    other.peers[0].local += 1
    other.rounds(2)
    snapshot = other.peers[1].state.write_snapshot()
    one.store = other.peers[1].store
    [said] = one.come_back(snapshot)
    assert "round 2 is another than theirs" in said
    np.testing.assert_array_equal(one.up, 0)
    assert not one.file.path.exists()


def test_who_comes_back_by_a_later_state_owes_nothing(tmp_path: Path) -> None:
    team = Team(tmp_path / "a")
    team.rounds(2)
    one = team.peers[1]
    one.leave()
    team.peers[1] = Peer(tmp_path / "another").begin()
    team.round = 0
    later = Team(tmp_path / "later")
    later.rounds(3)
    one.store = later.peers[0].store
    [said] = one.come_back(later.peers[0].state.write_snapshot())
    assert "by a later state, of round 3" in said
    np.testing.assert_array_equal(one.up, 0)


def test_a_copy_of_a_disk_that_was_used_since_gives_nothing(tmp_path: Path) -> None:
    one = gone(tmp_path)
    view, peer = RunView(), "a" * 64
    infos = tuple(PartInfo(part, "d" * 64, 1, ((1, 1.0),)) for part in range(PARTS))
    view.commits = {3: Commit(3, 0, infos, 1, None, "")}
    for session, waits in (("later", False), ("of another", True)):
        whose = peer if not waits else "b" * 64
        view.members = {3: (Member("c" * 64, "s"), Member(whose, session))}
        returning = Returning(one.file.read() if one.file.path.exists() else owed(), LAYOUT, one.file.remove)
        returning.compare(view, peer)
        assert returning.waiting == waits
        assert [("later life" in said) for said in returning.news()] == ([] if waits else [True])


def owed(**more: object) -> Owed:
    return replace(Owed(2, "s" * 64, values(1)), **more)  # type: ignore[arg-type]


def test_a_contribution_of_the_life_that_left_is_no_later_one() -> None:
    view = RunView()
    infos = tuple(PartInfo(part, "d" * 64, 1, ((0, 1.0),)) for part in range(PARTS))
    view.commits = {3: Commit(3, 1, infos, 1, None, "")}
    view.members = {3: (Member("a" * 64, "left"),)}
    for flying, waits in (((3, 1, 0), True), ((3, 0, 0), False), ((3, 1, 1), False), (None, False)):
        returning = Returning(owed(flying=flying), LAYOUT, lambda: None)
        returning.compare(view, "a" * 64)
        assert returning.waiting == waits


def test_what_is_torn_or_of_another_size_is_said_and_stops_nobody(tmp_path: Path) -> None:
    one = gone(tmp_path)
    raw = one.file.path.read_bytes()
    one.file.path.write_bytes(raw[:-3])
    [said] = one.come_back()
    assert "are dropped: it should end at byte" in said
    np.testing.assert_array_equal(one.up, 0)
    assert one.state.plane is not None
    one.file.write(owed(state=one.state.plane.digest, down={0: np.ones(2, np.float32)}))
    [said] = one.come_back()
    assert "of another size" in said


def test_a_file_that_can_not_be_removed_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = gone(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "unlink", refuse)
    [said] = one.come_back()
    assert "has to be removed first" in said
    assert "no permission" in said
    np.testing.assert_array_equal(one.up, 0)


# -- accounting --------------------------------------------------------------------------------------


def test_leaving_says_how_large_what_is_not_sent_is_and_what_becomes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ResidualsFile(tmp_path, Whose("run", "p", "topk", 2, 1))
    owes = Owed(1, "s", np.array([3, 4], np.float32))
    assert kept(file, owes, 2.0, over=False).startswith(
        "not sent yet for compression (2.5 times what the last"
    )
    assert f"kept in {file.path} until this peer comes back" in kept(file, owes, 2.0, over=False)
    assert "norm 5" in kept(file, owes, 0.0, over=False)
    assert "lost, for the run is over" in kept(file, owes, 2.0, over=True)
    assert not file.path.exists()
    file.write(owes)
    assert "is kept as it was" in kept(file, None, 0.0, over=False)
    assert file.path.exists()
    assert kept(file, Owed(1, "s", np.zeros(2, np.float32)), 2.0, over=False) == "nothing is left unsent"
    assert not file.path.exists(), "what an earlier life left does not hold any more"

    def full(*_: object) -> None:
        raise OSError(28, "")

    monkeypatch.setattr(os, "fsync", full)
    assert "lost, for can't write" in kept(file, owes, 2.0, over=False)


def test_what_was_sent_lately_is_the_last_contribution_of_each_part(tmp_path: Path) -> None:
    team = Team(tmp_path / "a")
    assert team.peers[1].state.sent == 0
    team.cut()
    plane = team.peers[1].state.plane
    assert plane is not None
    raws = [plane.contribution(1, 0, part) or b"" for part in range(PARTS)]
    sent = np.concatenate([plane.codec.decode(raw, LAYOUT.size(1, part)) for part, raw in enumerate(raws)])
    team.apply(team.reduce())
    assert team.peers[1].state.sent == pytest.approx(float(np.linalg.norm(sent)), rel=1e-6)


def test_a_part_that_counts_though_nobody_knows_what_was_sent_of_it_is_lost_and_not_doubled() -> None:
    infos = tuple(PartInfo(part, "d" * 64, 1, ((0, 1.0),)) for part in range(PARTS))
    half = {0: np.ones(N // PARTS, np.float32)}
    found = settled(owed(flying=(3, 0, 0), counted=half), Commit(3, 0, infos, 1, None, ""), LAYOUT)
    np.testing.assert_array_equal(found.up, np.repeat(np.float32([1, 0]), [13, N - 13]))
