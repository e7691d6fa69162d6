"""What a peer has, on a real disk: contributions that come, rounds that are applied, content that is torn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from potluck.codecs.base import exactly
from potluck.errors import CorruptData, RecipeError, StoreError
from potluck.optim.state import state_digest
from potluck.peer.state import Contribution, Missing, PeerState, genesis_of
from potluck.recipe import Outer, Recipe, Rounds
from potluck.store.contents import MemoryStore
from potluck.store.store import Store
from potluck.wire.codec import WIRE
from potluck.wire.records import Commit, Snapshot, TensorSpec

TENSORS = (TensorSpec("a.weight", (6, 5)), TensorSpec("b.bias", (10,)), TensorSpec("c.scale", ()))
N, PARTS = 41, 3
RECIPE = Recipe(outer=Outer("nesterov"), rounds=Rounds(codec="int8", parts=PARTS))


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


GENESIS = genesis_of("run", RECIPE, TENSORS, values(0), WIRE)


def fresh(directory: Path) -> PeerState:
    return PeerState(Store(directory), RECIPE, GENESIS)


def founded(directory: Path) -> PeerState:
    state = fresh(directory)
    state.begin(values(0), np.zeros(N, np.float32), 0)
    return state


@pytest.fixture
def pair(tmp_path: Path) -> tuple[PeerState, PeerState]:
    return founded(tmp_path / "one"), founded(tmp_path / "two")


def gather(states: tuple[PeerState, ...], round_: int = 1, attempt: int = 0) -> None:
    """Everybody cuts, and the first one gets the others' contributions."""
    for index, state in enumerate(states):
        assert state.cut(round_, attempt, index, values(10 * round_ + index), 100.0 + index)
    for index, state in enumerate(states[1:], 1):
        for part in range(PARTS):
            found = state.contribution(round_, attempt, part)
            assert found is not None
            states[0].take(round_, attempt, part, index, found)


def reduced(states: tuple[PeerState, ...], round_: int = 1) -> Commit:
    """A whole round, up to a commit whose parts are in the first one's store."""
    gather(states, round_)
    infos = []
    for part in range(PARTS):
        info, refused = states[0].reduce(round_, 0, part, range(len(states)))
        assert refused == ()
        assert info is not None
        infos.append(info)
    return Commit(round_, 0, tuple(infos), 201, None, "")


def share(commit: Commit, source: PeerState, *others: PeerState) -> None:
    for info in commit.parts:
        raw = source.store.get(info.digest)
        assert raw is not None
        for other in others:
            other.store.put(raw)


def damage(state: PeerState, digest: str) -> None:
    """One bit of a file flips."""
    assert isinstance(state.store, Store)
    path = state.store.directory / digest[:2] / digest
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


# -- the genesis -------------------------------------------------------------------------------------


def test_the_genesis_describes_the_first_state() -> None:
    assert GENESIS.state == state_digest(0, values(0), np.zeros(N, np.float32))
    assert (GENESIS.parts, GENESIS.tensors) == (PARTS, TENSORS)
    assert Recipe.from_toml(GENESIS.recipe) == RECIPE
    tiny = genesis_of("run", RECIPE, TENSORS[2:], values(0)[:1], WIRE)
    assert tiny.parts == 1, "there are no more parts than values"


@pytest.mark.parametrize(
    ("fragments", "parts", "due"), [(1, 3, 11), (1, 16, 16), (4, 1, 3), (4, 30, 10), (41, 9, 1)]
)
def test_no_part_of_a_fragment_is_too_large_or_empty(
    monkeypatch: pytest.MonkeyPatch, fragments: int, parts: int, due: int
) -> None:
    monkeypatch.setattr("potluck.peer.state.PART_VALUES", 4)
    recipe = Recipe(rounds=Rounds(fragments=fragments, parts=parts))
    genesis = genesis_of("run", recipe, TENSORS, values(0), WIRE)
    assert genesis.parts == due
    state = PeerState(MemoryStore(), recipe, genesis)
    sizes = [state.partial_sizes(round_, part) for round_ in range(fragments) for part in range(due)]
    assert all(size is not None and size[0] in range(4, 4 * 4 + 1) for size in sizes)


