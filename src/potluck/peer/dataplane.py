"""The vectors of one peer: shared state, local progress, residuals. No I/O, and no decisions.

Vectors are fp32 on the CPU, all parameters one after the other [n]; part p of a round is a range of them
(``Layout``). Contributions and results are both encoded with error feedback (``codecs.feedback``): a member's
residual goes up with its next contribution, a reducer's comes down with the next result of the same range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from potluck.codecs import Codec
from potluck.codecs.feedback import ErrorFeedback
from potluck.codecs.fp32 import Fp32
from potluck.errors import CorruptData
from potluck.optim.outer import OuterOptimizer
from potluck.optim.state import state_digest
from potluck.peer.layout import Carry, Layout, Stretch, Vector, add
from potluck.peer.spare import Spare
from potluck.reduce.mean import Values, weighted_mean
from potluck.sparse import Sparse
from potluck.store.residuals import Owed
from potluck.wire.records import Commit, PartInfo

ABSURD = 1e12
"""No parameter of a model that trains changes by so much in a round; whoever says so is refused."""

MAX_SHARE = 32.0
"""A residual that goes up with our share is divided by that share, by no less than one in so many: the next
share may be far larger, and must not make much of what is only an error of rounding."""


SLICE = 1 << 16
"""Values that are cut at a time: they stay in the processor's cache, and each call is so short that a
training loop in Python seldom takes the interpreter in between."""


class Given(NamedTuple):
    """What goes into a mean: encoded values of one member with its weight, or a mean of several, in fp32."""

    weights: tuple[tuple[int, float], ...]
    raw: bytes
    partial: bool = False

    @property
    def weight(self) -> float:
        """Tokens behind it."""
        return sum(weight for _, weight in self.weights)


class Mean(NamedTuple):
    """A weighted mean, encoded; who is in it, ascending, and who was refused for what can't be decoded."""

    raw: bytes
    contributors: tuple[tuple[int, float], ...]
    refused: tuple[int, ...]


@dataclass
class _Cut:
    """A contribution in flight: where the model stood, what was meant (once it is encoded: what that lost),
    and what is sent, by part.
    """

    key: tuple[int, int]
    local: Vector
    total: Vector
    encoded: dict[int, bytes]
    weights: dict[int, float]
    """Squares of the norms of what is sent."""


