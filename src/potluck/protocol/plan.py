"""Which member reduces which part, and who is in which group.

In a large round members are in groups of about the square root of their number: what is given goes to one of
the own group, who sends on their mean, and results come back the same way. So nobody talks to all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from potluck.wire.records import Member

FLAT = 32
"""Up to so many members everybody talks to every reducer."""


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
    places = {member: index for index, member in enumerate(members)}
    load = [0] * len(members)
    most = -(-parts // len(members))
    chosen: dict[int, int] = {}
    for part in range(parts):
        place = places.get(last[part]) if part in last else None
        if place is not None and load[place] < most:
            chosen[part] = place
            load[place] += 1
    for part in range(parts):
        if part not in chosen:
            place = min(range(len(members)), key=lambda m: (load[m], m))
            chosen[part] = place
            load[place] += 1
    return tuple(chosen[part] for part in range(parts))


def reassign(
    parts: Sequence[int], reducers: Sequence[int], candidates: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """New reducers for ``parts``, the least loaded candidates first: pairs (part, member index)."""
    load = {member: sum(r == member for r in reducers) for member in candidates}
    moves = []
    for part in sorted(parts):
        member = min(candidates, key=lambda m: (load[m], m))
        load[member] += 1
        moves.append((part, member))
    return tuple(moves)
