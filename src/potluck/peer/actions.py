"""Carries a core's effects out: on the wire, in the store, on the vectors. Outcomes go back as events.

Vectors and store are touched by one worker thread, so effects on them happen in order; the network goes
on meanwhile. What takes long and needs no order does not keep that worker: content from and for other peers
is written and read, and a snapshot written, beside it. A failure of the machine (a full disk, say) is told
in words, and the effect fails after a pause, so that the core asks again.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from potluck.errors import (
    CorruptData,
    LedgerConflict,
    LedgerUnavailable,
    PotluckError,
    ProtocolError,
    StoreError,
)
from potluck.hub.ledger import Ledger
from potluck.peer.handover import CutRequest, Handover
from potluck.peer.layout import Carry, Vector
from potluck.peer.links import Links, Reply
from potluck.peer.state import Contribution, Missing, Partial, PeerState
from potluck.protocol import pacing
from potluck.protocol.core import PeerCore
from potluck.protocol.effects import (
    Announce,
    Append,
    Apply,
    Combine,
    Cut,
    Drop,
    Effect,
    Evaluate,
    Fetch,
    Included,
    Leased,
    LoadSnapshot,
    Note,
    Reduce,
    Revoked,
    SendContribution,
    SendPartial,
    SendResult,
    WriteSnapshot,
)
from potluck.wire.codec import digest
from potluck.wire.messages import Answer, Push, PushContribution, PushPartial, PushResult, Request
from potluck.wire.messages import Fetch as FetchRequest
from potluck.wire.records import Chain, Evaluation, Held, Member, PartInfo
from potluck.wire.result import describe

if TYPE_CHECKING:
    from potluck.peer.evaluator import Evaluator

T = TypeVar("T")

AILING_S = 1.0
"""Pause after the disk refused, before the same is tried again, in seconds."""

LINGER_S = 10.0
EVALUATE_S = 60.0
"""How long a peer stays after the run's end for those who lack its last parts, or until it has evaluated the
last state, in seconds."""

ASIDE = 4
"""Threads beside the worker: most of their time they wait for the disk."""


class Actions:
    """Executes effects for one peer.

    Args:
        announce: publish what changed.
        note: words for the log and whoever watches.
        problem: the same for what is amiss.
        changed: an event went into the core, let it decide.
        spawn: run a coroutine as a task that the node owns.
    """

    def __init__(
        self,
        core: PeerCore,
        state: PeerState,
        links: Links,
        ledger: Ledger,
        chain: Chain,
        *,
        announce: Callable[[], None],
        note: Callable[[str], None],
        problem: Callable[[str], None],
        changed: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.core, self.state = core, state
        self.handover = Handover(self._taken_in_thread, state.fragments)
        self.sync: Callable[[], str] = str
        """Makes the ledger as followed so far durable, from any thread; returns what went wrong, in words."""
        self.evaluator: Evaluator | None = None
        """Measures shared states, if the trainer said how."""
        self._links, self._ledger, self._chain = links, ledger, chain
        self._announce, self._note, self._changed, self._spawn = announce, note, changed, spawn
        self._problem = problem
        self._loop = asyncio.get_running_loop()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="potluck-vectors")
        self._aside = ThreadPoolExecutor(ASIDE, thread_name_prefix="potluck-store")
        self._ahead: dict[int, tuple[str, bytes]] = {}
        self._snapshots = asyncio.Lock()
        self._states = asyncio.Lock()
        """New states reach the trainer in the order in which the vectors had them."""

    def close(self) -> None:
        """Finish what the threads do at the moment, and end them."""
        self._worker.shutdown(cancel_futures=True)
        self._aside.shutdown(cancel_futures=True)

    async def work(self, function: Callable[..., T], *args: Any) -> T:
        """Run in the worker thread, after what was given to it before."""
        return await self._loop.run_in_executor(self._worker, functools.partial(function, *args))

    async def _beside(self, function: Callable[..., T], *args: Any) -> T:
        """Run beside the worker: for what touches no vectors, and takes long or is waited for."""
        return await self._loop.run_in_executor(self._aside, functools.partial(function, *args))

    def start(self, effect: Effect) -> None:
        """Carry one effect out: at once if it is quick, else as a task."""
        match effect:
            case Announce():
                self._announce()
            case Note():
                (self._problem if effect.problem else self._note)(effect.text)
            case Cut():
                self._ask_for_cut(effect)
            case Leased():
                self.handover.leased(effect.spans)
            case Included():
                self.handover.included(effect.blocks)
            case Revoked():
                self.handover.revoked()
                self._spawn(self._abandon())
            case Append():
                self._start_append(effect)
            case SendContribution():
                self._spawn(self._send_contribution(effect))
            case SendPartial():
                self._spawn(self._send_partial(effect))
            case SendResult():
                self._spawn(self._send_result(effect))
            case Fetch():
                self._spawn(self._fetch(effect))
            case Combine():
                self._spawn(self._combine(effect))
            case Reduce():
                self._spawn(self._reduce(effect))
            case Apply() | LoadSnapshot():
                self._spawn(self._change_state(effect))
            case WriteSnapshot():
                self._spawn(self._write_snapshot(effect))
            case Evaluate():
                self._spawn(self._evaluate(effect))
            case Drop():
                self._spawn(self._drop(effect))

    def _now(self) -> float:
        return self._loop.time()

    # -- the trainer -----------------------------------------------------------------------------

    def _ask_for_cut(self, effect: Cut) -> None:
        exchange = self.core.exchange
        if self.core.leaving:
            self.core.cut_done(effect.round, effect.attempt, 0)
        elif exchange is not None and exchange.index is not None:
            stretches = self.state.stretches(effect.round)
            self.handover.request(CutRequest(effect.round, effect.attempt, exchange.index, stretches))

    def withdraw(self) -> None:
        """The trainer comes to no further boundary: nobody needs to wait for a cut that was asked for."""
        request = self.handover.withdraw()
        if request is not None:
            self.core.cut_done(request.round, request.attempt, 0)

    async def _abandon(self) -> None:
        async with self._states:
            if self.state.plane is not None:
                self.handover.reset(await self.work(self.state.abandon))

    def _taken_in_thread(self, request: CutRequest, local: Vector, weight: float, blocks: int) -> None:
        """Called from the training thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self._spawn(self._taken(request, local, weight, blocks)))

    async def _taken(self, request: CutRequest, local: Vector, weight: float, blocks: int) -> None:
        if self.core.catchup.round != request.round - 1:
            return
        member = (request.round, request.attempt, request.index)
        done = await self.work(self.state.cut, *member, local, weight, blocks)
        if not done:
            self._problem(
                f"round {request.round}: the model here has become NaN or infinite: nothing is contributed, "
                "and training goes on from the shared state; lower the learning rate if it happens again"
            )
            async with self._states:
                self.handover.reset(await self.work(self.state.shared))
        self.core.cut_done(request.round, request.attempt, weight if done else 0.0)
        self._changed()

    # -- the ledger ------------------------------------------------------------------------------

    def _start_append(self, effect: Append) -> None:
        try:
            raw = self._chain.next(self.core.me.peer, effect.body)
        except ProtocolError as error:
            self.core.appended(False, str(error))
        else:
            self._spawn(self._append(raw, self._chain.sequence))

    async def _append(self, raw: bytes, after: int) -> None:
        try:
            await self._ledger.append(raw, after)
            self.core.appended(True, "")
        except (LedgerConflict, LedgerUnavailable, ProtocolError) as error:
            self.core.appended(False, str(error))
        self._changed()

    # -- other peers -----------------------------------------------------------------------------

    async def _push(self, peer: str, push: Push, raw: bytes) -> Answer:
        """Send what belongs to the open round, no faster than the others' streams need."""
        open_, links, size = self.core.view.open, self._links, self.state.round_bytes
        me, swarm, now = self.core.me, self.core.swarm, self._now()
        rate = pacing.pace(open_, me, peer, swarm, links.up.rate, links.rtt_s, size, now)
        return (await self._ask(peer, push, raw, pace=rate)).answer

    async def _ask(
        self, peer: str, message: Request, body: bytes | None, want: int = 0, pace: float = 0.0
    ) -> Reply:
        """A request; whatever goes wrong is an answer to try again."""
        to = self.core.swarm.last(peer)
        if to is None or not to.addresses:
            return Reply(Answer(False, "its address is not known", retry=True))
        try:
            return await self._links.request(to, message, body, want, pace)
        except PotluckError as error:
            return Reply(Answer(False, str(error)[:500], retry=True))

    async def _send_contribution(self, effect: SendContribution) -> None:
        where = (effect.round, effect.attempt, effect.part)
        given = await self.work(self.state.contribution, *where) or Contribution(0.0, b"")
        push = PushContribution(*where, given.weight, len(given.raw), given.blocks)
        answer = await self._push(effect.to, push, given.raw)
        self.core.sent(*where, effect.to, None, answer, self._now())
        self._changed()
        await self.work(self.state.weigh, *where)

    async def _send_partial(self, effect: SendPartial) -> None:
        where = (effect.round, effect.attempt, effect.part)
        partial = None if effect.lead is None else self.state.partial(*where, effect.lead)
        given = partial or Partial((), b"")
        push = PushPartial(*where, given.contributors, given.blocks, effect.abstained, len(given.raw))
        answer = await self._push(effect.to, push, given.raw)
        self.core.partial_sent(*where, effect.lead, effect.to, answer, self._now())
        self._changed()

    async def _send_result(self, effect: SendResult) -> None:
        where = (effect.round, effect.attempt, effect.part)
        raw = await self._beside(self.state.store.get, effect.digest)
        if raw is None:
            answer = Answer(False, "the result is not here any more", retry=True)
        else:
            push = PushResult(effect.round, effect.attempt, Held(effect.part, effect.digest, len(raw)))
            answer = await self._push(effect.to, push, raw)
        self.core.sent(*where, effect.to, effect.digest, answer, self._now())
        self._changed()

    async def _fetch(self, effect: Fetch) -> None:
        reply = await self._ask(
            effect.source, FetchRequest(effect.digest, compressed=True), None, effect.size
        )
        ok = reply.answer.ok and await self.keep(effect.digest, reply.body)
        tally = None
        if ok and self.core.fetches_result(effect.digest):
            try:
                tally = await self.work(describe, reply.body)
            except CorruptData as error:
                self._problem(str(error))
        self.core.fetched(effect.digest, ok, self._now(), tally)
        self._changed()
        if tally is not None:
            await self.work(self.state.prepare, effect.digest, reply.body)

    async def keep(self, name: str, body: bytes) -> bool:
        """Store content that came from elsewhere, if it is what its digest says and the disk takes it."""
        if await self._beside(digest, body) != name:
            self._problem(f"content {name[:12]} came damaged: fetching it elsewhere")
            return False
        return await self._put(name, body)

    async def _put(self, name: str, body: bytes) -> bool:
        """Store content with this digest, if the disk takes it."""
        return await self._ailing(self._beside(self.state.store.put, body, name)) is not None

    async def _stored(self, function: Callable[..., T], *args: Any) -> T | None:
        """Something that writes to the disk; None if that refuses, after a pause."""
        return await self._ailing(self.work(function, *args))

    async def _ailing(self, writing: Coroutine[Any, Any, T]) -> T | None:
        try:
            return await writing
        except StoreError as error:
            self._problem(f"{error}; trying again")
            await asyncio.sleep(AILING_S)
            return None

    async def take_contribution(self, push: PushContribution, member: Member, body: bytes) -> Answer:
        """Another member's contribution is here."""
        answer = self.core.contributed(push, member)
        if answer.ok and self.core.exchange is not None and push.weight > 0:
            index = self.core.exchange.members.index(member)
            given = Contribution(push.weight, body, push.blocks)
            self.state.take(push.round, push.attempt, push.part, index, given)
        self._changed()
        return answer

    async def take_partial(self, push: PushPartial, member: Member, body: bytes) -> Answer:
        """The mean of what another member's group gave is here."""
        answer = self.core.partial(push, member)
        if answer.ok and push.contributors:
            partial = Partial(push.contributors, body, push.blocks)
            self.state.take_partial(push.round, push.attempt, push.part, partial)
        self._changed()
        return answer

    async def take_result(self, push: PushResult, body: bytes) -> Answer:
        """A result is here."""
        try:
            tally, info = await self._beside(describe, body)
        except CorruptData as error:
            return Answer(False, str(error)[:500])
        if (tally.round, tally.attempt, info.held) != (push.round, push.attempt, push.held):
            return Answer(False, "the result is not what it was said to be")
        if not await self._put(info.digest, body):
            return Answer(False, "it could not be kept", retry=True)
        self.core.result(push.round, push.attempt, info, self._now())
        self._changed()
        self._ahead[info.part] = info.digest, body
        self._spawn(self.work(self._prepare, info.part))
        return Answer(True)

    def _prepare(self, part: int) -> None:
        """Of pushes that come faster than they are decoded only a part's last one is kept for it."""
        if (pushed := self._ahead.pop(part, None)) is not None:
            self.state.prepare(*pushed)

    async def find(self, name: str) -> bytes | None:
        """Content by digest, for others."""
        return await self._beside(self.state.store.get, name)

    # -- vectors and store -----------------------------------------------------------------------

    async def _combine(self, effect: Combine) -> None:
        where = (effect.round, effect.attempt, effect.part)
        contributors, refused = await self.work(self.state.combine, *where, effect.contributors)
        self.core.combined(*where, contributors, refused)
        self._changed()

    async def _reduce(self, effect: Reduce) -> None:
        where = (effect.round, effect.attempt, effect.part)
        # A process that was stopped comes to this when the part is another's by now. Both may get the same
        # bytes, and each would then keep the residual.
        ours = self.core.reduces(*where)
        info: PartInfo | None = None
        refused: tuple[int, ...] = ()
        if ours:
            given = (effect.contributors, effect.partials)
            info, raw, refused = await self.work(self.state.reduced, *where, *given)
            if info is not None and not await self._put(info.digest, raw):
                info, refused = None, ()
        self.core.reduced(*where, info, refused)
        self._changed()
        if info is not None:
            await self.work(self.state.prepare, info.digest, raw)
            await self.work(self.state.weigh, *where)

    async def _change_state(self, effect: Apply | LoadSnapshot) -> None:
        async with self._states:
            await self._new_state(effect)
        self._changed()

    async def _new_state(self, effect: Apply | LoadSnapshot) -> None:
        loaded = isinstance(effect, LoadSnapshot)
        try:
            if isinstance(effect, Apply):
                carry = await self.work(self.state.apply, effect.commit)
            else:
                carry = await self.work(self.state.load, effect.snapshot)
        except Missing as missing:
            self.core.missing(missing.digests)
        except CorruptData as error:
            self._problem(str(error))
            if isinstance(effect, LoadSnapshot):
                self.core.catchup.spoilt(effect.snapshot.round)
            else:
                await asyncio.sleep(AILING_S)
                self.core.missing(())
        else:
            await self.took(carry, loaded=loaded)

    async def took(self, carry: Carry, *, loaded: bool) -> None:
        """A new shared state is ours: hand it to the trainer, and report it."""
        assert self.state.plane is not None
        # What is reported as applied is committed on this disk too.
        digesting = self.work(lambda: self.state.plane.digest if self.state.plane else "")
        state, _ = await asyncio.gather(digesting, self._synced())
        # Who does not train takes nothing up: without this every shared state would be kept for it, for ever.
        trains = self.core.trains and self.handover.begun
        self.handover.offer(carry if trains else await self.work(self.state.afresh, carry))
        for text in self.state.returning.news():
            self._note(text)
        self.core.applied(self.state.plane.round, state, loaded)

    async def _write_snapshot(self, effect: WriteSnapshot) -> None:
        async with self._snapshots:
            if self.core.catchup.round != effect.round:
                return
            copy = await self.work(self.state.copy)
            snapshot = None
            while copy.round == effect.round and snapshot is None:
                snapshot = await self._ailing(self._beside(self.state.write, copy))
                if snapshot is None and self.core.catchup.round != effect.round:
                    return
            if snapshot is not None:
                self.core.snapshot_written(snapshot)
        self._changed()

    async def evaluates(self, evaluator: Evaluator) -> None:
        """From now on this peer takes its turn in measuring shared states."""
        self.evaluator, self.core.evaluating.every = evaluator, evaluator.every
        self._announce()

    async def evaluated(self) -> None:
        """Stay until the state that the run ended with is evaluated; only who is at it stays for long, and
        then until the ledger has it: ``EVALUATE_S + LINGER_S`` at most.
        """
        began = since = self._now()
        core = self.core
        while core.evaluating.busy or core.evaluating.awaited(core.view):
            now, at_it = self._now(), core.evaluating.round >= 0
            since = now if at_it else since
            others = any(p.evaluating >= 0 for p in core.swarm.alive(now) if p.peer != core.me.peer)
            waits_s = 0.0 if others and not core.evaluating.busy else LINGER_S
            if (now - began >= EVALUATE_S) if at_it else (now - since >= waits_s):
                return
            await asyncio.sleep(0.1)

    async def _evaluate(self, effect: Evaluate) -> None:
        from potluck.peer.evaluator import EvaluationFailed

        assert self.evaluator is not None, "only who can evaluate is asked to"
        result = None
        try:
            round_, state, theta = await self.work(self.state.standing)
            metrics, took_s = await self.evaluator.evaluate(theta)
            said = f"by {self._name()} in {took_s:.1f} s"
            result = Evaluation(round_, state, metrics, said, self.evaluator.rises)
        except EvaluationFailed as error:
            self._problem(f"round {effect.round} is left to others to evaluate: {error}")
        self.core.evaluating.done(result)
        self._announce()

    def _name(self) -> str:
        return self.core.swarm.name(self.core.me)

    async def _synced(self) -> None:
        if problem := await self._beside(self.sync):
            self._problem(problem)

    async def _drop(self, effect: Drop) -> None:
        await self._synced()  # the records by which it is not needed any more come first
        async with self._snapshots:  # one that is being written may have chunks in common with older ones
            for name in sorted(effect.digests - self.core.catchup.have):
                await self._stored(self.state.store.delete, name)