class DataPlane:
    """State after a round, and everything that turns it into the next one.

    Args:
        theta, momentum: shared state [n]; taken over, not copied.
        round_: the round they are the state after.
        layout: how vectors are cut.
        keeps: what our contributions lose is in the model (``Carry``), and comes with its next difference.
        mix: a model becomes that much of itself and the rest of a new shared state that has its progress;
            None: what it learnt since its cut is carried over.
    """

    def __init__(
        self,
        theta: Vector,
        momentum: Vector,
        round_: int,
        layout: Layout,
        codec: Codec,
        outer: OuterOptimizer,
        keeps: bool = False,
        mix: float | None = None,
    ) -> None:
        self.theta = theta
        self.momentum = momentum
        self.round = round_
        self._digest: str | None = None
        self.codec = codec
        self._outer = outer
        self._keeps, self._mix = keeps, mix
        self._layout = layout
        self._up = self._feedback(theta.size)
        self._down: dict[int, ErrorFeedback] = {}
        """By place (``Layout.place``)."""
        self._sent: dict[int, float] = {}
        self._cut: _Cut | None = None
        self._total = np.empty_like(theta)
        self._spare = Spare()
        self._reduced: dict[int, Vector] = {}
        self._results: dict[tuple[int, str], Vector] = {}

    @property
    def digest(self) -> str:
        """The state digest that peers compare."""
        if self._digest is None:
            self._digest = state_digest(self.round, self.theta, self.momentum)
        return self._digest

    def cut(self, round_: int, attempt: int, local: Vector) -> bool:
        """Take the model's parameters ``local`` [n], ours from now on, as this round's contribution; only
        those in its fragment are looked at.

        Returns False, with nothing kept, when it holds NaN or infinity, or is absurd: it has to begin anew
        from the shared state, and a residual that it held is gone with it.
        """
        self._cut, total = None, self._total
        for bounds in _pieces([self._layout.range(round_, part) for part in range(self._layout.parts)]):
            with np.errstate(over="ignore", invalid="ignore"):
                np.subtract(self.theta[bounds], local[bounds], out=total[bounds])
                if not self._keeps:
                    self._up.add(total[bounds], bounds, out=total[bounds])
            if not _sound(total[bounds]):
                if self._keeps:
                    self._up = self._feedback(self.theta.size)
                return False
        self._cut = _Cut((round_, attempt), local, total, {}, {})
        return True

    def contribution(self, round_: int, attempt: int, part: int) -> bytes | None:
        """Our encoded contribution of a part, while that cut is kept; encoded when it is first asked for, so
        that one part travels while the next is encoded.
        """
        cut = self._cut
        if cut is None or cut.key != (round_, attempt):
            return None
        if part not in cut.encoded:
            cut.encoded[part] = self.codec.send(cut.total[self._layout.range(round_, part)])
        return cut.encoded[part]

    def combine(self, round_: int, part: int, given: Sequence[Given]) -> Mean:
        """Weighted mean in fp32 of what a group gave, in that order; empty if nobody is left."""
        values, kept, refused = self._sorted_out(self._layout.size(round_, part), given)
        if not kept:
            return Mean(b"", (), refused)
        mean = weighted_mean(values, [one.weight for one in kept])
        return Mean(Fp32().encode(mean), _all(kept), refused)

    def reduce(self, round_: int, part: int, given: Sequence[Given]) -> Mean:
        """Weighted mean in that order, plus our downlink residual; empty if nobody is left.

        The residual is settled by the commit of the content that ``reduced_to`` names.
        """
        place, size = self._layout.place(round_, part), self._layout.size(round_, part)
        values, kept, refused = self._sorted_out(size, given)
        if not kept:
            return Mean(b"", (), refused)
        feedback = self._down.setdefault(place, self._feedback(size))
        mean = weighted_mean(values, [one.weight for one in kept])
        lost = feedback.add(mean, out=mean)
        raw = self.codec.send(lost)
        self._reduced[place] = lost
        return Mean(raw, _all(kept), refused)

    def reduced_to(self, round_: int, info: PartInfo) -> None:
        """What was reduced last for a part is the content with this digest."""
        place = self._layout.place(round_, info.part)
        self._results[place, info.digest] = self._reduced.pop(place)

    def _sorted_out(
        self, size: int, given: Sequence[Given]
    ) -> tuple[list[Values], list[Given], tuple[int, ...]]:
        """Decoded values, what they are of, and the members whose can't be decoded or are absurd."""
        values, kept, refused = [], [], []
        for one in given:
            value = self._decoded(one.raw, size, Fp32() if one.partial else self.codec)
            if value is None:
                refused += [index for index, _ in one.weights]
            else:
                values.append(value)
                kept.append(one)
        return values, kept, tuple(refused)

    def decoded(self, round_: int, part: int, raw: bytes | memoryview) -> Values:
        """The values of a part's result, as ``apply`` has them."""
        size = self._layout.size(round_, part)
        values = self._decoded(raw, size, self.codec)
        return values if values is not None else Sparse(size, np.empty(0, np.int64), np.empty(0, np.float32))

    def weigh(self, round_: int, attempt: int, part: int) -> None:
        """Look at what our contribution of a part sends, while that cut is kept, before it counts."""
        cut = self._cut
        if cut is not None and cut.key == (round_, attempt) and part in cut.encoded:
            self._weighed(cut, part)

    def apply(
        self, commit: Commit, results: Sequence[bytes | memoryview | Values], index: int | None
    ) -> Carry:
        """Take the outer step of a committed round; ``results`` are its parts' values, encoded or
        ``decoded``; ``index`` is our place among its members.

        A result that can't be decoded, though it is what was committed, changes nothing in its part: all
        peers see the same bytes, so all agree on that.
        """
        assert commit.round == self.round + 1, "commits are applied in order"
        cut = self._cut if self._cut and self._cut.key == (commit.round, commit.attempt) else None
        inside = [info.part for info in commit.parts if index in dict(info.contributors)] if cut else []
        if cut is not None:
            self._settle_up(cut, inside)
        origin = cut.local if cut is not None else self._spare.take(self.theta.size)
        stretches: list[Stretch] = []
        for info in commit.parts:
            place, included = self._layout.place(commit.round, info.part), info.part in inside
            bounds = self._layout.bounds[place]
            held = self._up.residual[bounds].copy() if self._keeps and not included else None
            if not included:
                origin[bounds] = self.theta[bounds]
            decoded = results[info.part]
            if isinstance(decoded, bytes | memoryview):
                decoded = self.decoded(commit.round, info.part, decoded)
            self._settle_down(info, index, place)
            if self._keeps:
                origin[bounds] += self._kept(bounds, held)
            self._outer.step(self.theta[bounds], self.momentum[bounds], decoded)
            share = 1.0
            if self._mix is not None and included:
                origin[bounds], share = self.theta[bounds], self._mix
            add(stretches, bounds, share)
        self.round, self._digest = commit.round, None
        self._cut = None
        self._results.clear()
        self._reduced.clear()
        return Carry(self._copy(), origin, bool(inside), tuple(stretches))

    def _kept(self, bounds: slice, held: Vector | None) -> Vector:
        """What the model is to hold of the residual, less what it holds already."""
        residual = self._up.residual[bounds]
        kept: Vector = np.float32(self.codec.decay) * (residual if held is None else residual - held)
        return kept

    def _copy(self) -> Vector:
        copy = self._spare.take(self.theta.size)
        np.copyto(copy, self.theta)
        return copy

    def _settle_up(self, cut: _Cut, parts: Sequence[int]) -> None:
        """Our contribution counted in these parts: keep what it lost."""
        round_ = cut.key[0]
        for part in parts:
            self._sent[self._layout.place(round_, part)] = self._weighed(cut, part)
        if len(parts) == len(self._layout.bounds):
            self._up.residual, self._total = cut.total, self._up.residual
            return
        for bounds in (self._layout.range(round_, part) for part in parts):
            np.copyto(self._up.residual[bounds], cut.total[bounds])

    def _weighed(self, cut: _Cut, part: int) -> float:
        """The square of the norm of what our contribution of a part sends."""
        if part not in cut.weights:
            raw = self.contribution(*cut.key, part)  # if nobody asked for it, now, to see what it loses
            assert raw is not None
            sent = _given(self.codec.read(raw, self._layout.size(cut.key[0], part)))
            cut.weights[part] = float(np.vdot(sent, sent))
        return cut.weights[part]

    def _settle_down(self, info: PartInfo, index: int | None, place: int) -> None:
        """Our result counted: keep what it lost. Another's did: our old residual goes up with our share."""
        ours = self._results.get((place, info.digest))
        if ours is not None:
            self._down[place].settle(ours)
            return
        weight = dict(info.contributors).get(index) if index is not None else None
        if weight is not None and place in self._down:
            share = np.float32(min(info.weight / weight, MAX_SHARE))
            self._up.residual[self._layout.bounds[place]] += share * self._down.pop(place).residual

    def abandon(self) -> Vector:
        """Drop the contribution in flight, and the residual of earlier ones; returns Θ [n], a copy."""
        self._cut = None
        self._up = self._feedback(self.theta.size)
        return self.theta.copy()

    def load(self, theta: Vector, momentum: Vector, round_: int) -> Carry:
        """Take another state over; local progress and residuals belong to the old one and are dropped."""
        self.theta, self.momentum, self.round, self._digest = theta, momentum, round_, None
        self._up = self._feedback(theta.size)
        self._down.clear()
        self._results.clear()
        self._reduced.clear()
        self._cut = None
        return Carry(theta.copy(), None)

    @property
    def sent(self) -> float:
        """The norm of what our last contribution to each part sent."""
        return math.sqrt(sum(self._sent.values()))

    def owed(self) -> Owed:
        """What is not sent yet, in this plane's own memory, and what will be if that in flight counts."""
        cut, layout, counted = self._cut, self._layout, {}
        for part in cut.encoded if cut is not None else ():
            assert cut is not None
            place = layout.place(cut.key[0], part)
            counted[place] = cut.total[layout.bounds[place]]
        results = {place: (digest, lost) for (place, digest), lost in self._results.items()}
        down = {place: feedback.residual for place, feedback in self._down.items()}
        return Owed(self.round, self.digest, self._up.residual, down, None, counted, results)

    def take_up(self, owed: Owed, carry: Carry) -> Carry:
        """Owe this as well; returns ``carry``, of this state, with what the model is to hold of it."""
        self._up.residual += owed.up
        for place, values in owed.down.items():
            self._down.setdefault(place, self._feedback(values.size)).residual += values
        if not self._keeps:
            return carry
        kept = np.float32(self.codec.decay) * owed.up
        if carry.origin is None:
            return Carry(carry.theta - kept, None)
        origin = carry.theta + kept  # where the round exchanged nothing the shared state is what it was
        for bounds, _ in carry.stretches or ():
            np.add(carry.origin[bounds], kept[bounds], out=origin[bounds])
        return Carry(carry.theta, origin, carry.included)

    def afresh(self, carry: Carry) -> Carry:
        """What a model begins with that does not train yet: Θ, less what it is to hold of the residual."""
        kept = np.float32(self.codec.decay) * self._up.residual if self._keeps else None
        return Carry(carry.theta if kept is None else self.theta - kept, None)

    def _decoded(self, raw: bytes | memoryview, n: int, codec: Codec) -> Values | None:
        """Some values, or None if they can't be decoded or are absurd."""
        try:
            value = codec.read(raw, n)
        except CorruptData:
            return None
        return value if _sound(_given(value)) else None

    def _feedback(self, n: int) -> ErrorFeedback:
        return ErrorFeedback(n, self.codec.decay)


def _all(given: Sequence[Given]) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(pair for one in given for pair in one.weights))


def _given(values: Values) -> Vector:
    """The values that are not left out."""
    return values.values if isinstance(values, Sparse) else values


def _sound(values: Vector) -> bool:
    return all(_moderate(values[some]) for some in _pieces([slice(0, values.size)]))


def _moderate(values: Vector) -> bool:
    low, high = (
        values.min(initial=0),
        values.max(initial=0),
    )  # NaN, if there is one, and no number is below it
    return bool(low > -ABSURD) and bool(high < ABSURD)


def _pieces(bounds: Sequence[slice]) -> Iterator[slice]:
    """Some ranges, ``SLICE`` values at a time."""
    return (
        slice(at, min(at + SLICE, some.stop)) for some in bounds for at in range(some.start, some.stop, SLICE)
    )
