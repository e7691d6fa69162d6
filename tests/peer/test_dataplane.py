"""The vectors of peers over many rounds, against arithmetic in float64 that anybody can check by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from potluck.codecs import CODECS, codec
from potluck.optim.outer import OuterOptimizer
from potluck.peer.dataplane import ABSURD, MAX_SHARE, DataPlane, Given, Mean
from potluck.peer.layout import Carry, Layout, Stretch, Vector, carried, part_bounds
from potluck.recipe import Outer
from potluck.wire.codec import digest
from potluck.wire.records import Commit, PartInfo

N, PARTS = 23, 4
BOUNDS = part_bounds(N, PARTS)
AVERAGE, NESTEROV = Outer("average"), Outer("nesterov", 0.7, 0.9)

Exact = NDArray[np.float64]


def values(seed: int, scale: float = 1.0) -> Vector:
    return (scale * np.random.default_rng(seed).standard_normal(N)).astype(np.float32)


def plane(
    theta: Vector | None = None, codec_name: str = "fp32", outer: Outer = AVERAGE, keeps: bool = False
) -> DataPlane:
    theta = values(0) if theta is None else theta
    return DataPlane(
        theta.copy(),
        np.zeros(N, np.float32),
        0,
        Layout(N, PARTS),
        codec(codec_name),
        OuterOptimizer(outer),
        keeps,
    )


def of(index: int, weight: float, raw: bytes | None) -> Given:
    """What one member gave."""
    assert raw is not None
    return Given(((index, weight),), raw)


def reduced(one: DataPlane, part: int, given: Sequence[Given]) -> tuple[bytes, PartInfo]:
    """A part's result, and what a commit says of it: without a tally, its values are all its content."""
    mean = one.reduce(one.round + 1, part, given)
    assert mean.refused == ()
    info = PartInfo(part, digest(mean.raw), len(mean.raw), mean.contributors)
    one.reduced_to(one.round + 1, info)
    return mean.raw, info


class Team:
    """Peers that train, cut, reduce, commit and carry over, with nothing between them but function calls."""

    def __init__(self, peers: int, codec_name: str, outer: Outer, keeps: bool = False) -> None:
        self.planes = [plane(None, codec_name, outer, keeps) for _ in range(peers)]
        self.locals = [values(0) for _ in range(peers)]
        self.round = 0
        self.cuts: list[Vector] = []
        self.commit: Commit

    def train(self, changes: Sequence[Vector]) -> None:
        self.locals = [local + change for local, change in zip(self.locals, changes, strict=True)]

    def cut(self) -> None:
        self.round += 1
        self.cuts = [local.copy() for local in self.locals]
        for member, local in zip(self.planes, self.locals, strict=True):
            assert member.cut(self.round, 0, local.copy())

    def step(self, seed: int) -> Exact:
        """All train at random, and cut; returns their mean change [n]."""
        changes = [values(seed + i, 0.1) for i in range(len(self.planes))]
        self.train(changes)
        self.cut()
        mean: Exact = np.mean(changes, axis=0, dtype=np.float64)
        return mean

    def plan(self, number: int) -> list[int]:
        """Who reduces each part, by two bits of a number each."""
        return [(number >> 2 * part) % 4 % len(self.planes) for part in range(PARTS)]

    def exchange(
        self, weights: Sequence[float], reducers: Sequence[int], included: Sequence[Sequence[int]]
    ) -> list[Carry]:
        """``included[p]`` are the members whose contribution of part p came in time."""
        infos, raws = [], []
        for part, reducer in enumerate(reducers):
            given = [
                of(index, weights[index], self.planes[index].contribution(self.round, 0, part))
                for index in included[part]
            ]
            raw, info = reduced(self.planes[reducer], part, given)
            assert info.contributors == tuple((index, weights[index]) for index in included[part])
            infos.append(info)
            raws.append(raw)
        self.commit = Commit(self.round, 0, tuple(infos), 1, None, "")
        return [member.apply(self.commit, raws, index) for index, member in enumerate(self.planes)]

    def carry(self, carries: Sequence[Carry]) -> None:
        self.locals = [carried(local, [carry]) for local, carry in zip(self.locals, carries, strict=True)]


