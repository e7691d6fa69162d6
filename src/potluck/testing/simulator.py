"""A swarm in one thread and in virtual time: the real cores and the real vectors, a simulated world.

Everything that happens follows from the scenario and its seed: delays, losses, what is trained. The same
scenario gives the same run, so a failure is reproduced by its text.
"""

from __future__ import annotations

import heapq
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from potluck.peer.layout import Vector
from potluck.peer.state import first_snapshot, genesis_of
from potluck.protocol.core import PeerCore
from potluck.protocol.steward import Rules
from potluck.protocol.swarm import CROWD, Swarm
from potluck.protocol.view import RunView
from potluck.recipe import Data, End, Outer, Recipe, Rounds
from potluck.store.contents import MemoryStore
from potluck.testing.evaluations import overdue
from potluck.testing.faults import Faults
from potluck.testing.outages import Outages
from potluck.testing.referee import InvariantBroken, Referee
from potluck.testing.scenario import Fault, Scenario, World, scenario
from potluck.testing.world import SimPeer
from potluck.wire.codec import WIRE, digest, encode
from potluck.wire.messages import Progress
from potluck.wire.records import ZERO, Body, Chain, Commit, Entry, Evaluation, Member, Record, TensorSpec

__all__ = ["InvariantBroken", "Outcome", "Simulation", "World", "replay"]

TENSORS = (TensorSpec("a.weight", (6, 5)), TensorSpec("b.bias", (10,)))
SIZE = 40

NOTES = 200_000
"""Notes that are kept; of longer runs the last ones."""

SETTLED_S = 18.0
"""So long after the last fault all rounds are as they should be."""

NEIGHBOURS = 16
"""An announcement reaches all peers after one of so many different delays."""

CHECK_S = 1.0
"""How often it is looked whether rounds go on."""

LATE_S = (1.0, 6.0)
"""How much later a late message comes."""


@dataclass
class Outcome:
    """What a simulation ended with.

    ``requests`` went from peer to peer, ``announcements`` to the hub, which made ``deliveries`` of them;
    bytes are those of their content. ``lives_s`` is the sum of the times that peers lived. Of peers that
    ``left`` in good order and came back, so many have ``taken_up`` what they had not sent. So many
    evaluations were begun.
    """

    rounds: int = 0
    reopened: int = 0
    reassigned: int = 0
    crashes: int = 0
    joins: int = 0
    left: int = 0
    evaluated: int = 0
    taken_up: int = 0
    tokens: int = 0
    events: int = 0
    longest_s: float = 0.0
    requests: int = 0
    request_bytes: int = 0
    announcements: int = 0
    announcement_bytes: int = 0
    deliveries: int = 0
    lives_s: float = 0.0
    notes: list[tuple[float, str, str]] = field(default_factory=list)