def test_there_are_no_more_fragments_than_values() -> None:
    with pytest.raises(RecipeError, match=r"rounds\.fragments = 42 is more than the model's 41"):
        genesis_of("run", Recipe(rounds=Rounds(fragments=42)), TENSORS, values(0), WIRE)


def test_sizes_are_exact(pair: tuple[PeerState, PeerState]) -> None:
    state = pair[0]
    assert state.size == N
    assert state.cut(1, 0, 0, values(1), 1.0)
    sizes = []
    for part in range(PARTS):
        found = state.contribution(1, 0, part)
        assert found is not None
        sizes.append(len(found[1]))
        assert state.contribution_sizes(1, part) == exactly(len(found[1]))
    assert state.contribution_sizes(1, PARTS) is None
    assert state.round_bytes == sum(sizes)


# -- a round -----------------------------------------------------------------------------------------


def test_a_round_gives_the_same_state_everywhere(pair: tuple[PeerState, PeerState]) -> None:
    commit = reduced(pair)
    assert [info.contributors for info in commit.parts] == [((0, 100.0), (1, 101.0))] * PARTS
    share(commit, pair[0], pair[1])
    carries = [state.apply(commit) for state in pair]
    assert pair[0].plane is not None
    assert pair[1].plane is not None
    assert pair[0].plane.digest == pair[1].plane.digest
    assert [carry.included for carry in carries] == [True, True]


def test_before_a_state_there_is_nothing_to_give(tmp_path: Path) -> None:
    assert fresh(tmp_path).contribution(1, 0, 0) is None


def test_a_model_that_diverged_gives_nothing(pair: tuple[PeerState, PeerState]) -> None:
    local = values(1)
    local[3] = np.nan
    assert not pair[0].cut(1, 0, 0, local, 100.0)
    assert pair[0].contribution(1, 0, 0) is None


def test_a_cut_without_work_behind_it_gives_nothing(pair: tuple[PeerState, PeerState]) -> None:
    assert pair[0].cut(1, 0, 0, values(1), 0.0)
    assert pair[0].contribution(1, 0, 0) is None
    assert pair[0].reduce(1, 0, 0, [0]) == (None, ())


def test_who_was_named_and_never_came_is_left_out(pair: tuple[PeerState, PeerState]) -> None:
    gather(pair)
    info, _ = pair[0].reduce(1, 0, 0, [0, 1, 7])
    assert info is not None
    assert info.contributors == ((0, 100.0), (1, 101.0))


def test_garbage_is_named(pair: tuple[PeerState, PeerState]) -> None:
    gather(pair)
    pair[0].take(1, 0, 0, 2, Contribution(50.0, b"garbage"))
    info, refused = pair[0].reduce(1, 0, 0, [0, 1, 2])
    assert refused == (2,)
    assert info is not None
    assert info.contributors == ((0, 100.0), (1, 101.0))


def test_our_own_contribution_counts_only_in_its_own_attempt(pair: tuple[PeerState, PeerState]) -> None:
    gather(pair)
    assert pair[0].cut(1, 1, 1, values(5), 100.0)
    info, _ = pair[0].reduce(1, 0, 0, [0, 1])
    assert info is not None
    assert info.contributors == ((1, 101.0),), "the other's of that attempt is still here, ours is not"


def test_a_reduction_that_the_disk_refused_can_be_repeated(
    pair: tuple[PeerState, PeerState], monkeypatch: pytest.MonkeyPatch
) -> None:
    gather(pair)
    put = pair[0].store.put

    def full(raw: bytes | memoryview, name: str) -> str:
        raise StoreError("the disk is full")

    monkeypatch.setattr(pair[0].store, "put", full)
    with pytest.raises(StoreError):
        pair[0].reduce(1, 0, 0, [0, 1])
    monkeypatch.setattr(pair[0].store, "put", put)
    info, _ = pair[0].reduce(1, 0, 0, [0, 1])
    assert info is not None
    assert info.contributors == ((0, 100.0), (1, 101.0)), "nobody has to send again"


