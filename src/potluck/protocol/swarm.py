"""Who is there: the last announcement of each peer, and how long ago it came by our own clock."""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from potluck.wire.messages import MAX_EVERY_S, Progress
from potluck.wire.records import Member

EXPIRY_S = 4.0
"""A peer not heard for so many seconds counts as gone: four beats."""

GAP_S = 2.5
"""Our own announcements not back for so long mean that nobody is heard: two beats, and some delay."""

CROWD = 200
"""All peers together announce themselves so many times a second, or each once if there are fewer."""


@dataclass
class Heard:
    """An announcement, and until when it holds by our own clock."""

    progress: Progress
    until: float


@dataclass
class Alive:
    """Who was there from a time on, the longest present first, and until when at least all of them are."""

    since: float
    until: float
    peers: list[Progress]
    places: dict[str, int]

    def again(self, progress: Progress, until: float) -> bool:
        """One of them is heard again; False if that changes who is there, or in which order."""
        place = self.places.get(progress.peer)
        if place is None or self.peers[place].since != progress.since or progress.phase == "gone":
            return False
        self.peers[place], self.until = progress, min(self.until, until)
        return True


class Swarm:
    """Presence with expiry. Clocks of different peers are never compared.

    All is heard through the hub, our own announcements too. While those do not come back nobody's silence
    means anything: the hub is away, or we were. Time stands still then, and whoever was there before gets
    as long as ever to be heard again. (Else each would think itself alone, and commit what it alone holds.)
    """

    def __init__(self) -> None:
        self._heard: dict[str, Heard] = {}
        self._order: list[tuple[int, str]] = []
        self._alive: Alive | None = None
        self._line: tuple[float, list[Progress], Sequence[Member], dict[str, int]] | None = None
        self._own_s = 1.0
        self._echoed: float | None = None
        self._first_echo: float | None = None

    def every_s(self, now: float) -> float:
        """How often each announces itself, in seconds: in a crowd more seldom, for all hear all."""
        return min(MAX_EVERY_S, max(1.0, len(self.alive(now)) / CROWD))

    def echo(self, now: float, every_s: float = 1.0) -> bool:
        """Our own announcement came back, the next is due in ``every_s``; whether that took so long that
        others could not be heard.
        """
        gap = self.deaf(now)
        if gap:
            before = self._time(now)
            for heard in self._heard.values():
                if before < heard.until:
                    heard.until = now + EXPIRY_S * heard.progress.every_s
            self._alive = None
        if self._first_echo is None:
            self._first_echo = now
        self._echoed, self._own_s = now, every_s
        return gap

    def deaf(self, now: float) -> bool:
        """Whether nobody could be heard lately, if they spoke."""
        return self._echoed is not None and now - self._echoed > GAP_S * self._own_s

    def settled(self, now: float) -> bool:
        """Whether we have listened for so long that whoever is there was heard."""
        if self._first_echo is None or now - self._first_echo < EXPIRY_S:
            return False
        return now - self._first_echo >= EXPIRY_S * self.every_s(now)

    def hear(self, progress: Progress, now: float) -> bool:
        """Take an announcement in; False when a newer one of that peer is here already."""
        now, known = self._time(now), self._heard.get(progress.peer)
        if known is not None and now < known.until:
            last = known.progress
            if (progress.session, progress.beat) <= (last.session, last.beat):
                return False
        if known is None or known.progress.since != progress.since:
            if known is not None:
                self._order.remove((known.progress.since, progress.peer))
            insort(self._order, (progress.since, progress.peer))
        if known is None or known.progress.phase != progress.phase:
            self._line = None
        until = now + EXPIRY_S * progress.every_s
        self._heard[progress.peer] = Heard(progress, until)
        if self._alive is not None and not self._alive.again(progress, until):
            self._alive = None
        return True

    def last(self, peer: str) -> Progress | None:
        """The last announcement of a peer, however old."""
        known = self._heard.get(peer)
        return known.progress if known else None

    def alive(self, now: float) -> list[Progress]:
        """Peers that are there, the longest present first. Read it only: one list serves all."""
        now = self._time(now)
        if self._alive is None or not self._alive.since <= now < self._alive.until:
            there = [self._heard[peer] for _, peer in self._order]
            there = [h for h in there if now < h.until and h.progress.phase != "gone"]
            until = min((h.until for h in there), default=math.inf)
            peers = [h.progress for h in there]
            self._alive = Alive(now, until, peers, {p.peer: place for place, p in enumerate(peers)})
        return self._alive.peers

    def lives(self, member: Member, now: float) -> bool:
        """Whether this life of a peer is there; one that restarted is not."""
        known = self._heard.get(member.peer)
        return (
            known is not None
            and self._time(now) < known.until
            and known.progress.phase != "gone"
            and known.progress.session == member.session
        )

    def _time(self, now: float) -> float:
        return now if self._echoed is None else min(now, self._echoed + GAP_S * self._own_s)

    def place(self, peer: str, members: Sequence[Member], now: float) -> int | None:
        """A peer's place in the line of stewards: members of the open round, then the longest present."""
        alive, line = self.alive(now), self._line
        if line is None or line[2] is not members or not (line[1] is alive or self._crowded(line[0], now)):
            inside = {member.peer for member in members}
            there = [p.peer for p in alive if _decides(p, p.peer in inside)]
            there.sort(key=lambda peer: peer not in inside)
            self._line = line = now, alive, members, {peer: place for place, peer in enumerate(there)}
        return line[3].get(peer)

    def before(self, peer: str, members: Sequence[Member], now: float) -> list[Progress]:
        """What those last said who are before a peer in the line of stewards."""
        place = self.place(peer, members, now)
        if not place or self._line is None:
            return []
        return [self._heard[other].progress for other, at in self._line[3].items() if at < place]

    def _crowded(self, since: float, now: float) -> bool:
        """Whether so many are there that a line in order some time ago will do."""
        return len(self.alive(now)) > CROWD and 0 <= now - since < 1.0

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


def _decides(progress: Progress, member: bool) -> bool:
    """Whether a peer may act as steward; one that leaves sees the round through that it is a member of."""
    return progress.phase in ("training", "following") or (member and progress.phase == "leaving")
