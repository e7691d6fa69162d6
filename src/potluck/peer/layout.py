"""How vectors are cut into parts and fragments, and what a new shared state does to a model in training.

Pure arithmetic on ranges and vectors; ``dataplane`` decides what is carried over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


class Stretch(NamedTuple):
    """A range of the parameters that a round exchanges; and of its progress, the share that stays in the
    model with a new shared state.
    """

    bounds: slice
    share: float = 1.0


@dataclass(frozen=True)
class Layout:
    """How vectors [n] are cut: into ``parts`` · ``fragments`` ranges. A round exchanges one fragment in turn,
    each ``fragments``-th range from its first on (strided fragments: arXiv 2501.18512).
    """

    n: int
    parts: int
    fragments: int = 1

    @cached_property
    def bounds(self) -> list[slice]:
        """All ranges."""
        return part_bounds(self.n, self.ranges)

    @property
    def ranges(self) -> int:
        """How many there are."""
        return self.parts * self.fragments

    def place(self, round_: int, part: int) -> int:
        """Which of the ranges is a part of a round."""
        return part * self.fragments + round_ % self.fragments

    def range(self, round_: int, part: int) -> slice:
        """The range of a part of a round."""
        return self.bounds[self.place(round_, part)]

    def stretches(self, round_: int) -> tuple[Stretch, ...]:
        """All that a round exchanges."""
        found: list[Stretch] = []
        for part in range(self.parts):
            add(found, self.range(round_, part))
        return tuple(found)

    def size(self, round_: int, part: int) -> int:
        """Values in a part of a round."""
        bounds = self.range(round_, part)
        return int(bounds.stop - bounds.start)


@dataclass(frozen=True)
class Carry:
    """What a new shared state does to a model in training: θ ← theta + share · (θ − origin) in the ranges of
    ``stretches`` (None: everywhere, with all of it), ascending; or θ ← theta.

    ``origin`` [n] is where the progress starts that the shared state does not have yet: the cut for parts
    that included our contribution, the old shared state for the others; but for what the model keeps
    (``Rounds.keeps``). To mix, it is the new shared state. ``included``: there were any that included it.
    """

    theta: Vector
    origin: Vector | None
    included: bool = False
    stretches: tuple[Stretch, ...] | None = None

    def within(self, bounds: slice) -> Carry:
        """What it does to a range of the parameters."""
        if self.origin is None:
            return Carry(self.theta[bounds], None)
        inside = None if self.stretches is None else tuple(within(self.stretches, bounds))
        return Carry(self.theta[bounds], self.origin[bounds], self.included, inside)

    def touches(self, bounds: slice) -> bool:
        """Whether it does anything to a range of the parameters."""
        return self.origin is None or self.stretches is None or any(within(self.stretches, bounds))


def within(stretches: Sequence[Stretch], bounds: slice) -> Iterator[Stretch]:
    """What of them, ascending, is in a range of the parameters, counted from its start."""
    first = bisect_right(stretches, bounds.start, key=lambda stretch: int(stretch.bounds.stop))
    for number in range(first, len(stretches)):
        ours, share = stretches[number]
        if ours.start >= bounds.stop:
            return
        start, stop = max(ours.start, bounds.start), min(ours.stop, bounds.stop)
        yield Stretch(slice(start - bounds.start, stop - bounds.start), share)


def part_bounds(n: int, parts: int) -> list[slice]:
    """Ranges of [n], as even as can be."""
    return [slice(n * p // parts, n * (p + 1) // parts) for p in range(parts)]


def add(stretches: list[Stretch], bounds: slice, share: float = 1.0) -> None:
    """One more range, as part of the last one where it goes on from that."""
    if stretches and (stretches[-1].bounds.stop, stretches[-1].share) == (bounds.start, share):
        bounds = slice(stretches.pop().bounds.start, bounds.stop)
    stretches.append(Stretch(bounds, share))


def carried(local: Vector, carries: Sequence[Carry], out: Vector | None = None) -> Vector:
    """The model's parameters [n] after some new shared states, oldest first; in ``out``, which may be
    ``local``, or in memory of their own.
    """
    out = np.empty_like(local) if out is None else out
    for carry in carries:
        if carry.origin is None:
            np.copyto(out, carry.theta)
        else:
            if carry.stretches is not None and local is not out:
                np.copyto(out, local)
            everywhere = (Stretch(slice(None)),)
            for bounds, share in everywhere if carry.stretches is None else carry.stretches:
                np.subtract(local[bounds], carry.origin[bounds], out=out[bounds])
                if share != 1:
                    np.multiply(out[bounds], np.float32(share), out=out[bounds])
                np.add(carry.theta[bounds], out[bounds], out=out[bounds])
        local = out
    return local
