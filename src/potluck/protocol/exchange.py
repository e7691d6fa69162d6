"""One open round at one peer: who sends what to whom, who is waited for, and until when.

Part p of every member goes to p's reducer, which waits for all members that live until the grace period
ends, reduces, and pushes the result to all. A result is known by its digest; the commit says which one
counts. Contributions stay with their members until then, so a new reducer gets them again.

A large round has groups (``plan``). Who is not in the reducer's group gives its part to the one of its own
group that gathers it (``gathering``), and gets the result from there too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from potluck.protocol.effects import (
    Combine,
    Cut,
    Effect,
    Fetch,
    Note,
    Reduce,
    SendContribution,
    SendPartial,
    SendResult,
)
from potluck.protocol.errand import Errand
from potluck.protocol.gathering import Gathering
from potluck.protocol.incoming import PUSH_S, Incoming
from potluck.protocol.plan import ring
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import MAX_WEIGHT, OpenRound, fault
from potluck.wire.messages import Answer, Progress
from potluck.wire.records import Commit, Held, Member, PartInfo

PATIENCE = 2
"""What its reducer is pushing is fetched from another after so many grace periods all the same."""

LOOK_S = 0.5
"""How often one looks for results that others hold, in seconds."""

TRIES = 2
"""After so many failures another one of a group is asked."""


@dataclass
class Part:
    """One part as this peer sees it."""

    gathered: dict[int, float] = field(default_factory=dict)
    abstained: set[int] = field(default_factory=set)
    gathering: Gathering = field(default_factory=Gathering)
    partials: dict[int, tuple[int, ...]] = field(default_factory=dict)
    reducing: bool = False
    reduced: bool = False
    due_since: float = 0.0
    results: dict[str, PartInfo] = field(default_factory=dict)

    def counted(self, index: int) -> bool:
        """Whether what a member gave is here, alone or in a partial."""
        return index in self.gathered or any(index in some for some in self.partials.values())

    def awaited(self, members: Iterable[int]) -> list[int]:
        """Those of some members that have neither given nor abstained."""
        here = self.abstained.union(self.gathered, *self.partials.values())
        return [index for index in members if index not in here]


class Exchange:
    """The exchange of one attempt of one round."""

    def __init__(self, open_: OpenRound, me: Member, now: float) -> None:
        self.round = open_.round
        self.attempt = open_.attempt
        self.of = open_.round, open_.attempt
        self.members = open_.members
        self.groups = open_.groups
        self.me = me
        self.index = open_.index(me)
        self._places = _places(self.members)
        self._reducers = open_.reducers
        self.grace_s = open_.grace_s
        self._parts = [Part(due_since=now) for _ in open_.reducers]
        self._cut = Errand()
        self._weight: float | None = None
        self._sends: dict[tuple[int, int], Errand] = {}
        self._pushes: dict[tuple[int, str, int], Errand] = {}
        self._fetches: dict[str, Errand] = {}
        self._look_at = 0.0
        self._incoming = Incoming()
        self._committed: dict[int, Held] = {}

    @property
    def held(self) -> tuple[PartInfo, ...]:
        """Results held here."""
        return tuple(info for part in self._parts for _, info in sorted(part.results.items()))

    @property
    def known(self) -> Mapping[str, PartInfo]:
        """Results held here, by digest."""
        return {info.digest: info for info in self.held}

    @property
    def weight(self) -> float | None:
        """Tokens in our own contribution; None before the cut, 0 if there was nothing to give."""
        return self._weight

    def reduces(self, part: int) -> bool:
        """Whether a part is ours to reduce."""
        return self._reducers[part] == self.index

    @property
    def reduces_any(self) -> bool:
        """Whether some part is ours to reduce."""
        return self.index in self._reducers

    def vouches(self, part: int, swarm: Swarm, now: float) -> bool:
        """Whether it should be known at once that we hold a part's result, for two holders make it safe: its
        reducer does, and who spreads it in the next group.
        """
        if part >= len(self._parts):
            return False
        if self.index is None or self.groups == 1 or self.reduces(part):
            return True
        group = (self._reducers[part] + 1) % self.groups
        return self.index % self.groups == group and self._acting(part, group, swarm, now) == self.index

    def follow(self, open_: OpenRound, now: float) -> None:
        """Take reassignments over: a part that comes to us starts its grace period anew."""
        for part, (old, new) in enumerate(zip(self._reducers, open_.reducers, strict=True)):
            if old != new:
                self._parts[part].due_since = now
                self._parts[part].gathering = Gathering()
        self._reducers = open_.reducers

    # -- what happened ---------------------------------------------------------------------------

    def cut_done(self, weight: float) -> None:
        """The local progress is encoded; ``weight`` tokens stand behind it, 0 abstains."""
        self._cut.flying, self._cut.done, self._weight = False, True, weight
        assert self.index is not None, "only members cut"
        for part in self._parts:
            _give(part, self.index, weight)

    def offered(self, part: int, member: Member) -> Answer:
        """Whether a contribution of ``member`` for ``part`` is welcome now."""
        index = self._index(member)
        if part >= len(self._parts) or index is None:
            return Answer(False, f"round {self.round} has no such part or member")
        if self._parts[part].counted(index):
            return Answer(False, f"round {self.round} part {part}: a second contribution of one member")
        return self._wanted(part, self.reduces(part) or self._gathers(part, index))

    def contributed(self, part: int, member: Member, weight: float) -> Answer:
        """A contribution of ``member`` is here, whole; weight 0 says that there will be none."""
        answer = self.offered(part, member)
        if not 0 <= weight <= MAX_WEIGHT:
            return Answer(False, f"round {self.round} part {part}: weight {weight} is no number of tokens")
        if answer.ok:
            _give(self._parts[part], self._places[member.peer], weight)
        return answer

    def partial_offered(self, part: int, member: Member, weights: Mapping[int, float]) -> Answer:
        """Whether a partial that ``member`` sends, of its group's contributors, is welcome now."""
        index, given = self._index(member), tuple(weights)
        if part >= len(self._parts) or index is None:
            return Answer(False, f"round {self.round} has no such part or member")
        if not set(given) <= set(self._group(index % self.groups)) or list(given) != sorted(given):
            return Answer(False, f"round {self.round} part {part}: not members of one group, each once")
        if not all(0 < weight <= MAX_WEIGHT for weight in weights.values()):
            return Answer(False, f"round {self.round} part {part}: a weight that is no number of tokens")
        known = tuple(i for i in given if self._parts[part].counted(i))
        if known:
            text = f"round {self.round} part {part}: {len(known)} of {len(given)} are counted already"
            return Answer(False, text, known=known)
        return self._wanted(part, self.reduces(part) and self.groups > 1)

    def partial(
        self, part: int, member: Member, weights: Mapping[int, float], silent: Iterable[int]
    ) -> Answer:
        """A partial is here, whole; ``silent`` members of the group give nothing."""
        answer = self.partial_offered(part, member, weights)
        if answer.ok:
            group = self._group(self._places[member.peer] % self.groups)
            state = self._parts[part]
            if weights:
                state.partials[min(weights)] = tuple(weights)
            state.abstained.update(i for i in silent if i in group and not state.counted(i))
        return answer

    def _wanted(self, part: int, here: bool) -> Answer:
        state = self._parts[part]
        if state.reducing or state.reduced or (state.results and self.groups > 1):
            return Answer(False, f"round {self.round} part {part} was reduced already: late")
        if not here:
            return Answer(False, f"round {self.round} part {part} is not reduced here", retry=True)
        return Answer(True)

    def combined(self, part: int, contributors: tuple[int, ...], refused: tuple[int, ...] = ()) -> None:
        """A partial is made; ``refused`` members sent garbage."""
        state = self._parts[part]
        if state.gathering.combined(contributors, refused):
            self._refuse(state, refused)

    def partial_sent(self, part: int, lead: int | None, to: str, answer: Answer, now: float) -> None:
        """A partial was taken, refused, or is to be sent again; what an earlier reducer says is past."""
        if self.members[self._reducers[part]].peer == to:
            self._parts[part].gathering.sent(lead, answer, now)

    def reduced(self, part: int, info: PartInfo | None, refused: tuple[int, ...] = ()) -> None:
        """The result of a reduction; ``refused`` members sent garbage; None if nobody was left."""
        state = self._parts[part]
        state.reducing = False
        self._refuse(state, refused)
        if info is not None and fault(info, len(self.members)) is None:
            state.reduced = True
            state.results[info.digest] = info

    def _refuse(self, state: Part, refused: tuple[int, ...]) -> None:
        for index in refused:
            state.gathered.pop(index, None)
            state.partials.pop(index, None)
        state.abstained.update(refused)

    def result(self, info: PartInfo) -> None:
        """A result is here, verified against its digest."""
        wanted = self._committed.get(info.part, info.held) == info.held
        if wanted and info.part < len(self._parts) and fault(info, len(self.members)) is None:
            self._parts[info.part].results.setdefault(info.digest, info)

    def coming(self, digest: str, member: Member, begins: bool, now: float) -> None:
        """A push to us, of a result if there is a digest, begins, or has ended, well or not."""
        if (index := self._index(member)) is not None:
            self._incoming.heard(index, digest, begins, now)

    def sent(self, part: int, to: str, digest: str | None, ok: bool, retry: bool, now: float) -> None:
        """A send ended: taken, refused for good, or (``retry``) to be tried again."""
        errand = self._errand(part, digest, self._places[to])
        if errand is not None:
            errand.ended(ok or not retry, now)

    def fetched(self, digest: str, info: PartInfo | None, now: float) -> None:
        """A fetch ended; a result that came is ours now."""
        if (errand := self._fetches.get(digest)) is not None:
            errand.ended(info is not None, now)
            if info is not None:
                self.result(info)

    def committed(self, commit: Commit) -> None:
        """The round is decided: what was committed is spread on, what was not is no result any more."""
        self._committed = {info.part: info.held for info in commit.parts}
        for info in commit.parts:
            state = self._parts[info.part]
            state.results = {d: known for d, known in state.results.items() if d == info.digest}

    @property
    def owes(self) -> bool:
        """Whether somebody was to get a result from us, and has not got it yet."""
        return any(not errand.done for errand in self._pushes.values())

    def fetches(self, digest: str) -> bool:
        """Whether this content is being fetched as a result."""
        return digest in self._fetches

    # -- what to do ------------------------------------------------------------------------------

    def poll(self, swarm: Swarm, now: float, decides: bool = False, follows: bool = False) -> list[Effect]:
        """Everything that is due. Who ``decides`` as steward needs all results, whoever has them. Who
        ``follows`` has the state that the round begins from: if no member, it is in the next one the sooner
        it has the results of this one.
        """
        effects: list[Effect] = []
        if self.index is not None:
            if self._cut.due(now):
                self._cut.flying = True
                effects.append(Cut(self.round, self.attempt))
            for part in self._in_turn(range(len(self._parts))):
                if not self._parts[part].results:
                    effects += self._contribute(part, swarm, now)
                    effects += self._gather(part, swarm, now)
                    effects += self._reduce(part, swarm, now)
        effects += self.spread(swarm, now)
        effects += self._fetch(swarm, now, decides, follows)
        return effects

    def _contribute(self, part: int, swarm: Swarm, now: float) -> list[Effect]:
        target = self._target(part, swarm, now)
        if self._weight is None or target is None or target == self.index:
            return []
        errand = self._sends.setdefault((part, target), Errand())
        if not errand.due(now) or not swarm.lives(self.members[target], now):
            return []
        errand.flying = True
        return [SendContribution(self.round, self.attempt, part, self.members[target].peer)]

    def _gather(self, part: int, swarm: Swarm, now: float) -> list[Effect]:
        """Combine what our group gave, and send it on; for that there is half of the grace period."""
        assert self.index is not None
        reducer, state = self._reducers[part], self._parts[part]
        if not self._gathers(part, self.index) or not swarm.lives(self.members[reducer], now):
            return []
        gathering, acts = state.gathering, self._target(part, swarm, now) == self.index
        given = gathering.fresh(state.gathered)
        abstained = gathering.fresh(state.abstained)
        if not acts:
            given.discard(self.index)
            abstained.discard(self.index)
        effects: list[Effect] = []
        waits = now < state.due_since + self.grace_s / 2 and acts and self._living(part, swarm, now)
        if not waits:
            if given and not gathering.combining:
                gathering.begin(given)
                effects.append(Combine(self.round, self.attempt, part, tuple(sorted(given))))
            silent = tuple(sorted(abstained))
            to = self.members[reducer].peer
            for lead in gathering.due(frozenset(silent), now):
                effects.append(SendPartial(self.round, self.attempt, part, lead, silent, to))
        return effects

    def _living(self, part: int, swarm: Swarm, now: float) -> list[int]:
        """Members of our group that live and from whom nothing came for a part."""
        assert self.index is not None
        awaited = self._parts[part].awaited(self._group(self.index % self.groups))
        return [i for i in awaited if swarm.lives(self.members[i], now)]

    def _reduce(self, part: int, swarm: Swarm, now: float) -> list[Effect]:
        state = self._parts[part]
        if self._reducers[part] != self.index or state.reducing or not (state.gathered or state.partials):
            return []
        waited_for = [
            self.members[i]
            for i in state.awaited(range(len(self.members)))
            if swarm.lives(self.members[i], now)
        ]
        if waited_for and now < state.due_since + self.grace_s:
            return []
        state.reducing = True
        given, partials = tuple(sorted(state.gathered)), tuple(sorted(state.partials))
        effects: list[Effect] = [Reduce(self.round, self.attempt, part, given, partials)]
        if waited_for:
            names = ", ".join(swarm.name(m) for m in waited_for[:20])
            more = f" and {len(waited_for) - 20} more" if len(waited_for) > 20 else ""
            text = f"round {self.round} part {part}: reduced without {names}{more}, not heard in "
            effects.append(Note(f"{text}{self.grace_s:.0f} s"))
        return effects

    def spread(self, swarm: Swarm, now: float) -> list[Effect]:
        """Push results to those who live and don't say that they have them, also after the commit."""
        return [
            effect
            for part, state in enumerate(self._parts)
            for digest in sorted(state.results)
            for index in self._audience(part, state, digest, swarm, now)
            for effect in self._push(part, digest, index, swarm, now)
        ]

    def _push(self, part: int, digest: str, index: int, swarm: Swarm, now: float) -> list[Effect]:
        errand, member = self._pushes.setdefault((part, digest, index), Errand()), self.members[index]
        if not errand.due(now) or not swarm.lives(member, now):
            return []
        if self._has(swarm.last(member.peer), digest):
            errand.done = True
            return []
        errand.flying = True
        return [SendResult(self.round, self.attempt, part, digest, member.peer)]

    def _audience(self, part: int, state: Part, digest: str, swarm: Swarm, now: float) -> Iterator[int]:
        """Whom we push a part's result to: a reducer its group (the whole round, if that has no groups) and
        one of each other group, and that one its own group.
        """
        if self.index is None:
            return
        own = self.index % self.groups
        if state.reduced:
            yield from (i for i in self._in_turn(self._group(own)) if i != self.index)
            for group in range(self.groups):
                acting = self._acting(part, group, swarm, now, digest) if group != own else None
                if acting is not None:
                    yield acting
        elif self.groups > 1 and self._serves(part, own, digest, swarm, now):
            yield from (i for i in self._group(own) if i != self.index)

    def _serves(self, part: int, own: int, digest: str, swarm: Swarm, now: float) -> bool:
        """Whether our group gets a result from us, and not from a reducer that is one of it and has it."""
        reducer = self.members[self._reducers[part]]
        in_ours = self._reducers[part] % self.groups == own and swarm.lives(reducer, now)
        if in_ours and self._has(swarm.last(reducer.peer), digest):
            return False
        return self._acting(part, own, swarm, now) == self.index

    def _fetch(self, swarm: Swarm, now: float, decides: bool, follows: bool) -> list[Effect]:
        """Fetch what others hold and no push brought; after a failure from the next holder."""
        wanted = self.index is not None or decides or (follows and self.groups == 1)
        if not wanted or now < self._look_at or all(part.results for part in self._parts):
            return []
        self._look_at = now + (LOOK_S if self.groups > 1 else 0.0)
        offers: dict[str, list[tuple[Held, str]]] = {}
        for progress in self._neighbours(swarm, now, decides):
            for held in progress.held:
                if held.part < len(self._parts) and held.digest not in self._parts[held.part].results:
                    offers.setdefault(held.digest, []).append((held, progress.peer))
        effects: list[Effect] = []
        for digest, some in offers.items():
            pushed_s = PUSH_S if self.index is not None else 0.0
            errand = self._fetches.setdefault(digest, Errand(retry_at=now + pushed_s))
            if errand.due(now) and not self._expects(some[0][0], now):
                held, source = some[errand.tries % len(some)]
                errand.flying, errand.tries = True, errand.tries + 1
                effects.append(Fetch(digest, held.size, source))
        return effects

    def _expects(self, held: Held, now: float) -> bool:
        """Whether a result comes by itself. A reducer that never comes to an end is waited for no longer."""
        in_time = now <= self._parts[held.part].due_since + PATIENCE * self.grace_s
        return in_time and self._incoming.expects(held.digest, self._reducers[held.part], now)

    def awaits(self, now: float) -> bool:
        """Whether some result of the committed round that is not here is on its way."""
        lacking = (held for part, held in self._committed.items() if not self._parts[part].results)
        return self.index is not None and any(self._expects(held, now) for held in lacking)

    # -- who is who ------------------------------------------------------------------------------

    def _index(self, member: Member) -> int | None:
        index = self._places.get(member.peer)
        return index if index is not None and self.members[index] == member else None

    def _in_turn(self, numbers: range) -> Iterator[int]:
        """Beginning after our own place: else all would send to the same one first."""
        first = (self.index or 0) // numbers.step + 1
        return (numbers[i % len(numbers)] for i in range(first, first + len(numbers)))

    def _group(self, group: int) -> range:
        return range(group, len(self.members), self.groups)

    def _acting(self, part: int, group: int, swarm: Swarm, now: float, digest: str | None = "") -> int | None:
        """Who gathers and spreads a part for a group: the first that lives. Of those to whom our own
        contribution (``digest`` None) or a result went in vain the next one.
        """
        first = None
        for index in ring(group, self.groups, len(self.members), part + self.round):
            if swarm.lives(self.members[index], now):
                first = index if first is None else first
                errand = self._errand(part, digest, index)
                if errand is None or errand.failures < TRIES:
                    return index
        return first

    def _errand(self, part: int, digest: str | None, index: int) -> Errand | None:
        """What goes to a member: our contribution, if ``digest`` is None, or a result."""
        return self._sends.get((part, index)) if digest is None else self._pushes.get((part, digest, index))

    def _target(self, part: int, swarm: Swarm, now: float) -> int | None:
        """To whom our own contribution goes."""
        assert self.index is not None
        reducer, own = self._reducers[part], self.index % self.groups
        if reducer % self.groups == own:
            return reducer
        return self._acting(part, own, swarm, now, digest=None)

    def _gathers(self, part: int, index: int) -> bool:
        """Whether a member's contribution may come to us to be sent on."""
        own = (self.index or 0) % self.groups
        return self.index is not None and index % self.groups == own != self._reducers[part] % self.groups

    def _neighbours(self, swarm: Swarm, now: float, decides: bool) -> Iterator[Progress]:
        """Announcements of this attempt by those whom we may fetch from: in a large round our group and the
        reducers, for all would else ask the few that have a result first; a steward anybody.
        """
        if self.groups == 1 or decides:
            yield from (p for p in swarm.alive(now) if self._speaks(p))
            return
        assert self.index is not None
        for index in {*self._group(self.index % self.groups), *self._reducers}:
            progress = swarm.last(self.members[index].peer)
            if progress is not None and self._speaks(progress) and swarm.lives(self.members[index], now):
                yield progress

    def _speaks(self, progress: Progress) -> bool:
        return progress.round == self.round - 1 and progress.attempt == self.attempt

    def _has(self, progress: Progress | None, digest: str) -> bool:
        """Whether a peer says that it has a result, or needs it no more."""
        if progress is None or not self._speaks(progress):
            return progress is not None and progress.round >= self.round
        return any(held.digest == digest for held in progress.held)


@lru_cache(2)
def _places(members: tuple[Member, ...]) -> dict[str, int]:
    """Index of each member, by its key."""
    return {member.peer: index for index, member in enumerate(members)}


def _give(part: Part, index: int, weight: float) -> None:
    if weight > 0:
        part.gathered[index] = weight
    else:
        part.abstained.add(index)
