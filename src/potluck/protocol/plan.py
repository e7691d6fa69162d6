"""Which member reduces which part, and who is in which group.

Who reduces a share s of the parts moves B (1 + s (n - 2)) bytes each way in a round of n members, where B is
one contribution: its own to others and its results to all, others' to it and others' results. So with links
of rates r the exchange takes the most of B (1 + s (n - 2)) / r, which is least if each part goes to
whoever is done first: thin links carry their own contribution, and nothing is reduced behind them.

In a large round members are in groups of about the square root of their number: what is given goes to one of
the own group, who sends on their mean, and results come back the same way. So nobody talks to all. Parts are
spread evenly there, whatever the links.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from potluck.wire.records import Member

FLAT = 32
"""Up to so many members everybody talks to every reducer."""

ALIKE = 1.25
"""Links up to so many times as fast as the middle one, or as slow, count as that: it is noise."""

FASTEST = 4.0
THINNEST = 1 / 16
"""A link counts as at most, and at least, so many times the middle one: what is said may not be so."""

MOST_PARTS = 3, 4
"""Nobody reduces more than this fraction of the parts because of its link, lest all is lost with one."""

PAYS = 1.15
PAYS_S = 0.1
"""Parts move between the same members only if the exchange takes so many times as long where they are, and
so many seconds more."""


def groups_for(members: int, flat: int = FLAT) -> int:
    """How many groups a round of so many members has."""
    return 1 if members <= flat else round(math.sqrt(members))


def ring(group: int, groups: int, members: int, turn: int) -> Iterator[int]:
    """The members of a group, at each ``turn`` beginning with another: the first that lives acts for it."""
    everyone = range(group, members, groups)
    return (everyone[(turn + i) % len(everyone)] for i in range(len(everyone)))


def assign(parts: int, members: Sequence[Member], last: Mapping[int, Member]) -> tuple[int, ...]:
    """Index of the reducing member for each part: evenly, and where it was last time if that is even.

    A part that stays with its reducer keeps that reducer's downlink residual at work.
    """
    most = -(-parts // len(members))
    kept = _kept(parts, members, last, lambda _, load: load <= most)
    return _filled(kept, Work(parts, (1.0,) * len(members)))


@dataclass(frozen=True)
class Plan:
    """Index of the reducing member for each part. If parts moved because of links: how long the exchange
    would take otherwise, and how long it takes now, by what was measured, in seconds.
    """

    reducers: tuple[int, ...]
    moved_s: tuple[float, float] | None = None


@dataclass(frozen=True)
class Work:
    """What it is to reduce, for members of these speeds, 1 is the middle one. Times are in what a link of the
    middle speed needs for one contribution.
    """

    parts: int
    speeds: Sequence[float]

    def done(self, member: int, load: int) -> float:
        """When a member is done that reduces so many parts."""
        return (1 + load / self.parts * max(0, len(self.speeds) - 2)) / self.speeds[member]

    def takes(self, loads: Mapping[int, int]) -> float:
        """When all are done."""
        return max(self.done(member, loads.get(member, 0)) for member in range(len(self.speeds)))

    def next(self, member: int, load: int) -> tuple[float, int, int]:
        """A member's place in the line for one more part: when it is done with that, and how many it has."""
        return self.done(member, load + 1), load, member

    @property
    def most(self) -> int:
        """The most parts that one may reduce."""
        times, of = MOST_PARTS
        return max(-(-self.parts // len(self.speeds)), self.parts * times // of)


def speeds(rates: Sequence[float]) -> tuple[float, ...]:
    """How fast links are, 1 is the middle one: within bounds, and alike if nearly so.

    ``rates`` are in bytes/s; who has none that is known counts as the middle one.
    """
    known = [rate for rate in rates if _known(rate)]
    middle = statistics.median_low(known) if known else 1.0
    return tuple(_bounded(rate / middle) if _known(rate) else 1.0 for rate in rates)


def _known(rate: float) -> bool:
    return 0 < rate < math.inf


def _bounded(times: float) -> float:
    return 1.0 if 1 / ALIKE <= times <= ALIKE else min(FASTEST, max(THINNEST, times))


def plan(
    parts: int,
    members: Sequence[Member],
    last: Mapping[int, Member],
    rates: Sequence[float],
    size: int,
    *,
    same: bool,
) -> Plan:
    """Who reduces each part, by what was measured; where it was unless it clearly pays, or others are members
    than last time (not ``same``), so that the plan is another anyway.

    Args:
        rates: of each member's link, the slower direction, in bytes/s; 0 while unknown.
        size: of one contribution, in bytes.
    """
    known = [rate for rate in rates if _known(rate)]
    if len(members) < 3 or not known:
        return Plan(assign(parts, members, last))
    work, middle_s = Work(parts, speeds(rates)), size / statistics.median_low(known)
    stays = _filled(_kept(parts, members, last, lambda _, load: load <= work.most), work)
    now, best = work.takes(Counter(stays)), work.takes(Counter(_filled({}, work)))
    pays = now > PAYS * best and (now - best) * middle_s > PAYS_S
    if now <= best or (same and not pays):
        return Plan(stays)
    kept = _kept(parts, members, last, lambda m, load: load <= work.most and work.done(m, load) <= best)
    return Plan(_filled(kept, work), (now * middle_s, best * middle_s))


def _kept(
    parts: int, members: Sequence[Member], last: Mapping[int, Member], fits: Callable[[int, int], bool]
) -> dict[int, int]:
    """The reducer of each part that stays where it was: as many of a member's as fit."""
    places = {member: index for index, member in enumerate(members)}
    loads: Counter[int] = Counter()
    kept = {}
    for part in range(parts):
        place = places.get(last[part]) if part in last else None
        if place is not None and fits(place, loads[place] + 1):
            kept[part] = place
            loads[place] += 1
    return kept


def _filled(kept: Mapping[int, int], work: Work) -> tuple[int, ...]:
    """All parts: those that nobody has go, one by one, to whoever is done first with one more."""
    loads, chosen = Counter(kept.values()), dict(kept)
    line = [work.next(member, loads[member]) for member in range(len(work.speeds))]
    heapq.heapify(line)
    for part in range(work.parts):
        if part not in chosen:
            while line[0][1] >= work.most:
                heapq.heappop(line)
            _, load, member = line[0]
            chosen[part] = member
            heapq.heapreplace(line, work.next(member, load + 1))
    return tuple(chosen[part] for part in range(work.parts))


def reassign(
    parts: Sequence[int], reducers: Sequence[int], candidates: Sequence[int], rates: Sequence[float]
) -> tuple[tuple[int, int], ...]:
    """New reducers for ``parts`` of a round: each goes to the candidate that is done first with one more, by
    the links of all members. Pairs (part, member index).
    """
    work, loads = Work(len(reducers), speeds(rates)), Counter(reducers)
    moves = []
    for part in sorted(parts):
        *_, member = min(work.next(m, loads[m]) for m in candidates)
        loads[member] += 1
        moves.append((part, member))
    return tuple(moves)


def exchange_s(reducers: Sequence[int], rates: Sequence[float], size: int, groups: int = 1) -> float:
    """How long the link is busy that is so the longest, in seconds; 0 if no link is known. In a round with
    groups only what each member gives and gets is counted.
    """
    known = [rate for rate in rates if _known(rate)]
    if not known:
        return 0.0
    middle, loads = statistics.median_low(known), Counter(reducers)
    others = len(rates) - 2 if groups == 1 else 0
    return max(
        size * (1 + loads[m] / len(reducers) * others) / (rate if _known(rate) else middle)
        for m, rate in enumerate(rates)
    )
