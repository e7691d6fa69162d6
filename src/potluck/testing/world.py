"""A simulated peer: it carries out its core's effects on simulated wires and in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from potluck.data.leases import LeaseQueue
from potluck.errors import StoreError
from potluck.peer.layout import Carry, Vector, carried
from potluck.peer.residuals import found
from potluck.peer.state import Missing, PeerState
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
from potluck.store.contents import MemoryStore
from potluck.store.residuals import Whose
from potluck.testing.calls import Caller
from potluck.testing.leaving import MemoryResiduals
from potluck.testing.machine import Machine
from potluck.testing.referee import Given
from potluck.wire.messages import MAX_RATE, Progress
from potluck.wire.records import Commit, Evaluation, Genesis, Member, Open, Reassign

if TYPE_CHECKING:
    from potluck.testing.simulator import Simulation

STEP_S = 0.5
BLOCK_TOKENS = 10
LEASE = 40
WAKE_S = 0.05

LINK = 2000.0
LIARS = 0.03
"""Bytes/s of a link, where a contribution has 100 bytes; and the share of peers that say that they have the
fastest that can be said.
"""

EVALUATE_S = (0.5, 6.0)
"""How long an evaluation takes, in seconds."""

REJOIN_S = 10.0
"""So long after a model went wrong its peer has got rid of it, and of what was trained in it."""

AILING_S = 1.0
"""Pause after a disk refused something, as ``peer.actions`` makes it."""


class SimPeer(Caller):
    """One life of one peer. ``speed`` is in tokens/s."""

    def __init__(self, sim: Simulation, me: Member, core: PeerCore, store: MemoryStore, speed: float) -> None:
        self.sim, self.me, self.core, self.store = sim, me, core, store
        self.name = me.peer[:8]
        self.machine = Machine(sim, me.peer)
        self._step_s = self._step_due_s = STEP_S
        self._speed = speed
        self._sequence = 0
        self.state: PeerState | None = None
        self.residuals: MemoryResiduals
        self._tokens, self._done, self._steps = 0.0, 0.0, 0
        self._since = [0.0] * sim.recipe.rounds.fragments
        self._in_flight = 0, 0.0
        self._data = LeaseQueue()
        self._local: Vector | None = None
        self._shared: Vector
        self._newest: Vector
        self._diverged = self._miscounts = self._waiting = False
        self._stepped_at = sim.now
        self._carries: list[Carry] = []
        self._states: list[Vector] = []
        self._cut: tuple[int, int] | None = None
        self._measures = random.Random(f"link/{me.peer}")  # of its own: what else happens stays as it was
        self._thin = self._measures.random()
        self._judges = random.Random(f"evaluate/{me.peer}/{me.session}")
        self._rng = np.random.default_rng(int(me.peer[:8], 16))
        self._next_poll = float("inf")

    def start(self, theta: Vector | None) -> None:
        """Come up: read the ledger, announce, train. ``theta`` is the founder's initial state."""
        self.core.evaluating.every = self.sim.world.evaluate
        self._follow()
        if theta is not None:
            assert self.state is not None
            self._take(self.state.begin(theta.copy(), np.zeros_like(theta), 0))
            assert self.state.plane is not None
            self.core.applied(0, self.state.plane.digest, loaded=False)
        self.later(0.0, self._beat)
        self.later(STEP_S, self._step)
        self.later(0.5, self._poll_ledger)
        self.poll()

    # -- running in time -------------------------------------------------------------------------

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later, if this life lasts and is not paused (then: once it goes on)."""
        self.sim.at(delay_s, lambda: self.machine.do(action))

    def _beat(self) -> None:
        self._announce()
        self.later(self.core.every_s(self.machine.now) * self.sim.random.uniform(0.9, 1.1), self._beat)

    def _announce(self) -> None:
        loss = float(np.abs(self._local).mean()) if self._local is not None else None
        base = Progress(
            peer=self.me.peer,
            session=self.me.session,
            name=self.name,
            since=int(self.me.session, 16),
            tokens=self._tokens,
            steps=self._steps,
            leased=self._data.leased,
            wants=max(0, LEASE - self._data.left) if 2 * self._data.left < LEASE else 0,
            waiting=self._waiting,
            step_s=self._step_s,
            idle_s=0.0 if self._waiting else self.sim.now - self._stepped_at,
            loss=loss,
        )
        if self.sim.world.thin and self.core.catchup.round > 0:
            base = self._measured(base)
        self.sim.broadcast(self.core.announcement(base, self.machine.now))

    def _measured(self, base: Progress) -> Progress:
        """With what is said of our link after a first round: another figure each time, and by some a lie."""
        if self._thin > 1 - LIARS:
            return replace(base, uplink=MAX_RATE, downlink=MAX_RATE)
        rate = LINK * (0.1 if self._thin < self.sim.world.thin else 1.0)
        up, down = (rate * self._measures.uniform(0.8, 1.2) for _ in range(2))
        return replace(base, uplink=up, downlink=down, rtt_s=0.1)

    def hear(self, progress: Progress) -> None:
        """An announcement came."""
        self.machine.do(partial(self._hear, progress))

    def _hear(self, progress: Progress) -> None:
        if self.core.heard(progress, self.machine.now):
            # In a large swarm there is always news; deciding at each would cost the square of its size.
            self._wake(self.sim.now + WAKE_S * max(1.0, len(self.sim.peers) / 40))

    # -- the ledger ------------------------------------------------------------------------------

    def read_ledger(self) -> None:
        """Records may have come."""
        self.machine.do(self._follow)

    def _poll_ledger(self) -> None:
        self._follow()
        self.later(1.0, self._poll_ledger)

    def _follow(self) -> None:
        if not self.machine.connected:
            return
        while self._sequence < len(self.sim.ledger):
            self._sequence += 1
            sequence, entry = self._sequence, self.sim.entry(self._sequence)
            body = entry.record.body
            if isinstance(body, Genesis):
                self._genesis(body)
            if isinstance(body, Open) and self.core.catchup.round == body.round - 1:
                self.sim.referee.excused.discard(self.name)
            self.core.followed(entry, self.machine.now)
            if isinstance(body, Commit):
                self.sim.committed(entry, self)
            elif isinstance(body, Evaluation):
                self.sim.evaluated(body, self)
            elif isinstance(body, Reassign):
                self.sim.reassigned.add(sequence)
        if self.state is not None and self.state.plane is None:
            self.state.returning.compare(self.core.view, self.me.peer)
        self.poll()

    def _genesis(self, body: Genesis) -> None:
        self.state = PeerState(self.store, self.sim.recipe, body)
        whose = Whose(body.run, self.me.peer, self.sim.world.codec, self.state.size, self.state.layout.ranges)
        self.residuals = MemoryResiduals(self.store, whose)
        self.state.returning = found(self.residuals, self.state.layout)

    # -- training --------------------------------------------------------------------------------

    def _step(self) -> None:
        """One inner step, after the boundary at which state and cuts are exchanged with the trainer."""
        self._step_s, self._step_due_s = self._step_due_s, STEP_S * self.machine.pace
        self.later(max(self._step_due_s, self.machine.stalled_s), self._step)
        if not self.machine.steps or self.core.leaving:
            return
        self.sim.outages.stepped(self)
        self._stepped_at = self.sim.now
        if self._local is None and self._carries:
            self._local = self._carries[0].theta  # the boundary takes in what came since
        if self._local is not None:
            self._boundary()
        if self._local is not None:
            self._learn()

    @property
    def _blocks(self) -> int:
        """Blocks of data in one step."""
        return max(1, round(self._speed * STEP_S / BLOCK_TOKENS))

    @property
    def step_tokens(self) -> int:
        """Tokens of a whole step."""
        return self._blocks * BLOCK_TOKENS

    @property
    def data_tokens(self) -> int:
        """Tokens of the data that is leased here and not trained on yet."""
        return self._data.left * BLOCK_TOKENS

    def _learn(self) -> None:
        """Train on the data blocks of one step, as many as there are."""
        assert self._local is not None
        leased = self.sim.world.blocks > 0
        taken = sum(self._data.take() is not None for _ in range(self._blocks)) if leased else self._blocks
        was, self._waiting = self._waiting, not taken
        if self._waiting:
            if not was:
                self._announce()
            return
        before, tokens = self._local.astype(np.float64), float(BLOCK_TOKENS * taken)
        noise = self._rng.standard_normal(self._local.size).astype(np.float32)
        self._local = self._local + np.float32(self.sim.world.learning) * (noise - self._local)
        self._data.stepped()
        # Tokens of a step stay what they are: a slow one takes longer over them.
        self._tokens += tokens
        self._steps += 1
        self._done += tokens
        self.sim.referee.steps(self.me, self._local - before, tokens)

    def _take(self, carry: Carry) -> None:
        """A new shared state is here; the model gets it at the next boundary."""
        if carry.origin is None:
            self._carries, self._states, self._local = [], [], None
            self._tokens, self._steps, self._since = 0.0, 0, [self._done] * len(self._since)
            self._data.rewind()
            self.sim.referee.begins(self.me)
        elif carry.included:
            fragment, done = self._in_flight
            self._since[fragment] = done
        self._carries.append(carry)
        assert self.state is not None
        assert self.state.plane is not None
        self._states.append(self.state.plane.theta.copy())

    def withdraw(self) -> None:
        """Nothing is given any more: nobody needs to wait for a cut that was asked for."""
        if self._cut is not None:
            self.core.cut_done(*self._cut, 0.0)
            self._cut = None

    def diverge(self) -> None:
        """The model becomes NaN."""
        self.sim.outages.ails(self.me.peer, REJOIN_S)
        self._diverged = True

    def miscount(self) -> None:
        """The next outer step comes out wrong."""
        self.sim.outages.ails(self.me.peer, REJOIN_S)
        self._miscounts = True

    def _boundary(self) -> None:
        assert self._local is not None
        assert self.state is not None
        if self._carries:
            self._local = carried(self._local, self._carries)
            for carry, shared in zip(self._carries, self._states, strict=True):
                if carry.origin is not None:
                    self.sim.referee.takes(self.me, self._shared, shared)
                self._shared = shared
            self._carries, self._states = [], []
        self.sim.referee.boundary(self.me, self.name, self._local, self._shared)
        exchange = self.core.exchange
        if self._cut is None or exchange is None or exchange.index is None:
            return
        key, self._cut = self._cut, None
        fragment = key[0] % len(self._since)
        weight = (self._done - self._since[fragment]) / len(self._since)
        if self.core.catchup.round != key[0] - 1:
            return
        local = self._local * np.float32("nan" if self._diverged else "1")
        trained = self._data.trained()
        if self.state.cut(*key, exchange.index, local, weight, len(trained)):
            self._in_flight, self._tokens, self._steps = (fragment, self._done), 0.0, 0
            found = [self.state.contribution(*key, part) for part in range(self.sim.recipe.rounds.parts)]
            if weight > 0:
                given = Given(weight, tuple(part.raw for part in filter(None, found)), tuple(trained))
                self.sim.referee.cut(self.me, key, given)
            self.core.cut_done(*key, weight)
        else:
            assert self.state.plane is not None
            self._diverged = False
            self._take(Carry(self.state.plane.theta.copy(), None))
            self.core.cut_done(*key, 0.0)
        self.poll()

    # -- effects ---------------------------------------------------------------------------------

    def poll(self) -> None:
        """Something happened: let the core decide, soon. What happens together is decided upon once."""
        self._wake(self.sim.now + WAKE_S)

    def _wake(self, at: float) -> None:
        if at < self._next_poll:
            self._next_poll = at
            self.later(at - self.sim.now, self._decide)

    def _decide(self) -> None:
        """Carry out what the core decides, and come back when it wants."""
        if self._next_poll > self.sim.now + WAKE_S / 2:
            return
        self._next_poll = float("inf")
        effects = self.core.poll(self.machine.now)
        for effect in effects:
            self._carry_out(effect)
        if any(isinstance(effect, Announce) for effect in effects):
            self._announce()
        self._wake(self.core.deadline(self.machine.now) - self.machine.clock_s)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Append():
                self._append(effect)
            case Cut():
                self._cut = (effect.round, effect.attempt)
                if self.core.leaving:
                    self.withdraw()
            case SendContribution():
                self._send_contribution(effect)
            case Combine():
                self.later(0.02 * self.machine.pace, partial(self._combine, effect))
            case SendPartial():
                self._send_partial(effect)
            case Reduce():
                self.later(0.02 * self.machine.pace, partial(self._reduce, effect))
            case SendResult():
                self._send_result(effect)
            case Fetch():
                self._fetch(effect)
            case Apply() | LoadSnapshot():
                self.later(0.05 * self.machine.pace, partial(self._change_state, effect))
            case WriteSnapshot():
                self._write_snapshot(effect)
            case Evaluate():
                self._evaluate()
            case Drop():
                self.store.keep_only(self.store.digests() - effect.digests)
            case Leased():
                self._data.lease(effect.spans)
            case Included():
                self._data.included(effect.blocks)
            case Revoked():
                self._data.revoke()
                if self.state is not None and self.state.plane is not None:
                    self._take(Carry(self.state.abandon(), None))
                    self.sim.referee.residuals.abandon(self.me)
            case Note():
                self.sim.note(self.name, effect.text)

    def _append(self, effect: Append) -> None:
        if isinstance(effect.body, Commit):
            self.sim.deciding.update(info.digest for info in effect.body.parts)
        after = self._sequence
        raw = self.sim.record(after, self.me.peer, effect.body)

        def arrive() -> None:
            ok = self.machine.sends and self.sim.append(raw, after)
            reason = "" if ok else "another record was first" if self.machine.connected else "the hub is away"
            if self.machine.hears:
                self.later(self.sim.delay(), lambda: self.core.appended(ok, reason))

        self.sim.at(self.sim.delay(), arrive)

    def _combine(self, effect: Combine) -> None:
        assert self.state is not None
        where = (effect.round, effect.attempt, effect.part)
        self.core.combined(*where, *self.state.combine(*where, effect.contributors))
        self.poll()

    def _reduce(self, effect: Reduce) -> None:
        assert self.state is not None
        where = (effect.round, effect.attempt, effect.part)
        if not self.core.reduces(*where):
            self.core.reduced(*where, None, ())
            return
        try:
            info, refused = self.state.reduce(*where, effect.contributors, effect.partials)
        except StoreError:
            self.later(AILING_S, lambda: self._settle(lambda _: self.core.reduced(*where, None, ()), None))
            return
        exchange, raw = self.core.exchange, self.store.get(info.digest) if info else None
        if info is not None and raw is not None and exchange is not None:
            self.sim.referee.reduced(self.me, where[:2], exchange.members, info, raw)
        self.core.reduced(*where, info, refused)
        self.poll()

    def _change_state(self, effect: Apply | LoadSnapshot) -> None:
        assert self.state is not None
        had = self.state.returning.taken_up
        try:
            if isinstance(effect, Apply):
                carry = self.state.apply(effect.commit)
            else:
                carry = self.state.load(effect.snapshot)
        except Missing as missing:
            self.core.missing(missing.digests)
            self.poll()
            return
        assert self.state.plane is not None
        plane = self.state.plane
        if isinstance(effect, Apply):
            if self._miscounts:
                self._miscounts = False
                wrong = np.float32(self._speed / 100)  # no two are wrong in the same way
                plane.theta[0] += wrong
                carry.theta[0] += wrong
                self.sim.referee.excused.add(self.name)
            self.sim.referee.applied(self.me, self.name, effect.commit, plane.digest)
        else:
            self.sim.referee.state(self.name, plane.round, plane.digest)
            self.sim.referee.residuals.forget(self.me)
        self._take(carry)
        for text in self.state.returning.news():
            self.sim.note(self.name, text)
        if self.state.returning.taken_up and not had:
            self.sim.took_up(self.me)
        self.core.applied(plane.round, plane.digest, loaded=isinstance(effect, LoadSnapshot))
        self.poll()

    def _evaluate(self) -> None:
        """The shared state is measured, beside all else."""
        assert self.state is not None
        plane = self.state.plane
        assert plane is not None
        metrics = (("loss", float(np.abs(plane.theta).mean())), ("norm", float(np.linalg.norm(plane.theta))))
        result = Evaluation(plane.round, plane.digest, metrics, f"by {self.name}")
        self.sim.outcome.evaluated += 1
        self.later(
            self._judges.uniform(*EVALUATE_S),
            lambda: self._settle(lambda _: self.core.evaluating.done(result), None),
        )

    def _write_snapshot(self, effect: WriteSnapshot) -> None:
        assert self.state is not None
        if self.core.catchup.round != effect.round:
            return
        try:
            snapshot = self.state.write_snapshot()
        except StoreError:
            self.later(AILING_S, partial(self._write_snapshot, effect))
            return
        if snapshot.round == effect.round:
            self.core.snapshot_written(snapshot)