@dataclass
class Naive:
    """The same in float64, as the papers write it, without codecs."""

    peers: int
    outer: Outer
    theta: Exact = field(default_factory=lambda: values(0).astype(np.float64))
    momentum: Exact = field(default_factory=lambda: np.zeros(N))

    def __post_init__(self) -> None:
        self.locals = [self.theta.copy() for _ in range(self.peers)]

    def step(
        self, cuts: Sequence[Exact], weights: Sequence[float], included: Sequence[Sequence[int]]
    ) -> None:
        """One outer step; whoever is in a part gives it what it had at its cut."""
        old, delta = self.theta.copy(), np.zeros(N)
        for bounds, who in zip(BOUNDS, included, strict=True):
            total = sum(weights[i] for i in who)
            for i in who:
                delta[bounds] += weights[i] / total * (old[bounds] - cuts[i][bounds])
        if self.outer.kind == "average":
            self.theta = old - delta
        else:
            self.momentum = self.outer.momentum * self.momentum + delta
            self.theta = old - self.outer.lr * (delta + self.outer.momentum * self.momentum)
        for i, local in enumerate(self.locals):
            origin = old.copy()
            for bounds, who in zip(BOUNDS, included, strict=True):
                if i in who:
                    origin[bounds] = cuts[i][bounds]
            self.locals[i] = self.theta + (local - origin)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, list[tuple[list[float], list[int], list[list[int]]]]]:
    """How many peers, and for each round weights, reducers, and who is in which part."""
    peers = draw(st.integers(1, 4))
    some = st.lists(st.integers(0, peers - 1), min_size=1, unique=True).map(sorted)
    one = st.tuples(
        st.lists(st.floats(1, 1000), min_size=peers, max_size=peers),
        st.lists(st.integers(0, peers - 1), min_size=PARTS, max_size=PARTS),
        st.lists(some, min_size=PARTS, max_size=PARTS),
    )
    return peers, draw(st.lists(one, min_size=1, max_size=8))


# -- many rounds -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(histories(), st.sampled_from([AVERAGE, NESTEROV]), st.integers(0, 1000))
def test_rounds_are_the_naive_arithmetic_whoever_is_left_out(history, outer: Outer, seed: int) -> None:  # type: ignore[no-untyped-def]
    peers, rounds = history
    team, naive = Team(peers, "fp32", outer), Naive(peers, outer)
    for number, (weights, reducers, included) in enumerate(rounds):
        for when in ("before the cut", "during the exchange"):
            changes = [values(seed + 100 * number + i + 10 * len(when), 0.1) for i in range(peers)]
            team.train(changes)
            naive.locals = [n + change for n, change in zip(naive.locals, changes, strict=True)]
            if when == "before the cut":
                team.cut()
                cuts = [local.copy() for local in naive.locals]
        carries = team.exchange(weights, reducers, included)
        team.carry(carries)
        naive.step(cuts, weights, included)
        assert len({member.digest for member in team.planes}) == 1, "bit-identical everywhere"
        np.testing.assert_allclose(team.planes[0].theta, naive.theta, atol=2e-4)
        for local, exact in zip(team.locals, naive.locals, strict=True):
            np.testing.assert_allclose(local, exact, atol=2e-4)
        for i, carry in enumerate(carries):
            assert carry.included == any(i in who for who in included)


@settings(max_examples=60, deadline=None)
@given(histories(), st.sampled_from(["bf16", "int8", "int4", "topk"]), st.integers(0, 1000))
def test_lossy_rounds_are_bit_identical_everywhere(history, codec_name: str, seed: int) -> None:  # type: ignore[no-untyped-def]
    peers, rounds = history
    team = Team(peers, codec_name, NESTEROV)
    for number, (weights, reducers, included) in enumerate(rounds):
        team.train([values(seed + 100 * number + i, 0.1) for i in range(peers)])
        team.cut()
        team.carry(team.exchange(weights, reducers, included))
        assert len({member.digest for member in team.planes}) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(0, 255), min_size=2, max_size=12), st.integers(0, 1000))
