"""Blocks of datasets that give samples by number, and of streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from potluck.data import reader as module
from potluck.data.blocks import blocks_of, samples_of
from potluck.data.reader import reader
from potluck.errors import UsageError


class Counted:
    """A stream of 0, 1, 2, … that counts how many samples were read."""

    def __init__(self, n: int) -> None:
        self.n, self.read = n, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.n):
            self.read += 1
            yield number


class Skipping(Counted):
    """One that can begin anywhere."""

    def skip(self, start: int) -> list[int]:
        return list(range(start, self.n))


def test_samples_by_number_are_shuffled() -> None:
    data = [f"sample {n}" for n in range(50)]
    read = reader(data, 50, 8, 3)
    assert read(5) == [data[n] for n in samples_of(5, 50, 8, 3)]
    assert sorted(row for b in range(blocks_of(50, 8)) for row in read(b)) == sorted(data)


def test_a_dataset_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match="this dataset has 49 samples, the run's 50"):
        reader(list(range(49)), 50, 8, 3)


@pytest.mark.parametrize("kind", [Counted, Skipping])
def test_a_stream_comes_in_its_order_from_anywhere(kind: type[Counted]) -> None:
    read = reader(kind(21), 21, 4, 0)
    assert [read(position) for position in (0, 1, 4, 5, 2, 6, 11)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [16, 17, 18, 19],
        [20],
        [8, 9, 10, 11],
        [0, 1, 2, 3],
        [20],
    ]


def test_a_stream_reads_on_where_it_can() -> None:
    data = Counted(100)
    read = reader(data, 100, 10, 0)
    for position in (0, 1, 5):
        read(position)
    assert data.read == 60
    read(2)
    assert data.read == 90, "and begins anew where it must"


def test_a_stream_skips_long_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG_GAP", 30)
    data = Skipping(100)
    read = reader(data, 100, 10, 0)
    assert read(0) == list(range(10))
    assert read(9) == list(range(90, 100))
    assert data.read == 0


def test_a_stream_that_ends_early_says_so() -> None:
    read = reader(Counted(17), 100, 10, 0)
    read(0)
    with pytest.raises(UsageError, match="ended after 17 samples, the run's has 100"):
        read(1)


def test_hugging_face_datasets_in_memory_and_streaming() -> None:
    datasets = pytest.importorskip("datasets")

    def rows() -> Iterator[dict[str, Any]]:
        yield from ({"n": n} for n in range(40))

    streamed = datasets.IterableDataset.from_generator(rows)
    read = reader(streamed, 40, 8, 0)
    assert read(1) == [{"n": n} for n in range(8, 16)]
    assert read(4) == [{"n": n} for n in range(32, 40)]
    kept = datasets.Dataset.from_dict({"n": list(range(40))})
    assert [row["n"] for row in reader(kept, 40, 8, 1)(2)] == samples_of(2, 40, 8, 1)
