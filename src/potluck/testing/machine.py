"""A simulated peer's machine: whether it runs, how fast, and whether it reaches the hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from potluck.testing.scenario import HUB

if TYPE_CHECKING:
    from potluck.testing.simulator import Simulation

STEADY_S = 6.0
"""Who was there and heard for so long is taken for living by everybody."""

RECONNECT_S = 2.5
"""A peer finds a hub that is back within so long."""


class Machine:
    """What ails the machine of one life of the peer with key ``peer``."""

    def __init__(self, sim: Simulation, peer: str) -> None:
        self._sim, self._peer = sim, peer
        self.alive, self.born_at = True, sim.now
        self.clock_s = sim.clocks.get(peer, 0.0)
        self.hub_from = sim.now
        self.steady_since = sim.now
        self._paused_until = self._stalled_until = self._slow_until = 0.0
        self._pace = 1.0
        self._held_back: list[Callable[[], None]] = []

    @property
    def now(self) -> float:
        """The time by this machine's clock."""
        return self._sim.now + self.clock_s

    # -- does it run? ----------------------------------------------------------------------------

    def do(self, action: Callable[[], None]) -> None:
        """Do something now, if this life lasts; paused, once it goes on."""
        if not self.alive:
            return
        if self.paused:
            self._held_back.append(action)
        else:
            action()

    @property
    def paused(self) -> bool:
        """Stopped by SIGSTOP."""
        return self._sim.now < self._paused_until

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        self._paused_until = max(self._paused_until, self._sim.now + seconds)
        self.unheard(self._paused_until)
        self._sim.at(seconds, self._resume)

    def _resume(self) -> None:
        if not self.paused:
            held, self._held_back = self._held_back, []
            for action in held:
                self._sim.at(0.0, lambda action=action: self.do(action))  # type: ignore[misc]

    @property
    def steps(self) -> bool:
        """Whether training goes on here."""
        return not self.paused and self.stalled_s <= 0

    @property
    def stalled_s(self) -> float:
        """How much longer the trainer stands still."""
        return self._stalled_until - self._sim.now

    def stall(self, seconds: float) -> None:
        """The trainer stands still, as one that evaluates does."""
        self._stalled_until = max(self._stalled_until, self._sim.now + seconds)

    @property
    def pace(self) -> float:
        """How many times as long as usual everything takes here."""
        return self._pace if self._sim.now < self._slow_until else 1.0

    def slow(self, factor: float, seconds: float) -> None:
        """An overloaded machine."""
        self._pace, self._slow_until = factor, max(self._slow_until, self._sim.now + seconds)

    def recover(self) -> None:
        """All that ails it ends."""
        self._paused_until = self._stalled_until = self._slow_until = self._sim.now
        self._resume()

    # -- does it reach the hub? ------------------------------------------------------------------

    @property
    def sends(self) -> bool:
        """Whether the hub gets what is sent from here."""
        return self._at_hub and not self._sim.faults.cuts(self._peer, HUB)

    @property
    def hears(self) -> bool:
        """Whether what the hub sends comes here."""
        return self._at_hub and not self._sim.faults.cuts(HUB, self._peer)

    @property
    def connected(self) -> bool:
        """Whether requests to the hub are answered."""
        return self.sends and self.hears

    @property
    def _at_hub(self) -> bool:
        return self._sim.faults.hub_up and self._sim.now >= self.hub_from

    def hub_lost(self, until: float) -> None:
        """The hub can't be reached from here until then, and is found again soon after."""
        self.unheard(until + RECONNECT_S)

    def unheard(self, until: float) -> None:
        """Until then not everybody can know that this peer lives."""
        self.steady_since = max(self.steady_since, until)

    @property
    def steady(self) -> bool:
        """Whether everybody has heard this peer for a while, and takes it for living."""
        return self._sim.now - self.steady_since > STEADY_S

    @property
    def heard_by_all(self) -> bool:
        """Whether nothing keeps anybody from hearing this peer."""
        return self.steady_since <= self._sim.now
