"""Where the values of a spread parameter lie, and in what pieces they travel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potluck.peer.handover import CutRequest
from potluck.peer.layout import Carry, Stretch
from potluck.peer.pieces import Shard, asked, pieces, shards, touched


@given(st.lists(st.integers(0, 7), max_size=3), st.integers(1, 5))
def test_shards_are_what_torch_deals_out(shape: list[int], ranks: int) -> None:
    owners = [(rank,) for rank in range(ranks)]
    values = torch.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    rows = values if values.ndim else values.reshape(1)
    chunks = [chunk.reshape(-1).tolist() for chunk in torch.chunk(rows, ranks)]
    dealt = [values.reshape(-1)[shard.bounds].tolist() for shard in shards(shape, owners)]
    assert dealt == chunks + [[]] * (ranks - len(chunks))


ranges = st.lists(st.integers(0, 60), max_size=8, unique=True).map(
    lambda edges: [slice(*pair) for pair in zip(*[iter(sorted(edges))] * 2, strict=False)]
)


@given(ranges, st.integers(1, 4), st.integers(1, 9))
def test_pieces_are_the_ranges_each_of_one_shard_and_none_too_large(
    wanted: list[slice], ranks: int, most: int
) -> None:
    dealt = shards((20, 3), [(rank,) for rank in range(ranks)])
    found = list(pieces(dealt, wanted, most))
    values = np.arange(60)
    assert [v for piece in found for v in values[piece.bounds]] == [
        v for bounds in wanted for v in values[bounds]
    ]
    for bounds, shard in found:
        assert 0 < bounds.stop - bounds.start <= most
        assert shard.bounds.start <= bounds.start < bounds.stop <= shard.bounds.stop


def test_what_is_asked_for_counts_from_the_parameters_own_start() -> None:
    stretches = (Stretch(slice(0, 12)), Stretch(slice(15, 18)), Stretch(slice(30, 40)))
    assert asked(stretches, slice(10, 30)) == [slice(0, 2), slice(5, 8)]
    assert asked(stretches, slice(18, 30)) == []
    assert asked(None, slice(10, 30)) == [slice(0, 20)]


def carry(*stretches: Stretch, loaded: bool = False) -> Carry:
    none = np.empty(0, np.float32)
    return Carry(none, None if loaded else none, stretches=stretches or None)


@pytest.mark.parametrize(
    ("carries", "request_", "expected"),
    [
        ([], None, []),
        ([carry(Stretch(slice(12, 14)))], None, [slice(2, 4)]),
        ([carry(Stretch(slice(12, 14))), carry(Stretch(slice(13, 17)))], None, [slice(2, 7)]),
        (
            [carry(Stretch(slice(12, 14)))],
            CutRequest(1, 0, 0, (Stretch(slice(5, 11)),)),
            [slice(0, 1), slice(2, 4)],
        ),
        ([carry(Stretch(slice(12, 14)))], CutRequest(1, 0, 0), [slice(0, 10)]),
        ([carry()], None, [slice(0, 10)]),
        ([carry(loaded=True)], None, [slice(0, 10)]),
        ([carry(Stretch(slice(0, 10)), Stretch(slice(20, 30)))], None, []),
    ],
)
def test_what_is_touched(carries: list[Carry], request_: CutRequest | None, expected: list[slice]) -> None:
    assert touched(carries, request_, slice(10, 20)) == expected


def test_copies_of_a_shard_travel_together() -> None:
    [whole] = shards((4, 2), [(0, 1, 2)])
    assert whole == Shard(slice(0, 8), (0, 1, 2))
    assert [piece.shard.owners for piece in pieces([whole], [slice(0, 8)], 5)] == [(0, 1, 2)] * 2