class Simulation:
    """One run of a swarm; ``run`` raises ``InvariantBroken`` with the scenario in its text.

    Args:
        seed, world: what it follows from.
        faults: what goes wrong and when; None makes it up from the seed at the world's rates.
    """

    def __init__(self, seed: int, world: World, faults: Sequence[Fault] | None = None) -> None:
        self.scenario = scenario(seed, world) if faults is None else Scenario(seed, world, tuple(faults))
        self.seed, self.world = seed, world
        self.random = random.Random(seed)
        self.now = 0.0
        self.calm = False
        self.stopped = False
        """Set to end it here."""
        self.ear = Swarm() if world.peers > CROWD else None
        """In a crowd one hears for all."""
        self.ledger: list[bytes] = []
        self._chain, self._entries = Chain(), list[Entry]()
        self.peers: dict[str, SimPeer] = {}
        self.shelf: dict[str, MemoryStore] = {}
        """Disks of which everything starts again in a moment."""
        self.left: dict[str, tuple[Member, int]] = {}
        """Of peers that left in good order, their last life and the round that it had applied."""
        self.clocks: dict[str, float] = {}
        self.outcome = Outcome()
        self.recipe = Recipe(
            outer=Outer(kind=world.outer),
            data=Data(samples=world.blocks, block=1),
            end=End(epochs=world.epochs),
            rounds=Rounds(
                tokens=world.tokens,
                least_steps=world.least_steps,
                codec=world.codec,
                keeps=bool(world.keeps),
                fragments=world.fragments,
                overlap="mix" if world.mix else "carry",
                mix=world.mix,
                grace_s=3.0,
                snapshot_every=3,
                parts=5,
            ),
        )
        grace_s, least = self.recipe.rounds.grace_s, world.least_steps
        self.rules = Rules(world.tokens, grace_s, 0, 0, 100, world.flat, least)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._born = 0
        self._names: dict[str, str] = {}
        self._lives: dict[str, int] = {}
        self.referee = Referee(SIZE, self.recipe.rounds, self.fail)
        self._commit_seen = 0.0
        self.announced: dict[str, set[str]] = {}
        self._missed: dict[str, dict[str, int]] = {}
        self.deciding: set[str] = set()
        self.reassigned: set[int] = set()
        self.faults = Faults(self)
        self.outages = Outages(self)

    # -- time and messages -----------------------------------------------------------------------

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, action))

    def delay(self) -> float:
        """A one-way delay."""
        low, high = self.world.delay_s
        late = self.faults.rates["late"]
        if late and self.random.random() < late:
            high += self.random.uniform(*LATE_S)
        return low + (high - low) * self.random.random()

    def happens(self, what: str) -> bool:
        """Whether this message suffers ``loss`` or comes as a ``duplicate``."""
        rate: float = self.faults.rates[what]
        return rate > 0 and self.random.random() < rate

    @property
    def lossy(self) -> bool:
        """Whether a message may be lost or late in this scenario."""
        wires = ("loss {rate} for {s}", "late {rate} for {s}")
        return bool(self.world.loss or self.world.late or any(f.form in wires for f in self.scenario.faults))

    def reachable(self, a: str, b: str) -> bool:
        """Whether bytes get from one peer to another now."""
        return not self.faults.cuts(a, b) and not self.peers[b].machine.paused

    def broadcast(self, progress: Progress) -> None:
        """An announcement through the hub: it may be lost, late or doubled, and never stops anybody."""
        for info in progress.held:
            self.announced.setdefault(info.digest, set()).add(progress.peer)
        self.outcome.announcements += 1
        self.outcome.announcement_bytes += len(encode(progress))
        sender = self.peers.get(progress.peer)
        if sender is None or not sender.machine.sends:
            return
        if self.ear is not None:
            self.outcome.deliveries += len(self.peers)
            self.at(self.delay() + self.delay(), lambda: self._overheard(progress))
            return
        muted = self.faults.muted
        hearing = [p for p in self.peers.values() if p.machine.hears and not muted(progress.peer, p.me.peer)]
        self.outcome.deliveries += len(hearing)
        for first in range(min(NEIGHBOURS, len(hearing))):
            group = hearing[first::NEIGHBOURS]
            if self.happens("duplicate"):
                self._tell(group, progress)
            self._tell(group, progress)

    def _overheard(self, progress: Progress) -> None:
        assert self.ear is not None
        if self.faults.hub_up:
            self.ear.echo(self.now, progress.every_s)
            self.ear.hear(progress, self.now)

    def _tell(self, group: list[SimPeer], progress: Progress) -> None:
        there = group
        if self.faults.rates["loss"]:
            there = [peer for peer in group if not self.happens("loss")]

        def arrive() -> None:
            for peer in there:
                peer.hear(progress)

        after_s = self.delay() + self.delay()
        self._note_missed(progress.peer, group, [] if after_s > progress.every_s else there)
        self.at(after_s, arrive)

    def _note_missed(self, sender: str, group: Iterable[SimPeer], there: Iterable[SimPeer]) -> None:
        """Of these who should hear a peer only some do in time. Twice in a row, and it may count as gone."""
        heard, missed = {peer.me.peer for peer in there}, self._missed.setdefault(sender, {})
        for hearer in group:
            if hearer.me.peer in heard:
                missed.pop(hearer.me.peer, None)
                continue
            missed[hearer.me.peer] = missed.get(hearer.me.peer, 0) + 1
            if missed[hearer.me.peer] > 1:
                self.peers[sender].machine.unheard(self.now + 1.0)

    def missed(self, peer: str) -> bool:
        """Whether somebody did not hear the last announcement of a peer in time."""
        return bool(self._missed.get(peer))

    def entry(self, sequence: int) -> Entry:
        """The record at its place, read and checked once for all peers."""
        while len(self._entries) < sequence:
            after = len(self._entries)
            self._entries.append(self._chain.follow(after + 1, self.ledger[after]))
        return self._entries[sequence - 1]

    def record(self, after: int, author: str, body: Body) -> bytes:
        """Bytes of the record that an author who has followed so many would append."""
        return encode(Record(self.entry(after).hash if after else ZERO, author, body))

    def append(self, raw: bytes, after: int) -> bool:
        """Compare-and-set at the hub."""
        if after != len(self.ledger):
            return False
        self.ledger.append(raw)
        for peer in list(self.peers.values()):
            self.at(self.delay(), peer.read_ledger)
        return True

    def asked(self, peer: str, other: str, what: str) -> None:
        """A request goes from one peer to another; for whoever counts them."""

    # -- the swarm -------------------------------------------------------------------------------

    def peer_id(self, name: str) -> str:
        """The key of the peer with a name of the scenario, whether it lives or not."""
        peer = digest(f"{self.seed}/{name}".encode())
        self._names[peer] = name
        return peer

    def named(self, peer: str) -> str:
        """The name of a peer in the scenario."""
        return self._names.get(peer, peer[:8])

    def _found(self) -> None:
        """The first peer writes the genesis and brings the initial state."""
        theta = np.random.default_rng(self.seed).standard_normal(SIZE).astype(np.float32)
        genesis = genesis_of("sim", self.recipe, TENSORS, theta, WIRE, self.world.blocks)
        store, chain = MemoryStore(), Chain()
        for body in (genesis, first_snapshot(store, genesis, theta)):
            self.ledger.append(chain.next("0" * 64, body))
            chain.follow(chain.sequence + 1, self.ledger[-1])
        self.spawn(store, theta)
        for number in range(2, self.world.peers + 1):
            peer = self.peer_id(f"peer{number}")
            self.at(3 * self.of_peer(peer).random(), lambda peer=peer: self._comes(peer))  # type: ignore[misc]

    def _comes(self, peer: str) -> None:
        if peer not in self.peers:
            self.spawn(MemoryStore(), peer=peer)

    def of_peer(self, peer: str) -> random.Random:
        """Chance of a peer's own: the same whatever happens to others."""
        return random.Random(peer)

    def spawn(self, store: MemoryStore, theta: Vector | None = None, peer: str | None = None) -> None:
        """A peer starts: the founder with its parameters, others from nothing or from their disk.

        Without ``peer``, its key, it is one that never was.
        """
        self._born += 1
        peer = peer or self._unborn()
        self._lives[peer] = self._lives.get(peer, 0) + 1
        me = Member(peer, f"{self._born:08x}")
        every = self.recipe.rounds.snapshot_every
        core = PeerCore(me, self.rules, trains=True, have=store.digests(), snapshot_every=every)
        chance = self.of_peer(peer)
        chance.random()  # when it came
        if self.ear is not None:
            core.swarm = self.ear
        newcomer = SimPeer(self, me, core, store, speed=chance.uniform(40, 160))
        lives = self._lives[peer]
        newcomer.name = self.named(peer) + (f"/{lives}" if lives > 1 else "")
        self.peers[peer] = newcomer
        newcomer.start(theta)

    def _unborn(self) -> str:
        number = 1
        while (peer := self.peer_id(f"peer{number}")) in self._lives:
            number += 1
        return peer

    def living(self) -> list[SimPeer]:
        """Peers that run."""
        return [self.peers[name] for name in sorted(self.peers)]

    def _stores(self) -> list[MemoryStore]:
        """Where content may be."""
        return [peer.store for peer in self.living()] + [self.shelf[name] for name in sorted(self.shelf)]

    def head(self) -> RunView:
        """The view of a peer that has read most of the ledger."""
        return max((p.core.view for p in self.living()), key=lambda view: view.sequence, default=RunView())

    def kill(self, victim: SimPeer) -> None:
        """SIGKILL."""
        self.outcome.crashes += 1
        self._ends(victim)

    def leave(self, peer: SimPeer) -> None:
        """A peer is gone, in good order."""
        self.outcome.left += 1
        self._ends(peer)

    def _ends(self, victim: SimPeer) -> None:
        self.outcome.lives_s += self.now - victim.machine.born_at
        victim.machine.alive = False
        del self.peers[victim.me.peer]

    def took_up(self, member: Member) -> None:
        """A life took up what the last one of its peer had not sent."""
        self.outcome.taken_up += 1
        self.referee.took_up(member, *self.left.pop(member.peer))

    def hub_away(self, seconds: float) -> None:
        """The hub is away for a while: no announcement and no record gets through."""
        self.faults.hub_away(seconds)

    # -- invariants ------------------------------------------------------------------------------

    def committed(self, entry: Entry, peer: SimPeer) -> None:
        """A peer followed a commit."""
        view, body = peer.core.view, entry.record.body
        commit = view.commits.get(body.round) if isinstance(body, Commit) else None
        if commit is not None and commit.round not in self.referee.commits:
            self._commit_seen = self.now
            members = view.members[commit.round]
            self._check_held(commit, members)
            raws = [next(filter(None, (s.get(i.digest) for s in self._stores())), None) for i in commit.parts]
            self.referee.committed(self.now, commit, members, raws, view.moved)

    def evaluated(self, body: Evaluation, peer: SimPeer) -> None:
        """A peer followed an evaluation."""
        if peer.core.view.evaluations.of.get(body.round) == body:
            self.referee.evaluated(body)

    def _check_held(self, commit: Commit, members: tuple[Member, ...]) -> None:
        """Two members held every part, unless for want of a second one that everybody has heard lately."""
        there = [p for p in self.living() if p.me in members and p.machine.steady]
        held = min(len(self.announced.get(info.digest, ())) for info in commit.parts)
        if len(there) > 1 and held < 2:
            self.fail(f"round {commit.round} is committed, and a part of it was held by one only")

    def progress_from_now(self) -> None:
        """Nothing could be committed until now."""
        self._commit_seen = self.now

    def _may_progress(self, peer: SimPeer) -> bool:
        """Whether nothing at a peer keeps a round from being opened and committed."""
        return peer.machine.connected and peer.machine.steps and peer.core.phase == "training"

    def _check_progress(self) -> None:
        """Invariant 5: with the hub there and one peer that steps, rounds commit within a bounded time."""
        living = self.living()
        finished = any(p.core.view.finished for p in living)
        able = [p for p in living if self._may_progress(p)]
        if finished or not self.faults.hub_up or not able:
            self._commit_seen = max(self._commit_seen, self.now)
        else:  # while all of them are slow, a second is as much less
            idle_s = CHECK_S * (1 - 1 / min(p.machine.pace for p in able))
            self._commit_seen = min(self.now, self._commit_seen + idle_s)
        waited_s = self.now - self._commit_seen
        self.outcome.longest_s = max(self.outcome.longest_s, waited_s)
        view = self.head()
        if waited_s > self.world.bound_s:
            # A round with slow members gives them their time, and is opened again only after three such.
            patience_s = 3 * (view.open.grace_s - 4) if view.open else 0.0
            if waited_s > self.world.bound_s + patience_s:
                reasons = "; ".join(f"{p.name}: {p.core.activity}" for p in living)
                self.fail(f"no commit for {self.world.bound_s:.0f} s: {reasons}")
        self.referee.kept(view, set().union(*(store.digests() for store in self._stores())))
        self.at(CHECK_S, self._check_progress)

    def _check_end(self) -> None:
        """After calm everybody is at the head and trains."""
        head = max((p.core.view.round for p in self.living()), default=0)
        view = self.head()
        data = set(range(self.world.blocks * self.world.epochs))
        if view.finished is not None and self.referee.data != data:
            missing = sorted(data - self.referee.data)
            self.fail(f"the run is over, and positions {missing} of the data are not in the model")
        for peer in self.living():
            core = peer.core
            if core.catchup.round < head - 1 or core.phase != "training":
                where = f"{core.phase} at round {core.catchup.round} of {head}: {core.activity}"
                self.fail(f"{peer.name} is not at the head after calm: {where}")

        if late := overdue(self, view):
            self.fail(late)
        for round_, seen in sorted(self.referee.commits.items()):
            if seen.left_out and seen.at > self.world.duration_s + SETTLED_S:
                names = ", ".join(self.named(member.peer) for member in seen.left_out)
                self.fail(f"round {round_} leaves living members out in the calm: {names}")

    def fail(self, text: str) -> None:
        """Raise with what is needed to see it again."""
        raise self._broken(text)

    def _broken(self, text: str) -> InvariantBroken:
        tail = "\n".join(f"  {t:8.2f} {who}: {words}" for t, who, words in self.outcome.notes[-40:])
        again = f"Simulation({self.seed}, {self.world}).run()"
        error = InvariantBroken(
            f"seed {self.seed}, at {self.now:.2f} s: {text}\nto see it again: {again}\n"
            f"or `potluck sim --scenario FILE` with this in the file:\n\n{self.scenario}\n{tail}"
        )
        error.broke, error.at_s = _essence(text), self.now
        return error

    # -- running ---------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Simulate the unkind time, then the calm, and check the invariants throughout.

        Raises:
            InvariantBroken: one of them does not hold, or a core raised something.
        """
        try:
            self._run()
        except InvariantBroken:
            raise
        except Exception as error:
            raise self._broken(f"a core fails with {type(error).__name__}: {error}") from error
        return self.outcome

    def _run(self) -> None:
        self.faults.plan(self.scenario.faults)
        self._found()
        self.at(self.world.duration_s + 1, self._calm_down)
        self.at(CHECK_S, self._check_progress)
        end = self.world.duration_s + self.world.calm_s
        queue, pop, outcome = self._queue, heapq.heappop, self.outcome
        while queue and queue[0][0] <= end and not self.stopped:
            self.now, _, action = pop(queue)
            outcome.events += 1
            action()
        if not self.stopped:
            self._check_end()
        view = self.head()
        outcome.rounds, outcome.tokens = view.round, view.tokens
        outcome.reopened, outcome.reassigned = view.reopened, len(self.reassigned)
        outcome.lives_s += sum(self.now - peer.machine.born_at for peer in self.living())

    def note(self, who: str, text: str) -> None:
        """Words of a peer."""
        notes = self.outcome.notes
        notes.append((self.now, who, text))
        if len(notes) > NOTES:
            del notes[: NOTES // 2]

    def _calm_down(self) -> None:
        self.calm = True
        self.faults.end()


def replay(scenario_: Scenario) -> Outcome:
    """Run a scenario.

    Raises:
        InvariantBroken: as ``Simulation.run``.
    """
    return Simulation(scenario_.seed, scenario_.world, scenario_.faults).run()


def _essence(text: str) -> str:
    """What is broken, without whose it is and how much: by that two failures are the same."""
    text = re.sub(r"peer\d+(/\d+)?", "a peer", text.partition(":")[0])
    return re.sub(r"\b[0-9a-f]*\d[0-9a-f.]*\b", "#", text)