def test_contributions_are_kept_until_their_round_is_decided(pair: tuple[PeerState, PeerState]) -> None:
    commit = reduced(pair)
    pair[0].take(1, 1, 0, 1, Contribution(100.0, b"of an attempt that never came through"))
    pair[0].take(2, 0, 0, 1, Contribution(100.0, b"of the round after"))
    pair[0].apply(commit)
    assert sorted(pair[0]._inbox) == [(2, 0, 0, 1)]
    pair[0].load(_snapshot_of(pair[0], round_=2))
    assert pair[0]._inbox == {}


def _snapshot_of(state: PeerState, round_: int) -> Snapshot:
    assert state.plane is not None
    state.plane.round = round_
    return state.write_snapshot()


# -- what is missing or torn -------------------------------------------------------------------------


def test_a_commit_whose_parts_are_not_here_names_them(pair: tuple[PeerState, PeerState]) -> None:
    commit = reduced(pair)
    assert pair[1].plane is not None
    before = pair[1].plane.digest
    with pytest.raises(Missing) as caught:
        pair[1].apply(commit)
    assert caught.value.digests == tuple(info.digest for info in commit.parts)
    assert pair[1].plane.digest == before


def test_a_part_that_was_torn_is_missing_and_the_round_can_be_applied_once_it_is_back(
    pair: tuple[PeerState, PeerState],
) -> None:
    commit = reduced(pair)
    share(commit, pair[0], pair[1])
    torn = commit.parts[1].digest
    damage(pair[1], torn)
    with pytest.raises(Missing) as caught:
        pair[1].apply(commit)
    assert caught.value.digests == (torn,)
    share(commit, pair[0], pair[1])
    assert pair[1].apply(commit).included
    pair[0].apply(commit)
    assert pair[0].plane is not None
    assert pair[1].plane is not None
    assert pair[0].plane.digest == pair[1].plane.digest


# -- ahead of the commit -----------------------------------------------------------------------------


def prepare(state: PeerState, commit: Commit, source: PeerState) -> None:
    for info in commit.parts:
        raw = source.store.get(info.digest)
        assert raw is not None
        state.prepare(info.digest, raw)


def test_results_that_were_decoded_ahead_give_the_same_state_and_are_not_read_again(
    pair: tuple[PeerState, PeerState],
) -> None:
    for round_ in (1, 2):
        commit = reduced(pair, round_)
        prepare(pair[1], commit, pair[0])
        sent = []
        for part in range(PARTS):
            pair[1].weigh(round_, 0, part)
            given = pair[1].contribution(round_, 0, part)
            assert given is not None
            sent.append(pair[1]._codec.decode(given.raw, pair[1].layout.size(round_, part)))
        assert [state.apply(commit).included for state in pair] == [True, True]
        assert pair[0].plane is not None
        assert pair[1].plane is not None
        assert pair[0].plane.digest == pair[1].plane.digest
        assert pair[1].sent == pytest.approx(float(np.linalg.norm(np.concatenate(sent))), rel=1e-6)


def test_what_was_decoded_ahead_and_is_not_what_was_committed_is_not_taken(
    pair: tuple[PeerState, PeerState],
) -> None:
    """Another result of a part, one that the commit says otherwise of, and one of another round."""
    gather(pair)
    other, _ = pair[0].reduce(1, 0, 0, (0,))
    assert other is not None
    commit = reduced_again(pair)
    raw = pair[0].store.get(other.digest)
    assert raw is not None
    pair[1].prepare(other.digest, raw)
    pair[1].prepare("damaged", b"no result")
    with pytest.raises(Missing) as caught:
        pair[1].apply(commit)
    assert caught.value.digests == tuple(info.digest for info in commit.parts)
    prepare(pair[1], commit, pair[0])
    said = replace(commit.parts[0], contributors=((0, 1.0),))
    odd = replace(commit, parts=(said, *commit.parts[1:]))
    for state in pair:
        state.apply(odd)
    assert pair[0].plane is not None
    assert pair[1].plane is not None
    assert pair[0].plane.digest == pair[1].plane.digest
    prepare(pair[1], commit, pair[0])
    assert not pair[1]._prepared, "round 1 is over"


