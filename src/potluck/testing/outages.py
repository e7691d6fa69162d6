"""Invariant 6: with the hub away peers train on, and when it is back they have what they had and did.

Looked at are peers about which nothing is odd but that the hub is away: those that had trained and been heard
for a while when it went, and that nothing else happens to until they had time to find it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from potluck.protocol.swarm import EXPIRY_S
from potluck.testing.machine import RECONNECT_S

if TYPE_CHECKING:
    from potluck.testing.simulator import Simulation
    from potluck.testing.world import SimPeer

FOUND_S = RECONNECT_S + EXPIRY_S + 1.5
"""So long after the hub is back everybody has found it, and knows who is there."""

SLACK = 2
"""Steps that a peer may pass over: at the one a state is taken, at another the data may run out."""


@dataclass
class Stand:
    """How one life stood when the hub went, and the inner steps that its machine has had time for since.

    ``data`` are the tokens of the blocks that it had, ``round`` the last that it had applied.
    """

    peer: SimPeer
    since: float
    undisturbed_since: float
    tokens: float
    lost: float
    data: float
    round: int
    releases: int
    steps: int = 0


class Outages:
    """Looks at every outage of one simulation's hub."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._stands: dict[str, Stand] = {}
        self._ails_until: dict[str, float] = {}

    def ails(self, peer: str, seconds: float) -> None:
        """Something else is done to a peer for so long, that may cost it work or keep it behind."""
        until = self._sim.now + seconds + FOUND_S
        self._ails_until[peer] = max(until, self._ails_until.get(peer, 0.0))

    def begins(self) -> None:
        """The hub goes."""
        for peer in self._sim.living():
            ails = self._sim.now < self._ails_until.get(peer.me.peer, 0.0)
            if peer.machine.steady and peer.core.phase == "training" and not ails:
                self._stands[peer.me.peer] = self._stand(peer)

    def stepped(self, peer: SimPeer) -> None:
        """A peer's machine had time for an inner step."""
        stand = self._stands.get(peer.me.peer)
        if stand is not None and stand.peer is peer:
            stand.steps += 1

    def ends(self) -> None:
        """The hub is back."""
        stands, self._stands = self._stands, {}
        for stand in stands.values():
            self._trained(stand)
            self._sim.at(FOUND_S, lambda stand=stand: self._kept(stand))  # type: ignore[misc]

    def _stand(self, peer: SimPeer) -> Stand:
        core, life = peer.core, self._sim.referee.lives[peer.me]
        return Stand(
            peer,
            self._sim.now,
            peer.machine.steady_since,
            life.tokens,
            life.lost,
            peer.data_tokens,
            core.catchup.round,
            self._releases(peer),
        )

    def _releases(self, peer: SimPeer) -> int:
        leases = peer.core.view.leases
        return leases.releases(peer.me) if leases is not None else 0

    def _disturbed(self, stand: Stand) -> bool:
        machine, ails_until = stand.peer.machine, self._ails_until.get(stand.peer.me.peer, 0.0)
        was_unheard = machine.steady_since != stand.undisturbed_since
        return not machine.alive or was_unheard or ails_until > stand.since

    def _trained(self, stand: Stand) -> None:
        """It trained for as long as it had data."""
        peer, life = stand.peer, self._sim.referee.lives[stand.peer.me]
        did, due = life.tokens - stand.tokens, min(stand.data, (stand.steps - SLACK) * peer.step_tokens)
        if did < due and not self._disturbed(stand):
            self._sim.fail(
                f"{peer.name} does not train on while the hub is away: {did:.0f} tokens in {stand.steps} "
                f"steps, {due:.0f} are due"
            )

    def _kept(self, stand: Stand) -> None:
        """It has every round that it had, and all that it did counts or will."""
        peer, life = stand.peer, self._sim.referee.lives[stand.peer.me]
        # Who was unheard because announcements got lost is rightly taken for gone, and its data given away.
        is_gone = self._sim.lossy and self._releases(peer) > stand.releases
        if self._disturbed(stand) or is_gone:
            return
        if peer.core.catchup.round < stand.round:
            self._sim.fail(
                f"{peer.name} lacks rounds after an outage of the hub: it had {stand.round}, "
                f"and has {peer.core.catchup.round}"
            )
        if life.lost > stand.lost + 1e-6 * life.tokens:
            self._sim.fail(
                f"{peer.name} throws work away over an outage of the hub: {life.lost - stand.lost:.0f} tokens"
            )
