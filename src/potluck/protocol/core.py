"""The core of a peer: view, presence, exchange, catch-up and steward, behind one set of events.

Two rules hold throughout. An event only records what happened; ``poll`` alone decides, from the whole of
what is known. And everything asked for is asked again until it is answered or no longer wanted.
"""

from __future__ import annotations

import math

from msgspec.structs import replace

from potluck.protocol.catchup import NO_STATE, Catchup, chunks
from potluck.protocol.effects import (
    Announce,
    Append,
    Effect,
    Evaluate,
    Included,
    Leased,
    Note,
    Revoked,
    WriteSnapshot,
)
from potluck.protocol.evaluating import Evaluating
from potluck.protocol.evaluations import told
from potluck.protocol.exchange import Exchange
from potluck.protocol.keeping import Keeping
from potluck.protocol.leases import count
from potluck.protocol.leasing import Granted, lease_out
from potluck.protocol.steward import Rules, Times, agree_on_snapshot, decide, place_for, subject
from potluck.protocol.swarm import Swarm
from potluck.protocol.turn import LINE, Turn
from potluck.protocol.view import KEEP_SNAPSHOTS, RunView
from potluck.wire.messages import Answer, Phase, Progress, Push, PushContribution, PushPartial, PushResult
from potluck.wire.records import (
    Commit,
    Entry,
    Evaluation,
    Finish,
    Grant,
    Held,
    Member,
    Open,
    PartInfo,
    Reassign,
    Snapshot,
)
from potluck.wire.result import Tally

Described = tuple[Tally, PartInfo]

_SOME, _VITAL = 1, 2

TICK_S = 0.25
"""How often a busy core wants to be polled, in seconds; an idle one needs it once a second."""