def reduced_again(states: tuple[PeerState, ...]) -> Commit:
    """The round that was gathered already, with everybody in it."""
    infos = []
    for part in range(PARTS):
        info, _ = states[0].reduce(1, 0, part, range(len(states)))
        assert info is not None
        infos.append(info)
    return Commit(1, 0, tuple(infos), 201, None, "")


# -- snapshots ---------------------------------------------------------------------------------------


@pytest.fixture
def written(pair: tuple[PeerState, PeerState]) -> tuple[PeerState, Snapshot]:
    commit = reduced(pair)
    pair[0].apply(commit)
    return pair[0], pair[0].write_snapshot()


def move(snapshot: Snapshot, source: PeerState, target: PeerState) -> None:
    for blob in snapshot.files:
        for digest in blob.chunks:
            raw = source.store.get(digest)
            assert raw is not None
            target.store.put(raw)


def test_a_snapshot_brings_the_same_state_and_goes_on_from_there(
    written: tuple[PeerState, Snapshot], tmp_path: Path
) -> None:
    source, snapshot = written
    target = fresh(tmp_path / "joiner")
    move(snapshot, source, target)
    carry = target.load(snapshot)
    assert source.plane is not None
    assert target.plane is not None
    assert carry.origin is None
    assert target.plane.digest == source.plane.digest == snapshot.state
    assert target.write_snapshot() == snapshot, "two peers write the same bytes"
    commit = reduced((source, target), round_=2)
    share(commit, source, target)
    source.apply(commit)
    target.apply(commit)
    assert target.plane.digest == source.plane.digest


def test_chunks_that_are_not_here_are_named(written: tuple[PeerState, Snapshot], tmp_path: Path) -> None:
    _, snapshot = written
    target = fresh(tmp_path / "joiner")
    with pytest.raises(Missing) as caught:
        target.load(snapshot)
    assert caught.value.digests == snapshot.files[0].chunks
    assert target.plane is None


def test_a_chunk_that_was_torn_is_named(written: tuple[PeerState, Snapshot], tmp_path: Path) -> None:
    source, snapshot = written
    target = fresh(tmp_path / "joiner")
    move(snapshot, source, target)
    torn = snapshot.files[1].chunks[0]
    damage(target, torn)
    with pytest.raises(Missing) as caught:
        target.load(snapshot)
    assert caught.value.digests == (torn,)
    move(snapshot, source, target)
    target.load(snapshot)


def test_a_disk_that_refuses_to_read_is_no_missing_content(
    written: tuple[PeerState, Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, snapshot = written

    def refuse(digest: str) -> bytes | None:
        raise StoreError("can't read: input/output error")

    monkeypatch.setattr(source.store, "get", refuse)
    with pytest.raises(StoreError, match="input/output error"):
        source.load(snapshot)


def test_a_snapshot_that_is_not_the_state_it_says_is_refused(
    written: tuple[PeerState, Snapshot], tmp_path: Path
) -> None:
    source, snapshot = written
    target = founded(tmp_path / "other")
    move(snapshot, source, target)
    assert target.plane is not None
    before = target.plane.digest
    for wrong in (replace(snapshot, state="f" * 64), replace(snapshot, round=2)):
        with pytest.raises(CorruptData, match=f"the snapshot of round {wrong.round} has state"):
            target.load(wrong)
    swapped = replace(snapshot, files=snapshot.files[:1])
    with pytest.raises(CorruptData, match=r"the snapshot has no momentum\.safetensors"):
        target.load(swapped)
    assert target.plane.digest == before
