"""Blocks of data: every sample once an epoch, in an order of its own."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.data.blocks import blocks_of, permuted, samples_of, share
from potluck.errors import UsageError


@given(n=st.integers(1, 3000), key=st.integers(0, 1 << 70))
def test_a_permutation_reaches_everything_once(n: int, key: int) -> None:
    assert sorted(permuted(place, n, key) for place in range(n)) == list(range(n))


def test_large_numbers_take_no_memory() -> None:
    n = 10**15
    found = {permuted(place, n, 7) for place in range(1000)}
    assert len(found) == 1000
    assert all(0 <= place < n for place in found)
    assert max(found) > n // 2


@given(samples=st.integers(1, 400), size=st.integers(1, 50), seed=st.integers(0, (1 << 53) - 1))
def test_an_epoch_has_every_sample_once(samples: int, size: int, seed: int) -> None:
    blocks = blocks_of(samples, size)
    epochs = [[samples_of(e * blocks + b, samples, size, seed) for b in range(blocks)] for e in range(2)]
    for epoch in epochs:
        assert sorted(number for block in epoch for number in block) == list(range(samples))
        assert all(len(block) == size for block in epoch[:-1])


def test_epochs_and_seeds_differ() -> None:
    first = [samples_of(b, 1000, 10, 3) for b in range(100)]
    assert first == [samples_of(b, 1000, 10, 3) for b in range(100)]
    assert first != [samples_of(b + 100, 1000, 10, 3) for b in range(100)]
    assert first != [samples_of(b, 1000, 10, 4) for b in range(100)]


def test_no_order_shows_through() -> None:
    """Neighbours in an epoch are as far apart as chance has it."""
    order = [permuted(place, 10_000, 5) for place in range(10_000)]
    gaps = [abs(a - b) for a, b in pairwise(order)]
    assert 3000 < sum(gaps) / len(gaps) < 3700


@pytest.mark.parametrize(("samples", "size"), [(0, 8), (8, 0), (-1, 8)])
def test_what_is_no_data(samples: int, size: int) -> None:
    with pytest.raises(UsageError, match="are no data"):
        blocks_of(samples, size)


@given(samples=st.integers(1, 40), ranks=st.integers(1, 9))
def test_ranks_share_a_block_and_none_stands_idle(samples: int, ranks: int) -> None:
    block = list(range(samples))
    shares = [share(block, rank, ranks) for rank in range(ranks)]
    assert all(shares)
    assert {sample for one in shares for sample in one} == set(block)
    if samples >= ranks:
        assert sorted(sample for one in shares for sample in one) == block
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