def test_nothing_is_lost_on_either_leg_whoever_reduces(peers: int, plans: list[int], seed: int) -> None:
    """Mean model minus all residuals changes by the mean of the inner steps only (equal weights, all in).

    Residuals go up with contributions, come down with results, and change hands with a part.
    """
    team = Team(peers, "int8", AVERAGE)
    meant = values(0).astype(np.float64)
    everybody = [list(range(peers))] * PARTS
    for number, plan in enumerate(plans):
        meant += team.step(seed + 100 * number)
        reducers = team.plan(plan)
        team.carry(team.exchange([50.0] * peers, reducers, everybody))
        owed = np.mean([member._up.residual for member in team.planes], axis=0, dtype=np.float64)
        for member in team.planes:
            for part, feedback in member._down.items():
                owed[BOUNDS[part]] += feedback.residual
        np.testing.assert_allclose(np.mean(team.locals, axis=0) - owed, meant, atol=1e-5)
        np.testing.assert_allclose(np.mean(team.locals, axis=0), meant, atol=0.05)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.booleans(),
    st.lists(st.integers(0, 255), min_size=2, max_size=30),
    st.integers(0, 1000),
)
def test_what_fades_on_either_leg_is_what_the_codec_says(
    peers: int, keeps: bool, plans: list[int], seed: int
) -> None:
    """With topk: as above, but what was owed on a leg counts for β each time that it was about to be sent.

    And what members owe may be in their models.
    """
    team = Team(peers, "topk", AVERAGE, keeps)
    beta = codec("topk").decay
    meant, faded = values(0).astype(np.float64), np.zeros(N)
    everybody = [list(range(peers))] * PARTS
    for number, plan in enumerate(plans):
        meant += team.step(seed + 100 * number)
        reducers = team.plan(plan)
        faded += (1 - beta) * np.mean([member._up.residual for member in team.planes], axis=0)
        for part, reducer in enumerate(reducers):
            if part in team.planes[reducer]._down:
                faded[BOUNDS[part]] += (1 - beta) * team.planes[reducer]._down[part].residual
        team.carry(team.exchange([50.0] * peers, reducers, everybody))
        owed = np.mean([member._up.residual for member in team.planes], axis=0, dtype=np.float64)
        for member in team.planes:
            for part, feedback in member._down.items():
                owed[BOUNDS[part]] += feedback.residual
        kept = keeps * beta * np.mean([member._up.residual for member in team.planes], axis=0)
        np.testing.assert_allclose(np.mean(team.locals, axis=0) + kept - owed - faded, meant, atol=1e-4)
        assert np.abs(owed).max() < 5


def test_alone_without_compression_the_shared_state_is_the_model() -> None:
    team = Team(1, "fp32", AVERAGE)
    for number in range(20):
        team.train([values(number, 0.1)])
        team.cut()
        team.carry(team.exchange([100.0], [0] * PARTS, [[0]] * PARTS))
        np.testing.assert_allclose(team.planes[0].theta, team.locals[0], atol=1e-6)
        np.testing.assert_allclose(team.locals[0], team.cuts[0], atol=1e-6)


# -- one round ---------------------------------------------------------------------------------------


def test_what_is_not_included_is_part_of_the_next_contribution() -> None:
    team = Team(2, "fp32", AVERAGE)
    first, second = [values(1, 0.1), values(2, 0.1)], [values(3, 0.1), values(4, 0.1)]
    team.train(first)
    team.cut()
    team.carry(team.exchange([1.0, 1.0], [0] * PARTS, [[0, 1], [0, 1], [0], [0]]))
    team.train(second)
    team.cut()
    for part, bounds in enumerate(BOUNDS):
        raw = team.planes[1].contribution(2, 0, part)
        assert raw is not None
        due = second[1][bounds] + (first[1][bounds] if part >= 2 else 0)
        size = bounds.stop - bounds.start
        np.testing.assert_allclose(codec("fp32").decode(raw, size), -due, atol=1e-6)


