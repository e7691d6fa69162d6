"""Means of groups: what is combined, what is reduced out of it, and what a commit makes of that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.codecs import codec
from potluck.codecs.base import exactly
from potluck.optim.outer import OuterOptimizer
from potluck.peer.dataplane import ABSURD, DataPlane, Given, Mean
from potluck.peer.layout import Layout, Vector, part_bounds
from potluck.peer.state import Contribution, Partial, PeerState, genesis_of
from potluck.protocol.view import MAX_WEIGHT, fault
from potluck.recipe import Outer, Recipe, Rounds
from potluck.store.contents import MemoryStore
from potluck.wire.codec import WIRE
from potluck.wire.records import Commit, PartInfo, TensorSpec
from potluck.wire.result import Tally, describe, pack, unpack

N, PARTS = 41, 3
TENSORS = (TensorSpec("a.weight", (6, 5)), TensorSpec("b.bias", (11,)))
SIZES = [bounds.stop - bounds.start for bounds in part_bounds(N, PARTS)]
SIZE = SIZES[0]


def values(seed: int, n: int = N) -> Vector:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def plane(codec_name: str = "fp32", n: int = SIZE) -> DataPlane:
    theta, momentum = np.zeros(n, np.float32), np.zeros(n, np.float32)
    return DataPlane(
        theta, momentum, 0, Layout(theta.size, 1), codec(codec_name), OuterOptimizer(Outer("average"))
    )


def of(index: int, weight: float, raw: bytes) -> Given:
    """What one member gave."""
    return Given(((index, weight),), raw)


def group(mean: Mean) -> Given:
    """What a group gave."""
    return Given(mean.contributors, mean.raw, partial=True)


# -- the mean of means -------------------------------------------------------------------------------

weights = st.lists(st.floats(1, 1e9), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(weights, st.data(), st.sampled_from(["fp32", "int8"]), st.integers(0, 1000))
def test_a_mean_of_groups_is_the_mean_of_all(weights, data, codec_name: str, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Whoever gave straight to the reducer, and however many means a group was combined into."""
    encoder, one = codec(codec_name), plane(codec_name)
    some = [of(i, w, encoder.encode(values(seed + i, SIZE))) for i, w in enumerate(weights)]
    whose = [data.draw(st.integers(0, 4)) for _ in some]
    straight = [given for given, number in zip(some, whose, strict=True) if number == 0]
    combined = []
    for number in range(1, 5):
        inside = [given for given, mine in zip(some, whose, strict=True) if mine == number]
        if inside:
            combined.append(one.combine(1, 0, inside))
            assert combined[-1].contributors == tuple(given.weights[0] for given in inside)
            assert combined[-1].refused == ()
    mean = one.reduce(1, 0, [*straight, *map(group, combined)])
    assert (mean.contributors, mean.refused) == (tuple(enumerate(weights)), ())
    decoded = np.array([encoder.decode(given.raw, SIZE) for given in some], np.float64)
    exact = np.average(decoded, axis=0, weights=weights)
    step = 0.0 if codec_name == "fp32" else np.abs(exact).max() / 127
    np.testing.assert_allclose(encoder.decode(mean.raw, SIZE), exact, rtol=0, atol=1e-5 + 0.51 * step)


@pytest.mark.parametrize("codec_name", ["fp32", "bf16"])
def test_what_is_packed_is_combined_and_reduced(codec_name: str) -> None:
    n, encoder = 100_000, codec(codec_name)
    one, some = plane(codec_name, n), [encoder.encode(values(seed, n)) for seed in range(3)]
    combined = one.combine(1, 0, [of(0, 1.0, some[0]), of(1, 1.0, some[1])])
    assert len(combined.raw) < 0.85 * 4 * n
    mean = one.reduce(1, 0, [of(2, 1.0, some[2]), group(combined)])
    assert (mean.contributors, mean.refused) == (((0, 1.0), (1, 1.0), (2, 1.0)), ())
    assert len(mean.raw) < 0.85 * encoder.sizes(n)[-1]
    exact = np.mean([encoder.decode(raw, n) for raw in some], axis=0, dtype=np.float64)
    lost = 2.0**-8 if codec_name == "bf16" else 0.0
    np.testing.assert_allclose(encoder.decode(mean.raw, n), exact, rtol=lost, atol=1e-6)
    cut_off = one.reduce(1, 0, [of(2, 1.0, some[2]), group(combined._replace(raw=combined.raw[:-1]))])
    assert (cut_off.contributors, cut_off.refused) == (((2, 1.0),), (0, 1))


