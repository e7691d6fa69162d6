"""One open round at one peer: who sends what to whom, who is waited for, and until when.

Part p of every member goes to p's reducer, which waits for all members that live until the grace period
ends, reduces, and pushes the result to all. A result is known by its digest; the commit says which one
counts. Contributions stay with their members until then, so a new reducer gets them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from potluck.protocol.effects import (
    Cut,
    Effect,
    Fetch,
    Note,
    Reduce,
    SendContribution,
    SendResult,
)
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import MAX_WEIGHT, OpenRound, fault
from potluck.wire.messages import Answer, Progress
from potluck.wire.records import Member, PartInfo

RETRY_S = 0.5
"""Pause before a failed send or fetch is tried again, in seconds."""

PUSH_S = 1.0
"""How long a member waits for a result's push once another holds it, before it fetches it, in seconds."""


@dataclass
class Errand:
    """Something sent or fetched: in flight, done, or to be tried again at a time."""

    flying: bool = False
    done: bool = False
    retry_at: float = 0.0
    tries: int = 0

    def due(self, now: float) -> bool:
        return not self.flying and not self.done and now >= self.retry_at


@dataclass
class Part:
    """One part as this peer sees it."""

    gathered: dict[int, float] = field(default_factory=dict)
    abstained: set[int] = field(default_factory=set)
    reducing: bool = False
    reduced: bool = False
    due_since: float = 0.0
    results: dict[str, PartInfo] = field(default_factory=dict)


