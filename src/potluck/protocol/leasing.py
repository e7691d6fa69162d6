"""The steward's decisions on data: who gets blocks, and whose go back because it is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from potluck.protocol.leases import Leases, count
from potluck.protocol.steward import MOST_NAMED, Decision
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import RunView
from potluck.wire.messages import Progress
from potluck.wire.records import Grant, Member

PAUSE_S = 1.0
"""Data is leased out about once in so long, for all who want some, unless somebody waits; in seconds."""


DOUBT_S = (5.0, 60.0)
"""A peer that was once taken for gone, and got data again, is heard by some at least. Who does not hear it
waits so long after its last lease before it says so again, twice as long each time, up to a most; in seconds.
"""


@dataclass(frozen=True)
class Granted:
    """When grants were seen, by our own clock: the last of all, and the last for each member."""

    last: float
    to: Mapping[Member, float]


def lease_out(view: RunView, swarm: Swarm, granted: Granted, now: float) -> Decision:
    """Give data to those who want it, and free that of the gone."""
    leases = view.leases
    if leases is None or view.finished is not None:
        return Decision(None, "no data to lease")
    trainers = [p for p in swarm.alive(now) if p.phase == "training"]
    # One that has not followed its last lease yet asks for too much.
    hungry = [p for p in trainers if p.wants and p.leased == leases.total(p.member)]
    waiting = any(p.waiting for p in hungry)
    if now - granted.last < (PAUSE_S / 4 if waiting else PAUSE_S):
        return Decision(None, "data was leased out just now")
    # As many as one record can name; the next grant is for the rest.
    gone = _gone(view, swarm, granted, now)[:MOST_NAMED]
    hungry = hungry[: MOST_NAMED - len(gone)]
    free = leases.free
    if free is not None:
        free += sum(count(leases.held(m)) for m in gone)
    shares = _shares(hungry, len(trainers), free)
    if not gone and not shares:
        return Decision(None, "nobody wants data" if not hungry else "all data is leased")
    reason = _reason(leases, swarm, gone, shares)
    return Decision(Grant(tuple(gone), tuple(shares), reason[:2000]), reason)


def _gone(view: RunView, swarm: Swarm, granted: Granted, now: float) -> list[Member]:
    """Holders that are not there. Members of the open round are left alone: their work may yet be in it."""
    assert view.leases is not None
    busy = view.open.members if view.open is not None else ()
    absent = [m for m in view.leases.holders() if not swarm.lives(m, now) and m not in busy]
    return [m for m in absent if now - granted.to.get(m, 0.0) >= _doubt_s(view.leases.releases(m))]


def _doubt_s(releases: int) -> float:
    first, most = DOUBT_S
    return min(most, first * 2.0 ** min(releases, 16)) if releases else 0.0


def _shares(hungry: Sequence[Progress], trainers: int, free: int | None) -> list[tuple[Member, int]]:
    """How much each gets. Towards the end of the data the shares become small, so that all end together
    (guided self-scheduling; Polychronopoulos and Kuck, 1987).
    """
    shares = []
    for progress in hungry:
        wanted = progress.wants
        if free is not None:
            wanted = min(wanted, free, max(1, free // (2 * trainers)))
            free -= wanted
        if wanted:
            shares.append((progress.member, wanted))
    return shares


def _reason(
    leases: Leases, swarm: Swarm, gone: Sequence[Member], shares: Sequence[tuple[Member, int]]
) -> str:
    words = []
    if gone:
        back = sum(count(leases.held(m)) for m in gone)
        words.append(f"{back} blocks of {', '.join(swarm.name(m) for m in gone)} (gone) are free again")
    if shares:
        words.append(", ".join(f"{n} blocks to {swarm.name(m)}" for m, n in shares))
    return "; ".join(words)
