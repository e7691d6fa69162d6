"""Who has which block of the data: a fold over the ledger, so that it alone proves what is in the model.

A run goes through its data by *positions* 0, 1, 2, …: position p is block p mod n of epoch p div n, in an
order that is shuffled anew each epoch (``data.blocks``). Each is free, leased to one life of one peer, or
included; only a commit includes, and only what was leased to its contributors. What a peer that is gone had
not yet got into a commit is free again, and goes out before anything new.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

from potluck.wire.records import Member

Span = tuple[int, int]
"""Positions from the first up to, and without, the second."""


class Leases:
    """The data of one run.

    Args:
        blocks: in an epoch.
        epochs: how often the data is gone through; 0 is for ever.
    """

    def __init__(self, blocks: int, epochs: int) -> None:
        self.end = blocks * epochs if epochs else None
        """The position at which the data ends; None if it never does."""
        self.included: list[Span] = []
        """Positions that are in the model, ascending and merged."""
        self.grants = 0
        """Records that changed hands so far."""
        self._held: dict[Member, list[Span]] = {}
        self._total: dict[Member, int] = {}
        self._releases: dict[Member, int] = {}
        self._returned: list[Span] = []
        self._frontier = 0

    @property
    def free(self) -> int | None:
        """How many positions nobody has; None if there is no end to them."""
        return None if self.end is None else self.end - self._frontier + count(self._returned)

    @property
    def done(self) -> bool:
        """Everything is in the model."""
        return self.end is not None and self.included == [(0, self.end)]

    def holders(self) -> list[Member]:
        """Lives that have something, in order of their keys."""
        return sorted(member for member, spans in self._held.items() if spans)

    def held(self, member: Member) -> tuple[Span, ...]:
        """What is leased to a life and not yet included, in the order in which it trains on them."""
        return tuple(self._held.get(member, ()))

    def total(self, member: Member) -> int:
        """How many were ever leased to a life."""
        return self._total.get(member, 0)

    def releases(self, member: Member) -> int:
        """How often a life was taken for gone. One that gets data again after that was not."""
        return self._releases.get(member, 0)

    def lease(self, member: Member, wanted: int) -> list[Span]:
        """Lease free positions, the lowest first; as many as there are, if fewer than wanted."""
        spans = take(self._returned, wanted)
        missing = wanted - count(spans)
        if self.end is not None:
            missing = min(missing, self.end - self._frontier)
        if missing > 0:
            spans.append((self._frontier, self._frontier + missing))
            self._frontier += missing
        self._held.setdefault(member, []).extend(spans)
        self._total[member] = self.total(member) + count(spans)
        return spans

    def release(self, member: Member) -> int:
        """Take back what a life has not got into a commit; returns how many."""
        spans = self._held.pop(member, [])
        self._releases[member] = self.releases(member) + 1
        for span in spans:
            _add(self._returned, span)
        return count(spans)

    def include(self, member: Member, number: int) -> list[Span]:
        """The oldest so many of a life's positions are in the model; returns them."""
        spans = take(self._held.get(member, []), number)
        for span in spans:
            _add(self.included, span)
        if not self._held.get(member, True):
            del self._held[member]
        return spans


def count(spans: Iterable[Span]) -> int:
    """Positions in some spans."""
    return sum(stop - start for start, stop in spans)


def take(spans: list[Span], number: int) -> list[Span]:
    """Cut the first so many positions off ``spans`` and return them; all of them if there are fewer."""
    taken = []
    while spans and number > 0:
        start, stop = spans[0]
        cut = min(stop, start + number)
        taken.append((start, cut))
        number -= cut - start
        if cut < stop:
            spans[0] = (cut, stop)
        else:
            del spans[0]
    return taken


def _add(spans: list[Span], span: Span) -> None:
    """Put a span among ascending ones, merged with its neighbours."""
    insort(spans, span)
    place = spans.index(span)
    for at in (place, place - 1):
        if 0 <= at < len(spans) - 1 and spans[at][1] == spans[at + 1][0]:
            spans[at : at + 2] = [(spans[at][0], spans[at + 1][1])]
