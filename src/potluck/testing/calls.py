"""What simulated peers ask of each other, and answer."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from potluck.errors import StoreError
from potluck.peer.state import Contribution, Partial, PeerState
from potluck.protocol.core import PeerCore
from potluck.protocol.effects import Fetch, SendContribution, SendPartial, SendResult
from potluck.store.contents import MemoryStore
from potluck.testing.machine import Machine
from potluck.wire.messages import Answer, PushContribution, PushPartial, PushResult
from potluck.wire.records import Held, Member
from potluck.wire.result import describe

if TYPE_CHECKING:
    from potluck.testing.simulator import Simulation

SILENCE_S = 4.0
"""So long an answer that does not come is waited for."""

described = functools.lru_cache(1024)(describe)
"""All peers get the same bytes: they are read once."""


class Caller(ABC):
    """A peer as far as others are concerned: its requests over simulated wires, and how it serves theirs."""

    sim: Simulation
    me: Member
    core: PeerCore
    store: MemoryStore
    machine: Machine
    state: PeerState | None

    @abstractmethod
    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""

    @abstractmethod
    def poll(self) -> None:
        """Something happened: let the core decide."""

    def _request(
        self, what: str, to: str, serve: Callable[[Caller], object], answered: Callable[[object], None]
    ) -> None:
        """Ask another peer; None if it could not be reached (seen at once, or after the silence)."""
        sim = self.sim

        def back(reply: object) -> None:
            self.later(sim.delay(), lambda: self._settle(answered, reply))

        def arrive() -> None:
            target = sim.peers.get(to)
            if target is None:
                back(None)
                return
            gets_there = sim.reachable(self.me.peer, to) and not sim.happens("loss")
            reply = serve(target) if gets_there else None
            if not gets_there or sim.faults.cuts(to, self.me.peer) or sim.happens("loss"):
                self.later(SILENCE_S, lambda: self._settle(answered, None))
            else:
                back(reply)

        def again() -> None:
            target = sim.peers.get(to)
            if target is not None and sim.reachable(self.me.peer, to):
                serve(target)

        sim.outcome.requests += 1
        sim.asked(self.me.peer, to, what)
        sim.at(sim.delay(), arrive)
        if sim.happens("duplicate"):
            sim.at(sim.delay(), again)

    def _settle(self, answered: Callable[[object], None], reply: object) -> None:
        answered(reply)
        self.poll()

    def _send_contribution(self, effect: SendContribution) -> None:
        assert self.state is not None
        where = (effect.round, effect.attempt, effect.part)
        given = self.state.contribution(*where) or Contribution(0.0, b"")
        push = PushContribution(*where, given.weight, len(given.raw), given.blocks)

        def answered(reply: object) -> None:
            answer = reply if isinstance(reply, Answer) else Answer(False, "unreachable", retry=True)
            self.core.sent(*where, effect.to, None, answer, self.machine.now)

        self.sim.outcome.request_bytes += len(given.raw)
        self._request(
            "contribution", effect.to, lambda peer: peer.take_contribution(push, self.me, given.raw), answered
        )

    def take_contribution(self, push: PushContribution, member: Member, raw: bytes) -> Answer:
        """Another member's contribution came, as large as its part, or empty if there will be none."""
        if self.state is None:
            return Answer(False, "no state yet", retry=True)
        due = self.state.contribution_sizes(push.round, push.part) if push.weight > 0 else range(1)
        if due is None or len(raw) not in due:
            self.sim.fail(f"{member.peer[:4]} gives {len(raw)} bytes for part {push.part}, {due} are due")
        self.core.coming(push, member, True, self.machine.now)
        answer = self.core.contributed(push, member)
        self.core.coming(push, member, False, self.machine.now)
        if answer.ok and self.core.exchange is not None:
            index = self.core.exchange.members.index(member)
            where = (push.round, push.attempt, push.part, index)
            self.state.take(*where, Contribution(push.weight, raw, push.blocks))
            self.poll()
        return answer

    def _send_partial(self, effect: SendPartial) -> None:
        assert self.state is not None
        where = (effect.round, effect.attempt, effect.part)
        found = None if effect.lead is None else self.state.partial(*where, effect.lead)
        given = found or Partial((), b"")
        push = PushPartial(*where, given.contributors, given.blocks, effect.abstained, len(given.raw))

        def answered(reply: object) -> None:
            answer = reply if isinstance(reply, Answer) else Answer(False, "unreachable", retry=True)
            self.core.partial_sent(*where, effect.lead, effect.to, answer, self.machine.now)

        self.sim.outcome.request_bytes += len(given.raw)
        self._request(
            "partial", effect.to, lambda peer: peer.take_partial(push, self.me, given.raw), answered
        )

    def take_partial(self, push: PushPartial, member: Member, raw: bytes) -> Answer:
        """The mean of what another member's group gave came."""
        if self.state is None:
            return Answer(False, "no state yet", retry=True)
        due = self.state.partial_sizes(push.round, push.part) if push.contributors else range(1)
        if due is None or len(raw) not in due:
            self.sim.fail(f"{member.peer[:4]} sends {len(raw)} bytes for part {push.part}, {due} are due")
        self.core.coming(push, member, True, self.machine.now)
        answer = self.core.partial(push, member)
        self.core.coming(push, member, False, self.machine.now)
        if answer.ok and push.contributors:
            given = Partial(push.contributors, raw, push.blocks)
            self.state.take_partial(push.round, push.attempt, push.part, given)
        self.poll()
        return answer

    def _send_result(self, effect: SendResult) -> None:
        where = (effect.round, effect.attempt, effect.part)
        raw = self.store.get(effect.digest)

        def answered(reply: object) -> None:
            answer = reply if isinstance(reply, Answer) else Answer(False, "unreachable", retry=True)
            self.core.sent(*where, effect.to, effect.digest, answer, self.machine.now)

        if raw is not None:
            self.sim.outcome.request_bytes += len(raw)
            push = PushResult(*where[:2], Held(effect.part, effect.digest, len(raw)))
            self._request("result", effect.to, lambda peer: peer.take_result(push, self.me, raw), answered)

    def take_result(self, push: PushResult, member: Member, raw: bytes) -> Answer:
        """A result came."""
        self.core.coming(push, member, True, self.machine.now)
        kept = self._keep(raw)
        if kept:
            self.core.result(push.round, push.attempt, described(raw)[1], self.machine.now)
            if self.state is not None:
                self.state.prepare(push.held.digest, raw)
        self.core.coming(push, member, False, self.machine.now)
        self.poll()
        return Answer(True) if kept else Answer(False, "it could not be kept", retry=True)

    def _keep(self, raw: bytes) -> bool:
        """Store content that came from elsewhere, if the disk takes it."""
        try:
            self.store.put(raw)
        except StoreError:
            return False
        return True

    def _fetch(self, effect: Fetch) -> None:
        def answered(reply: object) -> None:
            tally = None
            if isinstance(reply, bytes):
                self.sim.outcome.request_bytes += len(reply)
                tally = described(reply) if self.core.fetches_result(effect.digest) else None
            kept = isinstance(reply, bytes) and self._keep(reply)
            self.core.fetched(effect.digest, kept, self.machine.now, tally)

        self._request("fetch", effect.source, lambda peer: peer.store.get(effect.digest), answered)
