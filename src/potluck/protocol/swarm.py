"""Who is there: the last announcement of each peer, and how long ago it came by our own clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from potluck.wire.messages import Progress
from potluck.wire.records import Member

EXPIRY_S = 4.0
"""A peer not heard for so many seconds counts as gone."""

GAP_S = 2.5
"""Our own announcements not back for so long mean that nobody is heard: two beats, and some delay."""


@dataclass
class Heard:
    """An announcement and the local time at which it came."""

    progress: Progress
    at: float


class Swarm:
    """Presence with expiry. Clocks of different peers are never compared.

    All is heard through the hub, our own announcements too. While those do not come back nobody's silence
    means anything: the hub is away, or we were. Time stands still then, and whoever was there before gets
    as long as ever to be heard again. (Else each would think itself alone, and commit what it alone holds.)
    """

    def __init__(self) -> None:
        self._heard: dict[str, Heard] = {}
        self._alive: tuple[float, list[Progress]] | None = None
        self._echoed: float | None = None
        self._first_echo: float | None = None

    def echo(self, now: float) -> bool:
        """Our own announcement came back; whether that took so long that others could not be heard."""
        gap = self.deaf(now)
        if gap:
            before = self._time(now)
            for heard in self._heard.values():
                if before - heard.at < EXPIRY_S:
                    heard.at = now
        if self._first_echo is None:
            self._first_echo = now
        self._echoed, self._alive = now, None
        return gap

    def deaf(self, now: float) -> bool:
        """Whether nobody could be heard lately, if they spoke."""
        return self._echoed is not None and now - self._echoed > GAP_S

    def settled(self, now: float) -> bool:
        """Whether we have listened for so long that whoever is there was heard."""
        return self._first_echo is not None and now - self._first_echo >= EXPIRY_S

    def hear(self, progress: Progress, now: float) -> bool:
        """Take an announcement in; False when a newer one of that peer is here already."""
        now, known = self._time(now), self._heard.get(progress.peer)
        if known is not None and now - known.at < EXPIRY_S:
            last = known.progress
            if (progress.session, progress.beat) <= (last.session, last.beat):
                return False
        self._heard[progress.peer] = Heard(progress, now)
        self._alive = None
        return True

    def last(self, peer: str) -> Progress | None:
        """The last announcement of a peer, however old."""
        known = self._heard.get(peer)
        return known.progress if known else None

    def alive(self, now: float) -> list[Progress]:
        """Peers that are there, the longest present first. Read it only: one list serves a whole poll."""
        now = self._time(now)
        if self._alive is None or self._alive[0] != now:
            self._alive = now, self._present(now)
        return self._alive[1]

    def _present(self, now: float) -> list[Progress]:
        fresh = (
            heard.progress
            for heard in self._heard.values()
            if now - heard.at < EXPIRY_S and heard.progress.phase != "gone"
        )
        return sorted(fresh, key=lambda p: (p.since, p.peer))

    def lives(self, member: Member, now: float) -> bool:
        """Whether this life of a peer is there; one that restarted is not."""
        known = self._heard.get(member.peer)
        return (
            known is not None
            and self._time(now) - known.at < EXPIRY_S
            and known.progress.phase != "gone"
            and known.progress.session == member.session
        )

    def _time(self, now: float) -> float:
        return now if self._echoed is None else min(now, self._echoed + GAP_S)

    def name(self, member: Member) -> str:
        """A name to read."""
        known = self._heard.get(member.peer)
        return (known.progress.name if known else "") or member.peer[:8]

    def majority(self, round_: int, now: float) -> str | None:
        """The state digest that most peers report after a round; the longest present break a tie."""
        states = [p.state for p in self.alive(now) if p.round == round_ and p.state]
        if not states:
            return None
        counts = Counter(states)
        return max(states, key=lambda state: (counts[state], -states.index(state)))