def test_a_cut_is_known_by_its_attempt_and_gone_with_the_commit() -> None:
    one = plane()
    assert one.contribution(1, 0, 0) is None
    assert one.cut(1, 0, values(1))
    earlier = one.contribution(1, 0, 0)
    assert one.cut(1, 1, values(2))
    assert one.contribution(1, 0, 0) is None
    later = one.contribution(1, 1, 0)
    assert later is not None
    assert later != earlier
    team = Team(1, "fp32", AVERAGE)
    team.cut()
    team.exchange([1.0], [0] * PARTS, [[0]] * PARTS)
    assert team.planes[0].contribution(1, 0, 0) is None


def test_the_last_of_several_attempts_is_the_one_that_is_settled() -> None:
    one = plane(codec_name="int8")
    assert one.cut(1, 0, values(1))
    assert one.cut(1, 1, values(2))
    infos, raws = [], []
    for part in range(PARTS):
        raw, info = reduced(one, part, [of(0, 5.0, one.contribution(1, 1, part))])
        infos.append(info)
        raws.append(raw)
    carry = one.apply(Commit(1, 1, tuple(infos), 5, None, ""), raws, 0)
    assert carry.included
    assert carry.origin is not None
    np.testing.assert_array_equal(carry.origin, values(2))


def test_a_commit_of_another_attempt_than_ours_includes_nothing_of_ours() -> None:
    one, other = plane(), plane()
    assert one.cut(1, 0, values(1))
    assert other.cut(1, 1, values(2))
    infos, raws = [], []
    for part in range(PARTS):
        raw, info = reduced(other, part, [of(0, 5.0, other.contribution(1, 1, part))])
        infos.append(info)
        raws.append(raw)
    before = one.theta.copy()
    carry = one.apply(Commit(1, 1, tuple(infos), 5, None, ""), raws, None)
    assert not carry.included
    assert carry.origin is not None
    np.testing.assert_array_equal(carry.origin, before)
    np.testing.assert_allclose(one.theta, values(2), atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2 * ABSURD, 3e38])
@pytest.mark.parametrize("codec_name", list(CODECS))
def test_a_model_that_diverged_gives_nothing_and_changes_nothing(bad: float, codec_name: str) -> None:
    one = plane(codec_name=codec_name)
    local = values(1)
    local[17] = bad
    before = one.digest
    assert not one.cut(1, 0, local)
    assert one.contribution(1, 0, 0) is None
    assert one.digest == before
    assert one.cut(1, 1, values(1)), "it can go on from a sound model"
    np.testing.assert_array_equal(one._up.residual, 0)


def test_a_value_that_diverged_is_found_when_its_fragment_is_sent() -> None:
    layout = Layout(N, PARTS, 2)
    one = DataPlane(values(0), np.zeros(N, np.float32), 0, layout, codec("int8"), OuterOptimizer(AVERAGE))
    local = values(1)
    local[layout.range(2, 1).start] = np.nan
    assert one.cut(1, 0, local.copy())
    raw = [one.contribution(1, 0, part) for part in range(PARTS)]
    assert all(len(found or b"") in codec("int8").sizes(layout.size(1, p)) for p, found in enumerate(raw))
    assert not one.cut(2, 0, local)


# -- garbage -----------------------------------------------------------------------------------------


def garbage(codec_name: str, n: int) -> dict[str, bytes]:
    nan, huge = np.zeros(n, "<f4"), np.zeros(n, "<f4")
    nan[0], huge[0] = np.nan, 2 * ABSURD
    coder = codec(codec_name)
    sizes = coder.sizes(n)
    found = {"empty": b"", "short": bytes(sizes[0] - 1), "long": bytes(sizes[-1] + 1)}
    found |= {"huge": coder.encode(huge)}
    if codec_name == "fp32":
        return found | {"nan": nan.tobytes()}
    if codec_name == "bf16":
        return found | {"nan": nan.tobytes()[2::4].ljust(2 * n, b"\xff")}
    if codec_name == "int8":
        return found | {"minus 128": bytes(4) + b"\x80" * n}
    return found | {"all ones": b"\xff" * sizes[0]}


