"""A swarm in one thread and in virtual time: the real cores and the real vectors, a simulated world.

Everything that happens follows from the seed: delays, losses, partitions, crashes, what is trained. The
same seed gives the same run, so a failure is reproduced by its number.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from potluck.peer.dataplane import Vector
from potluck.peer.state import genesis_of
from potluck.protocol.core import PeerCore
from potluck.protocol.steward import Rules
from potluck.protocol.swarm import GAP_S
from potluck.recipe import Data, End, Outer, Recipe, Rounds
from potluck.store.contents import MemoryStore
from potluck.testing.referee import InvariantBroken, Referee
from potluck.testing.world import SimPeer
from potluck.wire.codec import WIRE, digest
from potluck.wire.messages import Progress
from potluck.wire.records import Chain, Commit, Entry, Member, TensorSpec

__all__ = ["InvariantBroken", "Outcome", "Simulation", "World"]

TENSORS = (TensorSpec("a.weight", (6, 5)), TensorSpec("b.bias", (10,)))
SIZE = 40

STEADY_S = 6.0
"""Who was there and heard for so long is taken for living by everybody."""

RECONNECT_S = 2.5
"""A peer finds a hub that is back within so long."""


@dataclass(frozen=True)
class World:
    """How unkind the world is. Rates are per simulated minute, delays in seconds.

    The data has ``blocks`` blocks, gone through ``epochs`` times (0: for ever). ``divergences`` are models
    that become NaN, ``stalls`` trainers that stand still while their network goes on, ``torn`` files that
    disappear. ``learning`` is how much a step changes a model.
    """

    peers: int = 4
    duration_s: float = 60.0
    calm_s: float = 60.0
    delay_s: tuple[float, float] = (0.01, 0.15)
    loss: float = 0.02
    crashes: float = 2.0
    joins: float = 2.0
    pauses: float = 1.0
    partitions: float = 1.0
    hub_outages: float = 0.5
    torn: float = 1.0
    divergences: float = 0.5
    stalls: float = 0.5
    learning: float = 0.01
    round_tokens: int = 800
    outer: str = "nesterov"
    codec: str = "int8"
    bound_s: float = 45.0
    blocks: int = 500
    epochs: int = 0


@dataclass
class Outcome:
    """What a simulation ended with."""

    rounds: int = 0
    reopened: int = 0
    reassigned: int = 0
    crashes: int = 0
    joins: int = 0
    tokens: int = 0
    events: int = 0
    longest_s: float = 0.0
    notes: list[tuple[float, str, str]] = field(default_factory=list)


class Simulation:
    """One run of a swarm from a seed; ``run`` raises ``InvariantBroken`` with the seed in its text."""

    def __init__(self, seed: int, world: World) -> None:
        self.seed, self.world = seed, world
        self.random = random.Random(seed)
        self.now = 0.0
        self.ledger: list[bytes] = []
        self.peers: dict[str, SimPeer] = {}
        self.outcome = Outcome()
        self.hub_up = True
        self.loss = world.loss
        self.cut_off: set[frozenset[str]] = set()
        self.recipe = Recipe(
            outer=Outer(kind=world.outer),
            data=Data(samples=world.blocks, block=1),
            end=End(epochs=world.epochs),
            rounds=Rounds(
                tokens=world.round_tokens, codec=world.codec, grace_s=3.0, snapshot_every=3, parts=5
            ),
        )
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._born = 0
        self.referee = Referee(SIZE, self.recipe.rounds.parts, world.codec, self.fail)
        self._commit_seen = self._hub_left = 0.0
        self._announced: dict[str, set[str]] = {}
        self.deciding: set[str] = set()
        self.reassigned: set[int] = set()

    # -- time and messages -----------------------------------------------------------------------

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, action))

    def delay(self) -> float:
        """A one-way delay."""
        return self.random.uniform(*self.world.delay_s)

    def reachable(self, a: str, b: str) -> bool:
        """Whether bytes get from one peer to another now."""
        return frozenset((a, b)) not in self.cut_off and not self.peers[b].paused

    def broadcast(self, progress: Progress) -> None:
        """An announcement through the hub: it may be lost, late or doubled, and never stops anybody."""
        for info in progress.held:
            self._announced.setdefault(info.digest, set()).add(progress.peer)
        sender = self.peers.get(progress.peer)
        if sender is None or not sender.connected:
            return
        for peer in [p for p in self.peers.values() if p.connected]:
            copies = 2 if self.random.random() < self.loss else 1
            for _ in range(copies):
                if self.random.random() >= self.loss:
                    self.at(2 * self.delay(), lambda p=peer: p.hear(progress))  # type: ignore[misc]

    def append(self, raw: bytes, after: int) -> bool:
        """Compare-and-set at the hub."""
        if after != len(self.ledger):
            return False
        self.ledger.append(raw)
        for peer in list(self.peers.values()):
            self.at(self.delay(), peer.read_ledger)
        return True

    # -- the swarm -------------------------------------------------------------------------------

    def _found(self) -> None:
        """The first peer writes the genesis and brings the initial state."""
        theta = np.random.default_rng(self.seed).standard_normal(SIZE).astype(np.float32)
        genesis = genesis_of("sim", self.recipe, TENSORS, theta, WIRE, self.world.blocks)
        self.ledger.append(Chain().next("0" * 64, genesis))
        self.spawn(MemoryStore(), theta)

    def spawn(self, store: MemoryStore, theta: Vector | None = None, peer: str | None = None) -> None:
        """A peer starts: the founder with its parameters, others from nothing or from their disk."""
        self._born += 1
        peer = peer or digest(f"{self.seed}/{self._born}".encode())
        me = Member(peer, f"{self._born:08x}")
        rules = Rules(self.world.round_tokens, self.recipe.rounds.grace_s, 0, 0, 100)
        core = PeerCore(
            me, rules, trains=True, have=store.digests(), snapshot_every=self.recipe.rounds.snapshot_every
        )
        newcomer = SimPeer(self, me, core, store, speed=self.random.uniform(40, 160))
        self.peers[peer] = newcomer
        newcomer.start(theta)

    def living(self) -> list[SimPeer]:
        """Peers that run."""
        return [self.peers[name] for name in sorted(self.peers)]

    def crash(self, victim: SimPeer) -> None:
        """A peer vanishes; unless it is the only one that holds something the others still need."""
        others = [p for p in self.living() if p is not victim]
        if not others or not self._spare(victim, others):
            return
        self.kill(victim)
        if self.random.random() < 0.5:
            store = victim.store if self.random.random() < 0.7 else MemoryStore()
            self.at(self.random.uniform(0.5, 15), lambda: self.spawn(store, peer=victim.me.peer))

    def kill(self, victim: SimPeer) -> None:
        """SIGKILL."""
        self.outcome.crashes += 1
        victim.alive = False
        del self.peers[victim.me.peer]

    def _spare(self, victim: SimPeer, others: list[SimPeer]) -> bool:
        """Invariant 4 speaks of content as long as one holder lives: the last holder is not crashed.

        Content that two peers announced may be committed any moment, so it counts as well; so does what
        the only member left announced, and what a steward is about to commit.
        """
        rest: set[str] = set().union(*(p.store.digests() for p in others))
        needed = victim.core.catchup.have & victim.store.digests()
        view = max(self.living(), key=lambda p: p.core.view.sequence).core.view
        wanted = {i.digest for c in view.commits.values() for i in c.parts}
        members = {p.me for p in others if not p.paused} & set(view.open.members if view.open else ())
        wanted |= {d for d, peers in self._announced.items() if len(peers) > 1 or not members}
        wanted |= self.deciding
        wanted |= {d for s in view.snapshots.values() for b in s.files for d in b.chunks}
        if view.open is not None and view.open.index(victim.me) is not None and len(others) < 2:
            return False
        stateful = any(p.core.phase == "training" for p in others)
        return stateful and not (needed & wanted) - rest

    # -- the world's unkindness ------------------------------------------------------------------

    def _plan_faults(self) -> None:
        world, minutes = self.world, self.world.duration_s / 60
        kinds: list[tuple[float, Callable[[], None]]] = [
            (world.crashes, self._some_crash),
            (world.joins, self._some_join),
            (world.pauses, self._some_pause),
            (world.partitions, self._some_partition),
            (world.hub_outages, self._some_outage),
            (world.torn, self._some_torn_file),
            (world.divergences, self._some_divergence),
            (world.stalls, self._some_stall),
        ]
        for rate, action in kinds:
            for _ in range(self._poisson(rate * minutes)):
                self.at(self.random.uniform(2, world.duration_s), action)

    def _poisson(self, mean: float) -> int:
        count, t = 0, self.random.expovariate(1.0)
        while t < mean:
            count, t = count + 1, t + self.random.expovariate(1.0)
        return count

    def _some_crash(self) -> None:
        self.crash(self.random.choice(self.living()))

    def _some_join(self) -> None:
        if len(self.peers) < 2 * self.world.peers:
            self.outcome.joins += 1
            self.spawn(MemoryStore())

    def _some_pause(self) -> None:
        victim = self.random.choice(self.living())
        victim.pause()
        self.at(self.random.uniform(0.5, 20), victim.resume)

    def _some_partition(self) -> None:
        if len(self.peers) > 1:
            pair = frozenset(p.me.peer for p in self.random.sample(self.living(), 2))
            self.cut_off.add(pair)
            self.at(self.random.uniform(1, 25), lambda: self.cut_off.discard(pair))

    def _some_outage(self) -> None:
        self.hub_away(self.random.uniform(0.5, 12))

    def hub_away(self, seconds: float) -> None:
        """The hub is away for a while: no announcement and no record gets through."""
        self.hub_up, self._hub_left = False, self.now
        for peer in self.living():
            if peer.steady_since > self.now - STEADY_S:
                peer.steady_since = float("inf")
        self.at(seconds, self._hub_back)

    def _hub_back(self) -> None:
        self.hub_up = True
        self._commit_seen = self.now
        # Who is back at once after a short outage hears itself throughout, and not those who come back later.
        short = self.now - self._hub_left < GAP_S + 1
        for peer in self.living():
            peer.hub_from = self.now + self.random.uniform(0.0, RECONNECT_S)
            if not peer.paused and (short or peer.steady_since > self.now):
                peer.steady_since = peer.hub_from

    def _some_torn_file(self) -> None:
        """A disk returns nothing where something was; another peer has it still."""
        victim = self.random.choice(self.living())
        elsewhere: set[str] = set().union(*(p.store.digests() for p in self.living() if p is not victim))
        damaged = sorted(victim.store.digests() & elsewhere)
        if damaged:
            victim.store.keep_only(victim.store.digests() - {self.random.choice(damaged)})

    def _some_divergence(self) -> None:
        """A model becomes NaN; one that trains alone would only hold its own round up."""
        if len(self.peers) > 1:
            self.random.choice(self.living()).diverge()

    def _some_stall(self) -> None:
        self.random.choice(self.living()).stall(self.random.uniform(1, 10))

    # -- invariants ------------------------------------------------------------------------------

    def committed(self, entry: Entry, peer: SimPeer) -> None:
        """A peer followed a commit."""
        view, body = peer.core.view, entry.record.body
        if isinstance(body, Commit) and view.commits.get(body.round) == body:
            if body.round not in self.referee.commits:
                self._commit_seen = self.now
                self._check_held(body, view.members[body.round])
            stores = [p.store for p in self.living()]
            raws = [next(filter(None, (s.get(i.digest) for s in stores)), None) for i in body.parts]
            self.referee.committed(self.now, body, view.members[body.round], raws, view.moved)

    def _check_held(self, commit: Commit, members: tuple[Member, ...]) -> None:
        """Two members held every part, unless for want of a second one that everybody has heard lately."""
        there = [p for p in self.living() if p.me in members and self.now - p.steady_since > STEADY_S]
        held = min(len(self._announced.get(info.digest, ())) for info in commit.parts)
        if len(there) > 1 and held < 2:
            self.fail(f"round {commit.round} is committed, and a part of it was held by one only")

    def _check_progress(self) -> None:
        """Invariant 5: with the hub there and one peer that steps, rounds commit within a bounded time."""
        training = [p for p in self.living() if p.core.phase == "training" and p.steps]
        finished = any(p.core.view.finished for p in self.living())
        if not self.hub_up or not training or finished:
            self._commit_seen = max(self._commit_seen, self.now)
        waited_s = self.now - self._commit_seen
        self.outcome.longest_s = max(self.outcome.longest_s, waited_s)
        if waited_s > self.world.bound_s:
            reasons = "; ".join(f"{p.name}: {p.core.activity}" for p in self.living())
            self.fail(f"no commit for {self.world.bound_s:.0f} s: {reasons}")
        view = max(self.living(), key=lambda p: p.core.view.sequence).core.view
        self.referee.kept(view, set().union(*(p.store.digests() for p in self.living())))
        self.at(1.0, self._check_progress)

    def _check_end(self) -> None:
        """After calm everybody is at the head and trains."""
        head = max(p.core.view.round for p in self.living())
        view = next(p.core.view for p in self.living() if p.core.view.round == head)
        data = range(self.world.blocks * self.world.epochs)
        if view.finished is not None and self.referee.data != set(data):
            missing = sorted(set(data) - self.referee.data)
            self.fail(f"the run is over, and positions {missing} of the data are not in the model")
        for peer in self.living():
            core = peer.core
            if core.catchup.round < head - 1 or core.phase != "training":
                where = f"{core.phase} at round {core.catchup.round} of {head}"
                self.fail(f"{peer.name} is {where} after calm: {core.activity}")

    def fail(self, text: str) -> None:
        """Raise with what is needed to see it again."""
        tail = "\n".join(f"  {t:8.2f} {who}: {words}" for t, who, words in self.outcome.notes[-40:])
        again = f"Simulation({self.seed}, {self.world}).run()"
        raise InvariantBroken(
            f"seed {self.seed}, at {self.now:.2f} s: {text}\nto see it again: {again}\n{tail}"
        )

    # -- running ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Simulate the unkind time, then the calm, and check the invariants throughout."""
        self._found()
        for _ in range(self.world.peers - 1):
            self.at(self.random.uniform(0, 3), lambda: self.spawn(MemoryStore()))
        self._plan_faults()
        self.at(self.world.duration_s + 1, self._calm_down)
        self.at(1.0, self._check_progress)
        end = self.world.duration_s + self.world.calm_s
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            self.outcome.events += 1
            action()
        self._check_end()
        view = max((p.core.view for p in self.living()), key=lambda v: v.sequence)
        self.outcome.rounds, self.outcome.tokens = view.round, view.tokens
        self.outcome.reopened, self.outcome.reassigned = view.reopened, len(self.reassigned)
        return self.outcome

    def _calm_down(self) -> None:
        self.loss = 0.0
        self.cut_off.clear()
        self._hub_back()
        for peer in self.living():
            peer.resume()
            peer.stall(0.0)
