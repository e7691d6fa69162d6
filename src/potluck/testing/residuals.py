"""What lossy encoding took from members and reducers, in float64, beside the system's own account of it.

A member owes what its last counted contribution lost; a reducer what its last counted result lost, and hands
that on with its own next contribution when another peer reduces the part. Forgotten or counted twice, either
shows in the next thing sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potluck.codecs import Codec
from potluck.peer.dataplane import MAX_SHARE
from potluck.wire.records import Commit, Member, PartInfo

Exact = NDArray[np.float64]
Key = tuple[int, int]
Place = tuple[int, int]

ROUNDING = 3e-5
"""How far fp32 arithmetic may take what is sent from this account."""

LOSS = 1.02
"""What is sent loses no more than an encoding of this account would, and some rounding."""

NUDGES = (1 - ROUNDING, 1.0, 1 + ROUNDING)
"""The account is encoded with these too: for so little a rounded scale may fall either way."""


class Residuals:
    """The account of every life.

    Args:
        fragments: ranges of the parts in a vector of [n] values, of each fragment.
        coder: how they are encoded.
        keeps: members' models hold what their contributions lost.
    """

    def __init__(
        self, n: int, fragments: Sequence[Sequence[slice]], coder: Codec, keeps: bool = False
    ) -> None:
        self._keeps = keeps
        self._n, self._fragments, self._codec = n, fragments, coder
        self._up: dict[Member, Exact] = {}
        self._down: dict[Member, dict[Place, Exact]] = {}
        self._cuts: dict[Member, tuple[Key, Exact, Sequence[Exact]]] = {}
        self._results: dict[Member, dict[tuple[int, str], Exact]] = {}
        self._unsure: set[tuple[Member, Place]] = set()
        self.closed: set[Member] = set()
        """Lives of which nothing may count any more, for what they owed another one has taken up."""
        self.closed_results: set[str] = set()
        """Digests of their results that had not counted by then."""

    def forget(self, member: Member) -> None:
        """A life takes another state over: what it owed belongs to the old one."""
        for account in (self._up, self._down, self._cuts, self._results):
            account.pop(member, None)
        self._unsure = {(other, place) for other, place in self._unsure if other != member}

    def took_up(self, member: Member, last: Member) -> None:
        """A life owes from now on what the last one of its peer does."""
        up, down = self._up.pop(last, np.zeros(self._n)), self._down.pop(last, {})
        self._up[member] = self._up.get(member, np.zeros(self._n)) + up
        own = self._down.setdefault(member, {})
        for part, values in down.items():
            own[part] = own.get(part, np.zeros(values.size)) + values
        self._unsure |= {(member, part) for other, part in self._unsure if other == last}
        self.closed.add(last)
        self.closed_results |= {digest for _, digest in self._results.pop(last, {})}
        self._cuts.pop(last, None)

    def begins(self, member: Member) -> None:
        """A life's model is the shared state again: what it alone held is lost."""
        if self._keeps:
            self._up.pop(member, None)

    def unsure(self, member: Member, round_: int, part: int) -> None:
        """A part was reduced after its round was committed, from what is not known here any more.

        It may have got the very bytes that were committed, and then takes their residual for its own, though
        another reduced them: a rounding error counted twice, which does no harm. It is not followed further.
        """
        self._unsure.add((member, self._place(round_, part)))

    def abandon(self, member: Member) -> None:
        """A life's work since the last commit went to others, and what it owed as a member with it."""
        for account in (self._up, self._cuts):
            account.pop(member, None)

    def cut(self, member: Member, key: Key, progress: Exact, decoded: Sequence[Exact]) -> float:
        """A contribution is encoded, ``decoded`` by part; returns by how much it is off from progress and
        residual [n], over what encoding may cost.
        """
        total = progress + self._codec.decay * self._up.get(member, np.zeros(self._n))
        self._cuts[member] = key, total, decoded
        checked = [
            self._over(total[bounds], sent)
            for part, (bounds, sent) in enumerate(zip(self._bounds(key[0]), decoded, strict=True))
            if (member, self._place(key[0], part)) not in self._unsure
        ]
        return max(checked, default=0.0)

    def reduced(self, member: Member, round_: int, info: PartInfo, mean: Exact, decoded: Exact) -> float:
        """A part is reduced; returns by how much it is off from mean and residual, as ``cut`` does."""
        place = self._place(round_, info.part)
        total = mean + self._codec.decay * self._down.get(member, {}).get(place, np.zeros(mean.size))
        self._results.setdefault(member, {})[info.part, info.digest] = total
        return 0.0 if (member, place) in self._unsure else self._over(total, decoded)

    def applied(self, member: Member, commit: Commit, index: int | None, decoded: Sequence[Exact]) -> None:
        """A peer took the outer step of a round, whose results decode so; ``index`` is its place in it."""
        key, total, sent = self._cuts.pop(member, ((0, 0), None, None))
        results = self._results.pop(member, {})
        up = self._up.setdefault(member, np.zeros(self._n))
        down = self._down.setdefault(member, {})
        for info, bounds, result in zip(commit.parts, self._bounds(commit.round), decoded, strict=True):
            place = self._place(commit.round, info.part)
            weight = dict(info.contributors).get(index) if index is not None else None
            if weight is not None and key == (commit.round, commit.attempt):
                assert total is not None
                assert sent is not None
                up[bounds] = total[bounds] - sent[info.part]
            ours = results.get((info.part, info.digest))
            if ours is not None:
                down[place] = ours - result
            elif weight is not None and place in down:
                up[bounds] += min(info.weight / weight, MAX_SHARE) * down.pop(place)

    def kept(self, member: Member) -> Exact:
        """What a member's model holds of what its contributions lost."""
        owed = self._up.get(member) if self._keeps else None
        return np.zeros(self._n) if owed is None else self._codec.decay * owed

    def known(self, member: Member, off: Exact) -> float:
        """The most of ``off`` [n] where a member's model holds what is followed here (see ``unsure``)."""
        places = ((f, p, b) for f, ranges in enumerate(self._fragments) for p, b in enumerate(ranges))
        sure = [off[b] for f, p, b in places if not (self._keeps and (member, (f, p)) in self._unsure)]
        return max((float(values.max()) for values in sure), default=0.0)

    def _bounds(self, round_: int) -> Sequence[slice]:
        return self._fragments[round_ % len(self._fragments)]

    def _place(self, round_: int, part: int) -> Place:
        return round_ % len(self._fragments), part

    def _over(self, meant: Exact, sent: Exact) -> float:
        """By how much a value is off, beyond what encoding and rounding may cost."""
        largest = float(np.abs(meant).max())
        lost = max(self._loss(nudge * meant) for nudge in NUDGES)
        return float(np.abs(meant - sent).max()) - LOSS * lost - ROUNDING * (1 + largest)

    def _loss(self, values: Exact) -> float:
        """The most that encoding takes from a value."""
        due = self._codec.decode(self._codec.encode(values.astype(np.float32)), values.size)
        return float(np.abs(values - due).max())
