"""Parameters that are spread over ranks come to rank 0 and go back, in bounded pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from potluck.errors import UsageError
from potluck.peer.handover import CutRequest
from potluck.peer.layout import Carry, Stretch, Vector, carried
from potluck.peer.values import Copied, Sharded, Values, Whole, signed, trained, values_of
from tests.peer import ranks
from tests.peer.ranks import Rank, Wires

PIECE = 4
SHAPE = (5, 3)
PLACE = slice(10, 25)
N = 30


class Spread:
    """Stands for a DTensor: one rank's rows of a parameter."""

    def __init__(self, local: torch.Tensor) -> None:
        self.local, self.shape, self.dtype = local, SHAPE, local.dtype

    def to_local(self) -> torch.Tensor:
        return self.local


def everywhere(world: int, act: Callable[[Rank], None]) -> Wires:
    """All ranks do it at the same time."""

    def without_grad(rank: Rank) -> None:
        with torch.no_grad():
            act(rank)

    wires = ranks.everywhere(world, without_grad)
    assert max(wires.sizes, default=0) <= PIECE
    return wires


LAYOUTS: dict[str, list[tuple[int, ...]]] = {
    "two": [(0,), (1,)],
    "more-than-rows": [(n,) for n in range(7)],
    "replicas": [(0, 2), (1, 3)],
    "turned": [(1,), (0,)],
}


def make(kind: str, values: torch.Tensor, rank: Rank) -> tuple[Values, torch.Tensor]:
    """A parameter on a rank, and its memory there."""
    if kind in ("copied", "transposed"):
        mine = values.clone()
        mine = mine.t().contiguous().t() if kind == "transposed" else mine
        return Copied(mine, rank), mine  # type: ignore[arg-type]
    owners = LAYOUTS[kind]
    number = next(n for n, those in enumerate(owners) if rank.rank in those)
    each = -(-SHAPE[0] // len(owners))
    mine = values[each * number : each * (number + 1)].clone()
    return Sharded(Spread(mine), owners, rank), mine  # type: ignore[arg-type]


def together(kind: str, found: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """The whole parameter, once for each copy of it."""
    if kind in ("copied", "transposed"):
        return list(found.values())
    copies = zip(*LAYOUTS[kind], strict=True)
    return [torch.cat([found[rank] for rank in copy]) for copy in copies]


WORLDS = {"copied": 3, "transposed": 2, "two": 2, "more-than-rows": 7, "replicas": 4, "turned": 2}
kinds = pytest.mark.parametrize("kind", WORLDS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.peer.pieces.pieces.__defaults__", (PIECE,))


def random(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@kinds
@dtypes
@pytest.mark.parametrize(
    "stretches", [None, (Stretch(slice(3, 12)), Stretch(slice(14, 22)))], ids=["all", "some"]
)
def test_rank_0_gets_the_values_that_are_asked_for(
    kind: str, dtype: torch.dtype, stretches: Sequence[Stretch] | None
) -> None:
    values, vector = torch.from_numpy(random(*SHAPE)).to(dtype), np.zeros(N, np.float32)

    def act(rank: Rank) -> None:
        parameter, _ = make(kind, values, rank)
        parameter.copy(PLACE, vector if rank.speaks else np.empty(0, np.float32), stretches)

    everywhere(WORLDS[kind], act)
    expected = np.zeros(N, np.float32)
    Whole(values).copy(PLACE, expected, stretches)
    np.testing.assert_array_equal(vector, expected)


@kinds
@dtypes
def test_values_that_are_written_are_on_all_ranks(kind: str, dtype: torch.dtype) -> None:
    given, found = random(N), {}

    def act(rank: Rank) -> None:
        parameter, found[rank.rank] = make(kind, torch.zeros(SHAPE, dtype=dtype), rank)
        parameter.write((given if rank.speaks else np.empty(0, np.float32))[PLACE])

    everywhere(WORLDS[kind], act)
    for whole in together(kind, found):
        assert torch.equal(whole, torch.from_numpy(given[PLACE]).reshape(SHAPE).to(dtype))


def some_carries(number: int) -> list[Carry]:
    theta, origin = random(N), random(N) * 2
    part = (Stretch(slice(8, 13)), Stretch(slice(20, 26), 0.5))
    return [
        Carry(theta + 1, None),
        Carry(theta, origin, included=True),
        Carry(theta * 3, origin, stretches=part),
        Carry(theta * 5, origin, stretches=(Stretch(slice(16, 18)),)),
    ][number:]


@kinds
@dtypes
@pytest.mark.parametrize("number", [0, 2, 3], ids=["loaded", "fragments", "little"])
@pytest.mark.parametrize("cut", [False, True], ids=["", "cut"])
def test_states_are_carried_over_with_the_bits_of_one_process(
    kind: str, dtype: torch.dtype, number: int, cut: bool
) -> None:
    values, carries = torch.from_numpy(random(*SHAPE)).to(dtype), some_carries(number)
    request = CutRequest(1, 0, 0, (Stretch(slice(9, 15)), Stretch(slice(23, 29)))) if cut else None
    none = np.empty(0, np.float32)
    empty = [Carry(none, None if c.origin is None else none, stretches=c.stretches) for c in carries]
    vector, found = np.zeros(N, np.float32), {}

    def act(rank: Rank) -> None:
        parameter, found[rank.rank] = make(kind, values, rank)
        mine: Vector = vector if rank.speaks else none
        parameter.carry(PLACE, carries if rank.speaks else empty, mine if cut else None, request)

    everywhere(WORLDS[kind], act)
    local = values.float().numpy().reshape(-1).copy()
    expected = carried(local, [c.within(PLACE) for c in carries])
    for whole in together(kind, found):
        assert torch.equal(whole, torch.from_numpy(expected).reshape(SHAPE).to(dtype))
    for bounds in (slice(10, 15), slice(23, 25)) if cut else ():
        np.testing.assert_array_equal(vector[bounds], expected[bounds.start - 10 : bounds.stop - 10])


def test_only_what_a_fragment_has_travels() -> None:
    def act(rank: Rank) -> None:
        parameter, _ = make("two", torch.zeros(SHAPE), rank)
        parameter.copy(PLACE, np.zeros(N, np.float32), (Stretch(slice(18, 22)),))

    assert sum(everywhere(2, act).sizes) == 3, "one of the four is rank 0's own"


# -- names -------------------------------------------------------------------------------------------


class Nested(nn.Module):
    """A submodule that is really called so."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_wrappers_leave_names_as_they_are() -> None:
    names = ["module.weight", "module.bias"]
    model = Nested()
    assert [name for name, _ in trained(model)] == names
    assert [name for name, _ in trained(torch.compile(model, backend="eager"))] == names
    model.module = torch.compile(model.module, backend="eager")
    assert [name for name, _ in trained(model)] == names
    assert signed(model) == signed(Nested())
    assert signed(model) != signed(Nested().to(torch.bfloat16))


def test_the_first_fsdp_is_refused_in_words() -> None:
    class FullyShardedDataParallel(nn.Linear):
        """By its name alone: the real one needs a process group."""

    with pytest.raises(UsageError, match="fully_shard instead"):
        list(trained(nn.Sequential(FullyShardedDataParallel(1, 1))))


def test_a_parameter_that_is_spread_over_others_than_this_peer_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.weight.device_mesh = SimpleNamespace(mesh=torch.arange(4))  # type: ignore[assignment]
    with pytest.raises(UsageError, match="weight is spread over 4 ranks, and this peer has 1"):
        values_of(model, None)