@pytest.mark.parametrize("codec_name", ["fp32", "int8"])
def test_a_group_of_one_gives_what_it_gave(codec_name: str) -> None:
    one, raw = plane(codec_name), codec(codec_name).encode(values(1, SIZE))
    straight, around = plane(codec_name).reduce(1, 0, [of(3, 7.0, raw)]), one.combine(1, 0, [of(3, 7.0, raw)])
    assert one.reduce(1, 0, [group(around)]) == straight


def test_a_mean_of_several_has_full_precision_whatever_the_codec() -> None:
    one, int8 = plane("int8"), codec("int8")
    raws = [int8.encode(values(seed, SIZE)) for seed in range(3)]
    mean = one.combine(1, 0, [of(i, 1.0, raw) for i, raw in enumerate(raws)])
    exact = np.mean([int8.decode(raw, SIZE) for raw in raws], axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.frombuffer(mean.raw, "<f4"), exact, atol=1e-6)


def test_a_mean_of_several_leaves_residuals_alone() -> None:
    """They belong to who reduces, and to its result."""
    one, raw = plane("int8"), codec("int8").encode(values(1, SIZE))
    assert one.combine(1, 0, [of(0, 1.0, raw)]) == one.combine(1, 0, [of(0, 1.0, raw)])
    assert not one._down


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2 * ABSURD])
def test_a_mean_that_is_garbage_is_refused_with_all_that_are_in_it(bad: float) -> None:
    one, wrong = plane(), values(2, SIZE)
    wrong[3] = bad
    sound = codec("fp32").encode(values(1, SIZE))
    for raw in (wrong.tobytes(), b"", sound[:-1], sound + b"\0", sound * 2):
        garbage = Given(((1, 5.0), (4, 6.0)), raw, partial=True)
        mean = one.reduce(1, 0, [of(0, 7.0, sound), garbage])
        assert (mean.contributors, mean.refused) == (((0, 7.0),), (1, 4))
        assert one.reduce(1, 0, [garbage]) == Mean(b"", (), (1, 4))


# -- who has what ------------------------------------------------------------------------------------


def founded(codec_name: str = "int8") -> PeerState:
    recipe = Recipe(outer=Outer("average"), rounds=Rounds(codec=codec_name, parts=PARTS))
    state = PeerState(MemoryStore(), recipe, genesis_of("run", recipe, TENSORS, values(0), WIRE))
    state.begin(values(0), np.zeros(N, np.float32), 0)
    return state


def contribution(state: PeerState, seed: int, part: int = 0, blocks: int = 0) -> Contribution:
    return Contribution(100.0 + seed, state._codec.encode(values(seed, SIZES[part])), blocks)


def given_to(state: PeerState, *indices: int, part: int = 0, blocks: int = 0) -> None:
    for index in indices:
        state.take(1, 0, part, index, contribution(state, index, part, blocks))


def combined(state: PeerState, *indices: int, part: int = 0) -> Partial:
    assert state.combine(1, 0, part, indices) == (indices, ())
    found = state.partial(1, 0, part, indices[0])
    assert found is not None
    return found