class PeerCore:
    """One life of one peer in one run.

    Args:
        me: this peer and its session.
        rules: the recipe's, known before the first record is followed.
        trains: whether it contributes, or only follows.
        have: digests of content already in its store.
        snapshot_every: rounds between snapshots.
        keep_snapshots: how many recorded snapshots stay on this peer's disk, at least those of the view.
        keep_best: whether what the best evaluated state follows from stays there as well.
    """

    def __init__(
        self,
        me: Member,
        rules: Rules,
        *,
        trains: bool,
        have: set[str],
        snapshot_every: int,
        keep_snapshots: int = KEEP_SNAPSHOTS,
        keep_best: bool = True,
    ) -> None:
        self.me = me
        self.view = RunView()
        self.swarm = Swarm()
        self.catchup = Catchup(me.peer, have)
        self.exchange: Exchange | None = None
        self._spreading: Exchange | None = None
        self._patient_until = 0.0
        self.leaving = False
        self.reason = ""
        self._rules = rules
        self.trains = trains
        self._every = snapshot_every
        self.keeping = Keeping(self.catchup.have, keep_snapshots, keep_best)
        self.evaluating = Evaluating(me.peer)
        self._parts_from = 0
        self._beat = 0
        self._said = -math.inf, 1.0
        self._caught_up = False
        self._times = Times(0.0, 0.0)
        self._grants = Granted(0.0, {})
        self._turn = Turn()
        self._queue: list[Effect] = []
        self._news_of = 0

    # -- the ledger ------------------------------------------------------------------------------

    def followed(self, entry: Entry, now: float) -> None:
        """A record of the ledger, in order."""
        skipped = self.view.follow(entry)
        if not skipped or entry.record.author != self.me.peer:
            self._turn.followed()  # of what all skip the next is no better: ours must not come at once
        body = entry.record.body
        if skipped:
            self._note(f"ledger record {entry.sequence} ({type(body).__name__}) is skipped: {skipped}", True)
            return
        if isinstance(body, Open):
            self._opened(body, now)
        elif isinstance(body, Reassign):
            assert self.view.open is not None
            self._times = Times(self._times.committed, now)
            if self.exchange is not None:
                self.exchange.follow(self.view.open, now)
            self._note(f"round {body.round}: {body.reason}")
        elif isinstance(body, Commit):
            self._spread_on(body, now)
            self.keeping.retention.committed(body)
            self._times = Times(now, now)
            if self.me in self.view.moved:
                self._queue.append(Included(count(self.view.moved[self.me])))
            self._note(f"round {body.round} committed: {body.reason}")
        elif isinstance(body, Grant):
            self._granted(body, now)
        elif isinstance(body, Snapshot):
            self._recorded(body)
        elif isinstance(body, Evaluation):
            self._evaluated(body)
        elif isinstance(body, Finish):
            self.exchange = None
            self._note(f"run over: {body.reason}")

    def _opened(self, body: Open, now: float) -> None:
        assert self.view.open is not None
        self._times = Times(self._times.committed, now)
        self._note(f"round {body.round} opened: {body.reason}")
        self.exchange, self._spreading = Exchange(self.view.open, self.me, now), None
        self._patient_until = 0.0
        self.keeping.retention.at_head |= self.exchange.index is not None
        self.keeping.judged(self.view.evaluations.grounds)
        at_base = self.catchup.round == body.round - 1
        if at_base and self.catchup.state != body.base:
            self._note(
                f"state after round {body.round - 1} is {self.catchup.state[:12]} here and {body.base[:12]} "
                "elsewhere: taking the state from the others again",
                True,
            )
            self.catchup.drifted()
            self.keeping.written.only(self.view.snapshots)
        if self.exchange.index is not None and self.catchup.round != body.round - 1:
            self.exchange.cut_done(0)
        self._say()

    def _spread_on(self, body: Commit, now: float) -> None:
        """A round is committed when two have each part: by then others have not got them yet."""
        self._spreading, self.exchange = self.exchange, None
        if (exchange := self._spreading) is not None:
            exchange.committed(body)
            large = exchange.groups > 1 and exchange.index is not None
            self._patient_until = now + exchange.grace_s / 2 if large else 0.0

    def _granted(self, body: Grant, now: float) -> None:
        self._grants = Granted(now, {**self._grants.to, **dict.fromkeys(self.view.moved, now)})
        if self.me in body.released:
            self._queue.append(Revoked())
            what = "our data went to others, and what we trained since the last commit with it"
            self._note(f"taken for gone: {what}", True)
        if self.me in self.view.moved:
            self._queue.append(Leased(tuple(self.view.moved[self.me])))
            self._say()
        if body.released:
            self._note(f"data: {body.reason}")

    def _recorded(self, body: Snapshot) -> None:
        self._parts_from = max(self._parts_from, min(self.view.snapshots) + 1)
        self.keeping.recorded(body, min(self.view.snapshots))
        self._note(f"snapshot of round {body.round} recorded: {body.reason}")

    def _evaluated(self, body: Evaluation) -> None:
        self.evaluating.followed(body)
        self.keeping.judged(self.view.evaluations.grounds)
        self._note(f"round {body.round} evaluated: {told(body)}; {body.reason}")

    def _needed(self) -> set[str]:
        """Content that is needed besides snapshots and the parts of rounds."""
        files = self.view.genesis.assets if self.view.genesis is not None else ()
        return {*(self.exchange.known if self.exchange is not None else ()), *(d for d, _ in chunks(files))}

    def appended(self, ok: bool, reason: str) -> None:
        """An append was answered. Either way the next record to follow tells what became of it."""
        if not ok:
            self._turn.refused()
            self._note(f"append not taken: {reason}")

    # -- the swarm -------------------------------------------------------------------------------

    def heard(self, progress: Progress, now: float) -> bool:
        """An announcement of any peer, our own included; whether it says anything new."""
        if progress.member != self.me:
            known = self.swarm.last(progress.peer)
            if known is None or known.session != progress.session:
                self._say()  # who has just come knows nobody yet
            return self.swarm.hear(progress, now)
        if self.swarm.echo(now, progress.every_s):
            self._times = Times(self._times.committed, now)
        return False

    def announcement(self, base: Progress, now: float) -> Progress:
        """Our own announcement: ``base`` has what the shell knows (work, bytes, names)."""
        self._beat += 1
        exchange = self.exchange
        progress = replace(
            base,
            beat=self._beat,
            every_s=self.every_s(now),
            phase=self.phase,
            round=self.catchup.round,
            state=self.catchup.state,
            evaluates=self.evaluating.every > 0,
            evaluating=self.evaluating.round,
            attempt=exchange.attempt if exchange else 0,
            abstains=exchange is not None and exchange.weight == 0,
            held=self._held(),
            snapshots=self.keeping.manifests(self.view.snapshots),
            parts_from=self._parts_from,
            fetching=self.catchup.fetching,
            eta_s=self.catchup.eta_s(now),
            activity=self.activity[:2000],
        )
        self.swarm.hear(progress, now)
        self._said = now, progress.every_s
        if self._beat == 1:
            self.swarm.echo(now, progress.every_s)
        return progress

    def every_s(self, now: float) -> float:
        """How soon our next announcement is due, in seconds. Whom all others wait for goes on as ever."""
        exchange = self.exchange
        awaited = exchange is not None and exchange.groups > 1 and exchange.reduces_any
        return 1.0 if awaited else self.swarm.every_s(now)

    def beats(self, now: float) -> bool:
        """Whether our next announcement is due, as we said with the last one, or sooner if we are awaited."""
        said_at, promised_s = self._said
        return now >= said_at + min(promised_s, self.every_s(now)) - 0.5

    def _say(self, vital: bool = False) -> None:
        """Announce something at once, or in a crowd at the next beat, unless others wait for it."""
        self._news_of = max(self._news_of, _VITAL if vital else _SOME)

    def _held(self) -> tuple[Held, ...]:
        """Results of the open round; before it is reached, of the next one: what one lacks, another holds."""
        commit = self.view.commits.get(self.catchup.round + 1)
        if commit is not None:
            return tuple(info.held for info in commit.parts if info.digest in self.catchup.have)
        return tuple(info.held for info in self.exchange.held) if self.exchange is not None else ()

    @property
    def phase(self) -> Phase:
        """What we are to others."""
        if self.leaving:
            return "leaving"
        if not self._caught_up or self.catchup.round == NO_STATE:
            return "joining"
        return "training" if self.trains else "following"

    @property
    def activity(self) -> str:
        """What is being done or waited for, in words."""
        return self.catchup.reason if self.catchup.round < self.view.round else self.reason

    @property
    def over(self) -> bool:
        """The run is over, and its last round is applied here."""
        return self.view.finished is not None and self.catchup.round == self.view.round

    @property
    def may_leave(self) -> bool:
        """Nobody waits for us: no round in flight has us as a member, and nobody is to get its results."""
        owes = self._spreading is not None and self._spreading.owes
        return (self.exchange is None or self.exchange.index is None) and not owes

    # -- the exchange ----------------------------------------------------------------------------

    def cut_done(self, round_: int, attempt: int, weight: float) -> None:
        """The trainer's progress is encoded; weight 0 means that there is nothing to give."""
        if self._in(round_, attempt):
            self._exchange().cut_done(weight)

    def contributed(self, push: PushContribution, member: Member) -> Answer:
        """A contribution is here."""
        return self._routed(push) or self._exchange().contributed(push.part, member, push.weight)

    def partial(self, push: PushPartial, member: Member) -> Answer:
        """A partial is here."""
        weights = dict(push.contributors)
        if len(weights) < len(push.contributors):
            return Answer(False, f"round {push.round} part {push.part}: a member is named twice")
        return self._routed(push) or self._exchange().partial(push.part, member, weights, push.abstained)

    def combined(
        self,
        round_: int,
        attempt: int,
        part: int,
        contributors: tuple[int, ...],
        refused: tuple[int, ...],
    ) -> None:
        """What our group gave for a part is combined; ``refused`` members had sent what can't be decoded."""
        if self._in(round_, attempt):
            self._exchange().combined(part, contributors, refused)
            self._refused(round_, part, refused)

    def partial_sent(
        self, round_: int, attempt: int, part: int, lead: int | None, to: str, answer: Answer, now: float
    ) -> None:
        """A partial was delivered, refused, or failed (retry)."""
        if self._in(round_, attempt):
            self._exchange().partial_sent(part, lead, to, answer, now)
            if not answer.ok and not answer.retry:
                self._note(f"round {round_} part {part}: the group's mean was refused: {answer.reason}", True)

    def _routed(self, push: PushContribution | PushPartial) -> Answer | None:
        """The answer to a contribution that is not for the exchange we are in."""
        if self._in(push.round, push.attempt):
            return None
        now_at = (self.exchange.round, self.exchange.attempt) if self.exchange else (self.view.round, 1 << 30)
        if (push.round, push.attempt) > now_at:
            return Answer(False, f"round {push.round} is not open here yet", retry=True)
        return Answer(False, f"round {push.round}, attempt {push.attempt} is closed: late")

    def reduces(self, round_: int, attempt: int, part: int) -> bool:
        """Whether a part is still ours to reduce; what has become another's would be counted twice."""
        return self._in(round_, attempt) and self._exchange().reduces(part)

    def reduced(
        self, round_: int, attempt: int, part: int, info: PartInfo | None, refused: tuple[int, ...]
    ) -> None:
        """A reduction ended; ``refused`` members had sent what can't be decoded."""
        if info is not None:
            self.catchup.have.add(info.digest)
        if self._in(round_, attempt):
            self._exchange().reduced(part, info, refused)
            self._say(vital=True)
            self._refused(round_, part, refused)

    def _refused(self, round_: int, part: int, refused: tuple[int, ...]) -> None:
        where = f"round {round_} part {part}"
        for index in refused:
            name = self.swarm.name(self._exchange().members[index])
            self._note(f"{where}: contribution of {name} refused, it can't be decoded", True)

    def result(self, round_: int, attempt: int, info: PartInfo, now: float) -> None:
        """A result was pushed to us, verified and stored."""
        self.catchup.fetched(info.digest, True, now)
        if (exchange := self._open_or_spread(round_, attempt)) is not None:
            exchange.result(info)
        if self._in(round_, attempt):
            self._say(self._exchange().vouches(info.part, self.swarm, now))

    def coming(self, push: Push, member: Member, begins: bool, now: float) -> None:
        """A push to us begins, or has ended, well or not."""
        if (exchange := self._open_or_spread(push.round, push.attempt)) is not None:
            exchange.coming(push.held.digest if isinstance(push, PushResult) else "", member, begins, now)

    def sent(
        self, round_: int, attempt: int, part: int, to: str, digest: str | None, answer: Answer, now: float
    ) -> None:
        """A contribution (``digest`` None) or result was delivered, refused, or failed (retry)."""
        if (exchange := self._open_or_spread(round_, attempt)) is not None:
            exchange.sent(part, to, digest, answer.ok, answer.retry, now)
        if self._in(round_, attempt) and not answer.ok and not answer.retry:
            name = (self.swarm.last(to) or Progress(peer=to, session="")).name or to[:8]
            self._note(f"round {round_} part {part}: {name} refused it: {answer.reason}", True)

    def fetches_result(self, digest: str) -> bool:
        """Whether content is being fetched as a result of the open round."""
        return self.exchange is not None and self.exchange.fetches(digest)

    def fetched(self, digest: str, ok: bool, now: float, tally: Described | None = None) -> None:
        """A fetch ended; if ok, the content is verified and in the store. A result has a ``tally``."""
        self.catchup.fetched(digest, ok, now)
        if self.exchange is not None:
            fits = ok and tally is not None and self._in(tally[0].round, tally[0].attempt)
            info = tally[1] if fits and tally is not None else None
            self.exchange.fetched(digest, info, now)
            if info is not None:
                self._say(self.exchange.vouches(info.part, self.swarm, now))

    def _open_or_spread(self, round_: int, attempt: int) -> Exchange | None:
        return next((e for e in (self.exchange, self._spreading) if e and e.of == (round_, attempt)), None)

    def _in(self, round_: int, attempt: int) -> bool:
        return self.exchange is not None and self.exchange.of == (round_, attempt)

    def _exchange(self) -> Exchange:
        assert self.exchange is not None
        return self.exchange

    # -- the state -------------------------------------------------------------------------------

    def applied(self, round_: int, state: str, loaded: bool) -> None:
        """The state is now that after ``round_``; ``loaded`` from a snapshot, or by applying a commit."""
        self.catchup.applied(round_, state)
        if loaded:
            self._parts_from = round_ + 1
        elif round_ % self._every == 0 and not self.keeping.has(round_, self.view.snapshots):
            # Also one that others have recorded already: this disk alone must do to bring the run back.
            self._queue.append(WriteSnapshot(round_))
        self._say()

    def missing(self, digests: tuple[str, ...]) -> None:
        """Content that was thought to be here is not, or is damaged."""
        self.catchup.missing(digests)
        self._note(f"{len(digests)} pieces of content are damaged or gone here: fetching them again", True)

    def snapshot_written(self, snapshot: Snapshot) -> None:
        """A snapshot of our state is in our store."""
        self.keeping.wrote(snapshot, self.view.snapshots)
        self._say()

    # -- deciding --------------------------------------------------------------------------------

    def poll(self, now: float) -> list[Effect]:
        """Everything that is due now."""
        patient = now < self._patient_until or (self._spreading is not None and self._spreading.awaits(now))
        effects: list[Effect] = self.catchup.poll(self.view, self.swarm, now, patient)
        if not self._caught_up and self.view.genesis is not None and self.catchup.round == self.view.round:
            self._caught_up = True
            self._note(f"caught up with round {self.catchup.round}")
            self._say(vital=True)
        if self.catchup.round == self.view.round and (drop := self.keeping.sweep(self._needed)) is not None:
            self._queue.append(drop)
        if self.exchange is not None:
            rank, follows = self._rank(now), self.catchup.round == self.exchange.round - 1
            effects += self.exchange.poll(self.swarm, now, rank is not None and rank <= LINE, follows)
        elif self._spreading is not None:
            effects += self._spreading.spread(self.swarm, now)
        effects += self._govern(now)
        at, may = (self.catchup.round, self.catchup.state), not self.leaving or self.over
        if may and self.evaluating.begins(self.view, self.swarm, *at, now):
            effects.append(Evaluate(self.catchup.round))
            self._say(vital=True)
        queued, self._queue = self._queue, []
        if self._news_of == _VITAL or (self._news_of and self.swarm.every_s(now) == 1):
            queued.append(Announce())
        self._news_of = 0
        return queued + effects

    def deadline(self, now: float) -> float:
        """When to poll again if nothing happens before."""
        busy = self.exchange is not None or self.catchup.round < self.view.round or self._turn.due
        return now + (TICK_S if busy else 1.0)

    def _govern(self, now: float) -> list[Effect]:
        """Act as steward when it is our turn, and we hear the swarm: one that has just
        come would take all it has not heard yet for gone.
        """
        if self.swarm.deaf(now) and not self.over:
            self.reason = "the hub is away: training goes on, rounds wait"
            return []
        if not self.swarm.settled(now):
            self.reason = "just come: listening for others before deciding anything"
            return []
        rank = self._rank(now)
        if not self._turn.looks(rank, now):
            return []
        known = self.exchange.known if self.exchange is not None else {}
        mine = self.evaluating.verdict(self.view)
        choices = [
            decide(self.view, self.swarm, self._rules, self._times, now, known),
            agree_on_snapshot(self.view, self.swarm, self.keeping.written, now),
            lease_out(self.view, self.swarm, self._grants, now),
        ]
        self.reason = choices[0].reason
        choices.insert(0 if rank is None else len(choices), mine)  # nobody else can append it
        decision = next((c for c in choices if c.body is not None), None)
        key = subject(decision, self.view) if decision is not None else None
        place = 0 if decision is mine else place_for(decision, self.view, self.swarm, self.me.peer, rank, now)
        if not self._turn.comes(key, place, now) or decision is None or decision.body is None:
            return []
        return [Append(decision.body)]

    def _rank(self, now: float) -> int | None:
        """Our place in the line of stewards."""
        members = self.view.open.members if self.view.open is not None else ()
        return self.swarm.place(self.me.peer, members, now)

    def _note(self, text: str, problem: bool = False) -> None:
        self._queue.append(Note(text, problem))
