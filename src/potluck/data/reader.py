"""Samples of a dataset by blocks: of one that gives them by number, or of a stream in its one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar, cast

from potluck.data.blocks import blocks_of, samples_of
from potluck.errors import UsageError

Sample = TypeVar("Sample", covariant=True)

LONG_GAP = 1000
"""A stream that can skip does so rather than read on over so many samples."""


class Dataset(Protocol[Sample]):
    """A map-style dataset: samples by number, from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Sample: ...


def reader(
    dataset: Dataset[Any] | Iterable[Any], samples: int, size: int, seed: int
) -> Callable[[int], list[Any]]:
    """A function from the position of a block to its samples.

    Raises:
        UsageError: the dataset has not so many samples. (Of a stream that shows when it ends.)
    """
    # PyTorch gives iterable datasets a __getitem__ too, which only raises; they have no length.
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return _Stream(dataset, samples, size).block
    rows = cast("Dataset[Any]", dataset)
    if len(rows) != samples:
        raise UsageError(
            f"this dataset has {len(rows)} samples, the run's {samples}: all peers need the same"
        )
    return lambda position: [rows[number] for number in samples_of(position, samples, size, seed)]


class _Stream:
    """An iterable that begins anew each time it is iterated, as ``datasets.IterableDataset``. Not shuffled
    by us: neighbours in the stream are a block.
    """

    def __init__(self, dataset: Iterable[Any], samples: int, size: int) -> None:
        self._dataset, self._samples, self._size = dataset, samples, size
        self._rest: Iterator[Any] = iter(())
        self._at = samples

    def block(self, position: int) -> list[Any]:
        start = position % blocks_of(self._samples, self._size) * self._size
        stop = min(start + self._size, self._samples)
        self._go_to(start)
        rows = list(islice(self._rest, stop - start))
        self._at += len(rows)
        if len(rows) < stop - start:
            raise UsageError(
                f"this dataset ended after {self._at} samples, the run's has {self._samples}: all peers need "
                "the same"
            )
        return rows

    def _go_to(self, start: int) -> None:
        skip = getattr(self._dataset, "skip", None)
        if start < self._at or (skip is not None and start - self._at >= LONG_GAP):
            self._rest = iter(skip(start)) if skip is not None else islice(self._dataset, start, None)
            self._at = start
        self._at += sum(1 for _ in islice(self._rest, start - self._at))
