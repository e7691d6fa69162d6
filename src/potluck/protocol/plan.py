"""Which member reduces which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from potluck.wire.records import Member


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