@pytest.mark.parametrize("codec_name", list(CODECS))
def test_garbage_is_refused_and_named_and_the_rest_counts(codec_name: str) -> None:
    one = plane(codec_name=codec_name)
    assert one.cut(1, 0, values(1))
    sound = one.contribution(1, 0, 2)
    assert sound is not None
    for what, raw in garbage(codec_name, BOUNDS[2].stop - BOUNDS[2].start).items():
        some = [of(0, 5.0, raw), of(1, 7.0, sound), of(4, 9.0, raw)]
        for mean_of in (one.reduce, one.combine):
            mean = mean_of(1, 2, some)
            assert mean.refused == (0, 4), what
            assert mean.contributors == ((1, 7.0),)
            assert mean.raw == mean_of(1, 2, [of(1, 7.0, sound)]).raw
            assert mean_of(1, 2, [of(0, 5.0, raw)]) == Mean(b"", (), (0,)), what
            assert mean_of(1, 2, []) == Mean(b"", (), ())


@pytest.mark.parametrize("codec_name", list(CODECS))
def test_a_committed_part_that_can_not_be_decoded_changes_nothing_in_it(codec_name: str) -> None:
    team = Team(2, codec_name, AVERAGE)
    before = team.planes[0].theta.copy()
    team.train([values(1, 0.1), values(2, 0.1)])
    team.cut()
    infos, raws = [], []
    for part in range(PARTS):
        given = [of(i, 1.0, team.planes[i].contribution(1, 0, part)) for i in range(2)]
        raw, info = reduced(team.planes[0], part, given)
        if part == 1:
            raw = garbage(codec_name, BOUNDS[1].stop - BOUNDS[1].start)["huge"]
            info = PartInfo(part, digest(raw), len(raw), info.contributors)
        infos.append(info)
        raws.append(raw)
    for index, member in enumerate(team.planes):
        member.apply(Commit(1, 0, tuple(infos), 2, None, ""), raws, index)
    assert team.planes[0].digest == team.planes[1].digest
    np.testing.assert_array_equal(team.planes[0].theta[BOUNDS[1]], before[BOUNDS[1]])
    assert (team.planes[0].theta[BOUNDS[0]] != before[BOUNDS[0]]).any()


# -- residuals ---------------------------------------------------------------------------------------


def test_a_residual_goes_up_once_its_contribution_counted_and_not_before() -> None:
    one = plane(codec_name="int8")
    assert one.cut(1, 0, values(1))
    np.testing.assert_array_equal(one._up.residual, 0)
    team = Team(2, "int8", AVERAGE)
    team.train([values(1, 0.1), values(2, 0.1)])
    team.cut()
    meant = team.planes[1].theta - team.locals[1]
    raws = [team.planes[1].contribution(1, 0, part) or b"" for part in range(PARTS)]
    team.exchange([1.0, 1.0], [0] * PARTS, [[0, 1], [0], [0, 1], [0]])
    for part, bounds in enumerate(BOUNDS):
        sent = codec("int8").decode(raws[part], bounds.stop - bounds.start)
        lost = meant[bounds] - sent if part in (0, 2) else np.zeros_like(sent)
        np.testing.assert_array_equal(team.planes[1]._up.residual[bounds], lost)
    assert np.abs(team.planes[1]._up.residual).max() > 0


