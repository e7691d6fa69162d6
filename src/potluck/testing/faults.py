"""What each fault does to a simulated swarm. The language is in ``potluck.testing.scenario``."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from potluck.store.contents import MemoryStore
from potluck.testing.leaving import Leaving
from potluck.testing.machine import RECONNECT_S
from potluck.testing.scenario import HUB, Fault
from potluck.wire.records import Member

if TYPE_CHECKING:
    from potluck.testing.simulator import Simulation
    from potluck.testing.world import SimPeer

FEW = 3
"""Of more peers than these most are right, though one is wrong and another just died."""

_RESTART_S = 0.25
"""How often it is looked whether a disk has all that a restart from it needs."""

_COMING_S = 6.0
"""After a restart of all everybody has started again within so long."""


class Faults:
    """The unkindness of one simulation; of overlapping faults of one kind the one that ends last counts."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.hub_up = True
        world = sim.world
        self.rates = {"loss": world.loss, "duplicate": world.duplicate, "late": world.late}
        self._rates_until = dict.fromkeys(self.rates, 0.0)
        self._cuts: dict[tuple[str, str], float] = {}
        self._hub_until = 0.0
        self._full_until: dict[str, float] = {}
        self._actions: dict[str, Callable[..., None]] = {
            "crash {peer}": self._crash,
            "crash {peer} for {s}": self._crash,
            "crash {peer} for {s} without disk": partial(self._crash, disk=False),
            "leave {peer} for {s}": self._leave,
            "kill {peer}": self._on(sim.kill),
            "join {peer}": self._join,
            "pause {peer} for {s}": self._on(lambda peer, s: peer.machine.pause(s)),
            "cut {place} {place} for {s}": self._cut_both,
            "cut {place} -> {place} for {s}": self.cut,
            "mute {peer} -> {peer} for {s}": self._mute,
            "hub away for {s}": self.hub_away,
            "slow {peer} {factor}x for {s}": self._on(self._slow),
            "full disk {peer} for {s}": self._full_disk,
            "torn file {peer}": self._torn_file,
            "stall {peer} for {s}": self._on(lambda peer, s: peer.machine.stall(s)),
            "diverge {peer}": self._diverge,
            "miscount {peer}": self._miscount,
            "restart all from {peer}": self._restart,
            "clock {peer} {offset}": self._clock,
            "loss {rate} for {s}": partial(self._rate, "loss"),
            "duplicate {rate} for {s}": partial(self._rate, "duplicate"),
            "late {rate} for {s}": partial(self._rate, "late"),
        }

    def plan(self, faults: tuple[Fault, ...]) -> None:
        """Let each happen at its time; those of the start before anything else."""
        for fault in faults:
            action = partial(self._actions[fault.form], *fault.values)
            if fault.at <= 0:
                action()
            else:
                self.sim.at(fault.at, action)

    def end(self) -> None:
        """The calm after: everything goes again."""
        self.rates = dict.fromkeys(self.rates, 0.0)
        self._cuts.clear()
        self._hub_until = 0.0
        self._hub_back()
        for peer in self.sim.living():
            peer.machine.recover()
            peer.store.full = False

    def _on(self, action: Callable[..., None]) -> Callable[..., None]:
        """An action on a peer, if it lives."""

        def act(name: str, *values: Any) -> None:
            peer = self.sim.peers.get(self.sim.peer_id(name))
            if peer is not None:
                action(peer, *values)

        return act

    # -- lives -----------------------------------------------------------------------------------

    def _crash(self, name: str, after_s: float = -1.0, disk: bool = True) -> None:
        """A peer vanishes; unless it is the only one that holds something the others still need."""
        victim = self.sim.peers.get(self.sim.peer_id(name))
        if victim is None or not self.may_vanish([victim]):
            return
        self.sim.kill(victim)
        if after_s >= 0:
            store = victim.store if disk else MemoryStore()
            self.sim.at(after_s, partial(self._start, victim.me.peer, store))

    def _leave(self, name: str, after_s: float) -> None:
        """A peer goes in good order, and comes back."""
        peer = self.sim.peers.get(self.sim.peer_id(name))
        if peer is not None and not peer.core.leaving and self.may_vanish([peer]):
            come = partial(self._start, peer.me.peer, peer.store)
            peer.machine.do(Leaving(self.sim, peer, lambda: self.sim.at(after_s, come)).begin)

    def _start(self, peer: str, store: MemoryStore) -> None:
        self.sim.shelf.pop(peer, None)
        if peer not in self.sim.peers:
            store.full = False
            self.sim.spawn(store, peer=peer)

    def _join(self, name: str) -> None:
        peer = self.sim.peer_id(name)
        if peer not in self.sim.peers:
            self.sim.outcome.joins += 1
            self.sim.spawn(MemoryStore(), peer=peer)

    def _restart(self, name: str) -> None:
        """Once the peer's disk has all that the others may need, everybody dies, and starts again."""
        heir = self.sim.peers.get(self.sim.peer_id(name))
        others = [peer for peer in self.sim.living() if peer is not heir]
        if heir is None or self.sim.calm:
            return
        ledger_read = heir.core.view.sequence == len(self.sim.ledger)
        if heir.core.phase != "training" or not ledger_read or self._needs(others, [heir]):
            self.sim.at(_RESTART_S, partial(self._restart, name))
            return
        for peer in [heir, *others]:
            self.sim.kill(peer)
        self.sim.shelf[heir.me.peer] = heir.store
        self.sim.at(1.0, partial(self._start, heir.me.peer, heir.store))
        apart_s = min(0.5, _COMING_S / max(1, len(others)))
        for number, peer in enumerate(others):
            self.sim.at(1.5 + apart_s * number, partial(self._start, peer.me.peer, MemoryStore()))

    def may_vanish(self, victims: list[SimPeer]) -> bool:
        """Invariant 4 speaks of content as long as one holder lives: the last holder is not crashed."""
        others = [p for p in self.sim.living() if p not in victims]
        if not any(p.core.phase == "training" for p in others):
            return False
        open_ = self.sim.head().open
        if open_ is not None and len(others) < 2 and any(open_.index(v.me) is not None for v in victims):
            return False
        return not self._needs(victims, others)

    def _needs(self, victims: list[SimPeer], others: list[SimPeer]) -> set[str]:
        """What the others may still need, and only the victims have.

        Content that two peers announced may be committed any moment, so it counts as well; so does what
        the only member left announced, and what a steward is about to commit.
        """
        sim, view = self.sim, self.sim.head()
        had: set[str] = set()
        for victim in victims:
            had |= victim.core.catchup.have & victim.store.digests()
        had -= set().union(*(p.store.digests() for p in others))
        if not had:
            return had
        wanted = {i.digest for c in view.commits.values() for i in c.parts} | sim.deciding
        members: set[Member] = {p.me for p in others if p.machine.heard_by_all} & set(
            view.open.members if view.open else ()
        )
        wanted |= {d for d, peers in sim.announced.items() if len(peers) > 1 or not members}
        wanted |= {d for s in view.snapshots.values() for b in s.files for d in b.chunks}
        return had & wanted

    # -- wires -----------------------------------------------------------------------------------

    def cuts(self, a: str, b: str) -> bool:
        """Whether bytes from one place (a peer's id, or the hub) do not reach another now."""
        until = self._cuts.get((a, b)) if self._cuts else None
        return until is not None and self.sim.now < until

    def cut(self, a: str, b: str, s: float) -> None:
        """No bytes from one place to another."""
        places = (self._place(a), self._place(b))
        self._cuts[places] = max(self.sim.now + s, self._cuts.get(places, 0.0))
        for place in places:
            self.sim.outages.ails(place, s)
        if HUB in places:
            for place in places:
                if place in self.sim.peers:
                    self.sim.peers[place].machine.hub_lost(self._cuts[places])

    def _cut_both(self, a: str, b: str, s: float) -> None:
        self.cut(a, b, s)
        self.cut(b, a, s)

    def _place(self, name: str) -> str:
        return HUB if name == HUB else self.sim.peer_id(name)

    def _mute(self, a: str, b: str, s: float) -> None:
        """Announcements from one peer to another, as a cut between "mute" and the peers."""
        one, other = self.sim.peer_id(a), self.sim.peer_id(b)
        until = max(self.sim.now + s, self._cuts.get((f"mute {one}", other), 0.0))
        self._cuts[f"mute {one}", other] = until
        if one in self.sim.peers:
            self.sim.peers[one].machine.unheard(until)

    def muted(self, a: str, b: str) -> bool:
        """Whether b does not hear what a announces."""
        return self.cuts(f"mute {a}", b)

    def _rate(self, what: str, rate: float, s: float) -> None:
        self.rates[what] = rate
        self._rates_until[what] = max(self._rates_until[what], self.sim.now + s)
        self.sim.at(s, partial(self._rate_ends, what))

    def _rate_ends(self, what: str) -> None:
        if self.sim.now >= self._rates_until[what] and not self.sim.calm:
            self.rates[what] = getattr(self.sim.world, what)

    def hub_away(self, s: float) -> None:
        """The hub is away for a while: no announcement and no record gets through.

        Whom everybody took for living before is living to them after: nobody's time goes on meanwhile.
        """
        if self.hub_up:
            self.sim.outages.begins()
        self.hub_up = False
        self._hub_until = max(self._hub_until, self.sim.now + s)
        for peer in self.sim.living():
            if not peer.machine.steady:
                peer.machine.hub_lost(self._hub_until)
        self.sim.at(s, self._hub_back)

    def _hub_back(self) -> None:
        if (self.hub_up and not self.sim.calm) or self.sim.now < self._hub_until:
            return
        was_up = self.hub_up
        if not was_up:
            self.sim.outages.ends()
        self.hub_up = True
        self.sim.progress_from_now()
        for peer in self.sim.living():
            machine = peer.machine
            machine.hub_from = max(machine.hub_from, self.sim.now + self.sim.random.uniform(0.0, RECONNECT_S))
            # Each for itself is without the hub for a moment when the calm begins.
            if not machine.steady or (was_up and self.sim.missed(peer.me.peer)):
                machine.unheard(machine.hub_from)

    # -- machines --------------------------------------------------------------------------------

    def _torn_file(self, name: str) -> None:
        """A disk returns nothing where something was; another peer has it still."""
        victim = self.sim.peers.get(self.sim.peer_id(name))
        if victim is None:
            return
        elsewhere: set[str] = set().union(*(p.store.digests() for p in self.sim.living() if p is not victim))
        damaged = sorted(victim.store.digests() & elsewhere)
        if damaged:
            chosen = random.Random(f"{self.sim.seed}/{self.sim.now}/{name}").choice(damaged)
            victim.store.delete(chosen)

    def _full_disk(self, name: str, s: float) -> None:
        victim = self.sim.peers.get(self.sim.peer_id(name))
        if victim is not None:
            victim.store.full = True
            self.sim.outages.ails(victim.me.peer, s)
            self._full_until[name] = max(self._full_until.get(name, 0.0), self.sim.now + s)
            self.sim.at(s, partial(self._disk_has_room, name, victim.store))

    def _disk_has_room(self, name: str, store: MemoryStore) -> None:
        if self.sim.now >= self._full_until[name]:
            store.full = False

    def _slow(self, peer: SimPeer, factor: float, s: float) -> None:
        peer.machine.slow(factor, s)
        self.sim.outages.ails(peer.me.peer, s)

    def _diverge(self, name: str) -> None:
        """A model becomes NaN; one that trains alone would only hold its own round up."""
        if len(self.sim.peers) > 1:
            self._on(lambda peer: peer.diverge())(name)

    def _miscount(self, name: str) -> None:
        """An outer step goes wrong; where most peers' do, nobody could tell which is right."""
        training = [peer for peer in self.sim.living() if peer.core.phase == "training"]
        if len(training) > FEW:
            self._on(lambda peer: peer.miscount())(name)

    def _clock(self, name: str, offset: float) -> None:
        self.sim.clocks[self.sim.peer_id(name)] = offset