def test_what_a_group_gave_is_combined_and_kept_by_its_first_member() -> None:
    state = founded()
    given_to(state, 2, 8, blocks=3)
    given_to(state, 5)
    found = combined(state, 2, 5, 8)
    assert found.contributors == ((2, 102.0), (5, 105.0), (8, 108.0))
    assert found.blocks == ((2, 3), (8, 3))
    assert exactly(len(found.raw)) == state.partial_sizes(1, 0)
    assert state.partial(1, 0, 0, 5) is state.partial(1, 1, 0, 2) is state.partial(1, 0, 1, 2) is None


def test_our_own_contribution_is_in_the_mean_of_our_group() -> None:
    state = founded()
    assert state.cut(1, 0, 5, values(7), 40.0, 2)
    given_to(state, 2)
    found = combined(state, 2, 5)
    assert found.contributors == ((2, 102.0), (5, 40.0))
    assert found.blocks == ((5, 2),)


def test_garbage_in_a_group_is_named_and_who_never_came_is_left_out() -> None:
    state = founded()
    given_to(state, 2, 8)
    state.take(1, 0, 0, 5, Contribution(50.0, b"garbage"))
    assert state.combine(1, 0, 0, (2, 5, 8, 11)) == ((2, 8), (5,))
    found = state.partial(1, 0, 0, 2)
    assert found is not None
    assert found.contributors == ((2, 102.0), (8, 108.0))


def test_of_a_group_that_gave_garbage_only_nothing_is_kept() -> None:
    state = founded()
    state.take(1, 0, 0, 5, Contribution(50.0, b"garbage"))
    assert state.combine(1, 0, 0, (5, 8)) == ((), (5,))
    assert state.combine(1, 0, 0, ()) == ((), ())
    assert state._partials == {}


def test_a_part_is_reduced_over_contributions_and_means() -> None:
    gatherer, reducer = founded(), founded()
    given_to(gatherer, 2, 5, blocks=4)
    reducer.take_partial(1, 0, 0, combined(gatherer, 2, 5))
    given_to(reducer, 0, 3, blocks=1)
    info, refused = reducer.reduce(1, 0, 0, (0, 3), (2,))
    assert refused == ()
    assert info is not None
    assert info.contributors == ((0, 100.0), (2, 102.0), (3, 103.0), (5, 105.0))
    assert info.blocks == ((0, 1), (2, 4), (3, 1), (5, 4))
    raw = reducer.store.get(info.digest)
    assert raw is not None
    assert describe(raw) == (Tally(1, 0, 0, info.contributors, info.blocks), info)
    assert reducer.reduce(1, 0, 0, (0, 3), (2,)) == (info, ()), "it can be repeated"


def test_a_part_may_be_reduced_over_means_alone_and_not_over_what_never_came() -> None:
    state = founded()
    given_to(state, 2, 5)
    combined(state, 2, 5)
    info, _ = state.reduce(1, 0, 0, (), (2, 3))
    assert info is not None
    assert info.contributors == ((2, 102.0), (5, 105.0))
    assert state.reduce(1, 0, 1, (), (2,)) == (None, ())


def test_a_mean_that_is_garbage_is_named_by_its_members_and_the_rest_counts() -> None:
    state = founded()
    given_to(state, 0)
    state.take_partial(1, 0, 0, Partial(((2, 5.0), (5, 6.0)), b"garbage", ((2, 1),)))
    info, refused = state.reduce(1, 0, 0, (0,), (2,))
    assert refused == (2, 5)
    assert info is not None
    assert (info.contributors, info.blocks) == (((0, 100.0),), ())


def test_means_are_kept_until_their_round_is_decided() -> None:
    state = founded()
    for part in range(PARTS):
        given_to(state, 0, part=part)
        combined(state, 0, part=part)
    state.take_partial(1, 1, 0, Partial(((0, 1.0),), b"of an attempt that never came through"))
    state.take_partial(2, 0, 0, Partial(((0, 1.0),), b"of the round after"))
    infos = [state.reduce(1, 0, part, (), (0,))[0] for part in range(PARTS)]
    state.apply(Commit(1, 0, tuple(filter(None, infos)), 100, None, ""))
    assert sorted(state._partials) == [(2, 0, 0, 0)]