def test_a_model_may_keep_what_it_could_not_send() -> None:
    """Also what it learnt since its cut; and all of it goes with the next contribution, once."""
    team, beta = Team(2, "topk", AVERAGE, keeps=True), codec("topk").decay
    team.step(1)
    since = [values(10 + index, 0.1) for index in range(2)]
    carries = team.exchange([1.0, 1.0], [0] * PARTS, [[0, 1], [0], [0, 1], [1]])
    team.train(since)
    team.carry(carries)
    one, kept = team.planes[1], beta * team.planes[1]._up.residual
    for part, bounds in enumerate(BOUNDS):
        own = since[1] if part != 1 else team.cuts[1] - values(0) + since[1]
        expected = one.theta[bounds] + own[bounds] - kept[bounds]
        np.testing.assert_allclose(team.locals[1][bounds], expected, atol=1e-6)
    assert np.abs(kept[BOUNDS[0]]).max() > 0
    np.testing.assert_array_equal(kept[BOUNDS[1]], 0)
    team.cut()
    assert one._cut is not None
    np.testing.assert_allclose(one._cut.total[BOUNDS[0]], (kept - since[1])[BOUNDS[0]], atol=1e-6)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_residual_that_the_model_held_is_gone_with_the_model(keeps: bool) -> None:
    team = Team(2, "topk", AVERAGE, keeps)
    team.step(1)
    team.carry(team.exchange([1.0, 1.0], [0] * PARTS, [[0, 1]] * PARTS))
    one = team.planes[1]
    assert one._up.residual.any()
    assert not one.cut(2, 0, np.full(N, np.nan, np.float32))
    assert one._up.residual.any() != keeps


def test_two_parts_with_the_same_bytes_settle_each_its_own() -> None:
    """What is far below a block's largest value is lost, so different means can come to the same bytes."""
    theta, momentum = np.zeros(8, np.float32), np.zeros(8, np.float32)
    one = DataPlane(theta, momentum, 0, Layout(8, 2), codec("int8"), OuterOptimizer(AVERAGE))
    large = codec("int8").encode(np.array([1, 0, 0, 0], np.float32))
    infos, raws, lost = [], [], []
    for part, little in enumerate((0.0024, 0.0)):
        small = codec("int8").encode(np.array([0.3, little, 0, 0], np.float32))
        raw, info = reduced(one, part, [of(0, 1.0, large), of(1, 1.0, small)])
        infos.append(info)
        raws.append(raw)
        lost.append(codec("int8").decode(small, 4)[1] / 2)
    assert infos[0].digest == infos[1].digest
    one.apply(Commit(1, 0, tuple(infos), 1, None, ""), raws, None)
    assert [one._down[part].residual[1] for part in range(2)] == pytest.approx(lost)
    assert lost[0] > lost[1]


def test_a_residual_handed_over_is_not_blown_up_by_a_tiny_share() -> None:
    """Once with one token among thousands, then with many: what was an error of rounding stays one."""
    team = Team(2, "int8", AVERAGE)
    team.train([values(1, 0.1), values(2, 0.1)])
    team.cut()
    team.carry(team.exchange([1.0, 1.0], [1] * PARTS, [[0, 1]] * PARTS))
    owed = {part: feedback.residual.copy() for part, feedback in team.planes[1]._down.items()}
    team.cut()
    before = team.planes[1]._up.residual.copy()
    team.exchange([1e6, 1.0], [0] * PARTS, [[0, 1]] * PARTS)
    assert not team.planes[1]._down
    for part, bounds in enumerate(BOUNDS):
        moved = np.abs(team.planes[1]._up.residual[bounds]).max()
        assert moved <= MAX_SHARE * np.abs(owed[part]).max() + np.abs(before[bounds]).max() + 0.01


def test_who_is_not_in_a_part_keeps_what_it_owes_from_reducing_it() -> None:
    team = Team(2, "int8", AVERAGE)
    for reducers, included in (([1] * PARTS, [[0, 1]] * PARTS), ([0] * PARTS, [[0]] * PARTS)):
        team.train([values(1, 0.1), values(2, 0.1)])
        team.cut()
        team.carry(team.exchange([1.0, 1.0], reducers, included))
    assert sorted(team.planes[1]._down) == list(range(PARTS))


# -- another state -----------------------------------------------------------------------------------