class Exchange:
    """The exchange of one attempt of one round."""

    def __init__(self, open_: OpenRound, me: Member, now: float) -> None:
        self.round = open_.round
        self.attempt = open_.attempt
        self.members = open_.members
        self.me = me
        self.index = open_.index(me)
        self._reducers = open_.reducers
        self._grace_s = open_.grace_s
        self._parts = [Part(due_since=now) for _ in open_.reducers]
        self._cut = Errand()
        self._weight: float | None = None
        self._sends: dict[tuple[int, int], Errand] = {}
        self._pushes: dict[tuple[int, str, int], Errand] = {}
        self._fetches: dict[str, Errand] = {}

    @property
    def held(self) -> tuple[PartInfo, ...]:
        """Results held here."""
        return tuple(info for part in self._parts for _, info in sorted(part.results.items()))

    @property
    def weight(self) -> float | None:
        """Tokens in our own contribution; None before the cut, 0 if there was nothing to give."""
        return self._weight

    def reduces(self, part: int) -> bool:
        """Whether a part is ours to reduce."""
        return self._reducers[part] == self.index

    def follow(self, open_: OpenRound, now: float) -> None:
        """Take reassignments over: a part that comes to us starts its grace period anew."""
        for part, (old, new) in enumerate(zip(self._reducers, open_.reducers, strict=True)):
            if old != new:
                self._parts[part].due_since = now
        self._reducers = open_.reducers

    # -- what happened ---------------------------------------------------------------------------

    def cut_done(self, weight: float) -> None:
        """The local progress is encoded; ``weight`` tokens stand behind it, 0 abstains."""
        self._cut.flying, self._cut.done, self._weight = False, True, weight
        assert self.index is not None, "only members cut"
        for part in self._parts:
            if weight > 0:
                part.gathered[self.index] = weight
            else:
                part.abstained.add(self.index)

    def offered(self, part: int, member: Member) -> Answer:
        """Whether a contribution of ``member`` for ``part`` is welcome now."""
        if part >= len(self._parts) or member not in self.members:
            return Answer(False, f"round {self.round} has no such part or member")
        state = self._parts[part]
        if self.members.index(member) in state.gathered:
            return Answer(False, f"round {self.round} part {part}: a second contribution of one member")
        if state.reducing or state.reduced:
            return Answer(False, f"round {self.round} part {part} was reduced already: late")
        if self._reducers[part] != self.index:
            return Answer(False, f"round {self.round} part {part} is not reduced here", retry=True)
        return Answer(True)

    def contributed(self, part: int, member: Member, weight: float) -> Answer:
        """A contribution of ``member`` is here, whole; weight 0 says that there will be none."""
        answer = self.offered(part, member)
        if not 0 <= weight <= MAX_WEIGHT:
            return Answer(False, f"round {self.round} part {part}: weight {weight} is no number of tokens")
        if answer.ok:
            index = self.members.index(member)
            if weight > 0:
                self._parts[part].gathered[index] = weight
            else:
                self._parts[part].abstained.add(index)
        return answer

    def reduced(self, part: int, info: PartInfo | None, refused: tuple[int, ...] = ()) -> None:
        """The result of a reduction; ``refused`` members sent garbage; None if nobody was left."""
        state = self._parts[part]
        state.reducing = False
        for index in refused:
            state.gathered.pop(index, None)
            state.abstained.add(index)
        if info is not None:
            state.reduced = True
            state.results[info.digest] = info

    def result(self, info: PartInfo) -> None:
        """A result is here, verified against its digest."""
        if info.part < len(self._parts) and fault(info, len(self.members)) is None:
            self._parts[info.part].results.setdefault(info.digest, info)

    def sent(self, part: int, to: str, digest: str | None, ok: bool, retry: bool, now: float) -> None:
        """A send ended: taken, refused for good, or (``retry``) to be tried again."""
        target = next(i for i, m in enumerate(self.members) if m.peer == to)
        errand = (
            self._sends.get((part, target)) if digest is None else self._pushes.get((part, digest, target))
        )
        if errand is not None:
            errand.flying, errand.done, errand.retry_at = False, ok or not retry, now + RETRY_S

    def fetched(self, digest: str, ok: bool, swarm: Swarm, now: float) -> None:
        """A fetch ended; a result that came is ours now."""
        errand = self._fetches.get(digest)
        if errand is None:
            return
        errand.flying, errand.done, errand.retry_at = False, ok, now + RETRY_S
        if ok:
            for progress in self._speaking(swarm, now):
                for info in progress.held:
                    if info.digest == digest:
                        self.result(info)

    # -- what to do ------------------------------------------------------------------------------

    def poll(self, swarm: Swarm, now: float) -> list[Effect]:
        """Everything that is due."""
        effects: list[Effect] = []
        if self.index is not None:
            if self._cut.due(now):
                self._cut.flying = True
                effects.append(Cut(self.round, self.attempt))
            for part, state in enumerate(self._parts):
                if not state.results:
                    effects += self._contribute(part, swarm, now)
                    effects += self._reduce(part, swarm, now)
        effects += self._push(swarm, now)
        effects += self._fetch(swarm, now)
        return effects

    def _contribute(self, part: int, swarm: Swarm, now: float) -> list[Effect]:
        reducer = self._reducers[part]
        if self._weight is None or reducer == self.index:
            return []
        errand = self._sends.setdefault((part, reducer), Errand())
        if not errand.due(now) or not swarm.lives(self.members[reducer], now):
            return []
        errand.flying = True
        return [SendContribution(self.round, self.attempt, part, self.members[reducer].peer)]

    def _reduce(self, part: int, swarm: Swarm, now: float) -> list[Effect]:
        state = self._parts[part]
        if self._reducers[part] != self.index or state.reducing or not state.gathered:
            return []
        waited_for = [
            m
            for index, m in enumerate(self.members)
            if index not in state.gathered and index not in state.abstained and swarm.lives(m, now)
        ]
        if waited_for and now < state.due_since + self._grace_s:
            return []
        state.reducing = True
        effects: list[Effect] = [Reduce(self.round, self.attempt, part, tuple(sorted(state.gathered)))]
        if waited_for:
            names = ", ".join(swarm.name(m) for m in waited_for)
            text = (
                f"round {self.round} part {part}: reduced without {names}, not heard in {self._grace_s:.0f} s"
            )
            effects.append(Note(text))
        return effects

    def _push(self, swarm: Swarm, now: float) -> list[Effect]:
        """A reducer sends its result to every member that lives and does not say that it has it."""
        effects: list[Effect] = []
        mine = [(p, s) for p, s in enumerate(self._parts) if s.reduced]
        if not mine:
            return effects
        holders = {p.peer: {i.digest for i in p.held} for p in self._speaking(swarm, now)}
        for part, state in mine:
            for digest in sorted(state.results):
                for index, member in enumerate(self.members):
                    if index == self.index or digest in holders.get(member.peer, ()):
                        continue
                    errand = self._pushes.setdefault((part, digest, index), Errand())
                    if errand.due(now) and swarm.lives(member, now):
                        errand.flying = True
                        effects.append(SendResult(self.round, self.attempt, part, digest, member.peer))
        return effects

    def _fetch(self, swarm: Swarm, now: float) -> list[Effect]:
        """A member fetches what others hold and no push brought; after a failure from the next holder."""
        if self.index is None:
            return []
        offers: dict[str, list[tuple[PartInfo, str]]] = {}
        for progress in self._speaking(swarm, now):
            for info in progress.held:
                if info.part < len(self._parts) and info.digest not in self._parts[info.part].results:
                    offers.setdefault(info.digest, []).append((info, progress.peer))
        effects: list[Effect] = []
        for digest, held in offers.items():
            errand = self._fetches.setdefault(digest, Errand(retry_at=now + PUSH_S))
            if errand.done:  # the same bytes came as the result of another part
                for info, _ in held:
                    self.result(info)
            elif errand.due(now):
                info, source = held[errand.tries % len(held)]
                errand.flying, errand.tries = True, errand.tries + 1
                effects.append(Fetch(digest, info.size, source))
        return effects

    def _speaking(self, swarm: Swarm, now: float) -> list[Progress]:
        return [p for p in swarm.alive(now) if p.round == self.round - 1 and p.attempt == self.attempt]