def test_the_size_of_a_mean_is_exact() -> None:
    state = founded()
    for part in range(PARTS):
        given_to(state, 0, part=part)
        assert len(combined(state, 0, part=part).raw) == 4 * SIZES[part]
        assert state.partial_sizes(1, part) == exactly(4 * SIZES[part])
    assert state.partial_sizes(1, PARTS) is None


def test_a_group_of_which_two_claim_all_tokens_there_can_be_is_reduced() -> None:
    state = founded()
    raw = state._codec.encode(values(1, SIZE))
    for index in (2, 5):
        state.take(1, 0, 0, index, Contribution(float(MAX_WEIGHT), raw))
    combined(state, 2, 5)
    info, refused = state.reduce(1, 0, 0, (), (2,))
    assert info is not None
    assert refused == ()
    assert fault(info, 6) is None


def test_what_a_mean_says_of_blocks_counts_for_its_own_members_only() -> None:
    state = founded()
    given_to(state, 0, blocks=1)
    given_to(state, 2)
    found = combined(state, 2)
    state.take_partial(1, 0, 0, found._replace(blocks=((0, 1000), (2, 7))))
    info, _ = state.reduce(1, 0, 0, (0,), (2,))
    assert info is not None
    assert info.blocks == ((0, 1), (2, 7))


# -- what a commit makes of it -----------------------------------------------------------------------


def committed(state: PeerState) -> list[PartInfo]:
    infos = []
    for part in range(PARTS):
        given_to(state, 0, 1, part=part)
        info, _ = state.reduce(1, 0, part, (0, 1))
        assert info is not None
        infos.append(info)
    return infos


def changed(state: PeerState, infos: Sequence[PartInfo]) -> list[bool]:
    """In which parts a commit changes the state."""
    assert state.plane is not None
    before = state.plane.theta.copy()
    state.apply(Commit(1, 0, tuple(infos), 201, None, ""))
    return [bool((state.plane.theta[b] != before[b]).any()) for b in part_bounds(N, PARTS)]


def test_a_result_that_is_what_its_commit_says_changes_its_part() -> None:
    state = founded()
    assert changed(state, committed(state)) == [True] * PARTS


@pytest.mark.parametrize(
    "lie",
    [
        {"round": 2},
        {"attempt": 1},
        {"part": 0},
        {"contributors": ((0, 100.0),)},
        {"contributors": ((0, 100.0), (1, 102.0))},
        {"contributors": ((0, 100.0), (2, 101.0))},
    ],
)
def test_a_result_whose_tally_is_not_what_its_commit_says_changes_nothing(lie: dict[str, object]) -> None:
    state = founded()
    infos = committed(state)
    raw = state.store.get(infos[1].digest)
    assert raw is not None
    tally, encoded = unpack(raw)
    said = {name: getattr(tally, name) for name in Tally.__struct_fields__}
    name = state.store.put(pack(Tally(**(said | lie)), bytes(encoded)))
    infos[1] = PartInfo(1, name, infos[1].size, infos[1].contributors)
    assert changed(state, infos) == [True, False, True]


@pytest.mark.parametrize("raw", [b"", b"garbage", bytes(4), b"\xff" * 100])
def test_content_that_is_no_result_changes_nothing_though_it_was_committed(raw: bytes) -> None:
    state = founded()
    infos = committed(state)
    infos[1] = PartInfo(1, state.store.put(raw), len(raw), infos[1].contributors)
    assert changed(state, infos) == [True, False, True]


def test_what_a_commit_says_of_blocks_need_not_stand_in_its_parts() -> None:
    """A commit says it once, for all of them."""
    state = founded()
    given_to(state, 0, blocks=3)
    info, _ = state.reduce(1, 0, 0, (0,))
    assert info is not None
    assert info.blocks == ((0, 3),)
    rest = committed(state)[1:]
    assert changed(state, [PartInfo(0, info.digest, info.size, info.contributors), *rest])[0]