def test_a_loaded_state_replaces_everything() -> None:
    one = plane(codec_name="int8")
    assert one.cut(1, 0, values(1))
    reduced(one, 0, [of(0, 1.0, one.contribution(1, 0, 0))])
    carry = one.load(values(7), values(8), 5)
    assert carry.origin is None
    np.testing.assert_array_equal(carry.theta, values(7))
    fresh = DataPlane(values(7), values(8), 5, Layout(N, PARTS), codec("int8"), OuterOptimizer(AVERAGE))
    assert one.digest == fresh.digest
    assert one.contribution(1, 0, 0) is None
    assert one.cut(6, 0, values(3))
    assert fresh.cut(6, 0, values(3))
    assert [one.contribution(6, 0, p) for p in range(PARTS)] == [
        fresh.contribution(6, 0, p) for p in range(PARTS)
    ]


def test_a_carry_is_a_copy_that_later_rounds_do_not_change() -> None:
    team = Team(1, "fp32", NESTEROV)
    team.train([values(1)])
    team.cut()
    [carry] = team.exchange([1.0], [0] * PARTS, [[0]] * PARTS)
    kept = carry.theta.copy()
    team.carry([carry])
    team.train([values(2)])
    team.cut()
    team.exchange([1.0], [0] * PARTS, [[0]] * PARTS)
    np.testing.assert_array_equal(carry.theta, kept)


def test_carries_are_taken_in_order_and_a_loaded_state_drops_local_progress() -> None:
    local = values(1)
    one, two = Carry(values(2), values(3)), Carry(values(4), values(5))
    np.testing.assert_array_equal(
        carried(local, [one, two]), values(4) + (values(2) + (local - values(3)) - values(5))
    )
    loaded = Carry(values(6), None)
    np.testing.assert_array_equal(carried(local, [one, loaded]), values(6))
    assert carried(local, [loaded]) is not loaded.theta
    assert carried(local, []) is local


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 6))
def test_each_value_is_in_one_part_of_one_of_so_many_rounds(n: int, parts: int, fragments: int) -> None:
    layout, counts = Layout(n, parts, fragments), np.zeros(n, int)
    for round_ in range(7, 7 + fragments):
        starts = []
        for part in range(parts):
            bounds = layout.range(round_, part)
            counts[bounds] += 1
            starts.append(bounds.start)
            assert layout.bounds[layout.place(round_, part)] == bounds
            assert layout.size(round_, part) == counts[bounds].size
        assert starts == sorted(starts)
    assert (counts == 1).all()
    assert layout.range(1, 0) == layout.range(1 + fragments, 0)


@given(st.data())
def test_what_a_carry_does_is_the_same_in_pieces(data: st.DataObject) -> None:
    edges = data.draw(st.lists(st.integers(0, N), min_size=2, max_size=8, unique=True).map(sorted))
    shares = st.sampled_from([1.0, 0.5, 0.0])
    ranges = [Stretch(slice(a, b), data.draw(shares)) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    carry, local = Carry(values(1), values(2), stretches=tuple(ranges)), values(3)
    expected = local.copy()
    for bounds, share in ranges:
        progress = np.float32(share) * (local[bounds] - values(2)[bounds])
        expected[bounds] = values(1)[bounds] + progress
    np.testing.assert_array_equal(carried(local, [carry]), expected)
    width = data.draw(st.integers(1, N))
    pieces = local.copy()
    for start in range(0, N, width):
        some = slice(start, min(start + width, N))
        was = pieces[some].copy()
        carried(pieces[some], [carry.within(some)], out=pieces[some])
        assert carry.touches(some) or (was == pieces[some]).all()
    np.testing.assert_array_equal(pieces, expected)
    assert carry.touches(slice(0, N)) == bool(ranges)


@given(st.integers(0, 500), st.integers(1, 60))
def test_parts_are_ranges_as_even_as_can_be(n: int, parts: int) -> None:
    bounds = part_bounds(n, parts)
    assert [b.start for b in bounds] == [0, *(b.stop for b in bounds[:-1])]
    assert bounds[-1].stop == n
    sizes = [b.stop - b.start for b in bounds]
    assert max(sizes) - min(sizes) <= 1
