"""The steward's decisions on data: who gets blocks, and whose go back because it is gone."""

from __future__ import annotations

from collections.abc import Sequence

from potluck.protocol.leases import Leases, count
from potluck.protocol.steward import Decision
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import RunView
from potluck.wire.messages import Progress
from potluck.wire.records import Grant, Member

PAUSE_S = 1.0
"""Data is leased out about once in so long, for all who want some, unless somebody waits; in seconds."""


def lease_out(view: RunView, swarm: Swarm, last: float, now: float) -> Decision:
    """Give data to those who want it, and free that of the gone. ``last`` is when a grant was last seen."""
    leases = view.leases
    if leases is None or view.finished is not None:
        return Decision(None, "no data to lease")
    trainers = [p for p in swarm.alive(now) if p.phase == "training"]
    # One that has not followed its last lease yet asks for too much.
    hungry = [p for p in trainers if p.wants and p.leased == leases.total(p.member)]
    waiting = any(p.waiting for p in hungry)
    if now - last < (PAUSE_S / 4 if waiting else PAUSE_S):
        return Decision(None, "data was leased out just now")
    gone = _gone(view, leases, swarm, now)
    free = leases.free
    if free is not None:
        free += sum(count(leases.held(m)) for m in gone)
    shares = _shares(hungry, len(trainers), free)
    if not gone and not shares:
        return Decision(None, "nobody wants data" if not hungry else "all data is leased")
    reason = _reason(leases, swarm, gone, shares)
    return Decision(Grant(tuple(gone), tuple(shares), reason[:2000]), reason)


def _gone(view: RunView, leases: Leases, swarm: Swarm, now: float) -> list[Member]:
    """Holders that are not there. Members of the open round are left alone: their work may yet be in it."""
    busy = view.open.members if view.open is not None else ()
    return [m for m in leases.holders() if not swarm.lives(m, now) and m not in busy]


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
