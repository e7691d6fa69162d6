"""A simulated peer leaves in good order: what it owes is kept on its disk, and the next life takes it up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from potluck.errors import StoreError
from potluck.peer.residuals import kept
from potluck.store.contents import MemoryStore
from potluck.store.residuals import NAME, Owed, Whose, packed, unpacked
from potluck.wire.messages import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from potluck.testing.simulator import Simulation
    from potluck.testing.world import SimPeer

LEAVE_S = 3.0
"""How long a leaving peer stays for the round in flight, as in ``peer.node``."""

LOOK_S = 0.25
"""How often it looks whether it may go."""


class MemoryResiduals:
    """A ``ResidualsFile`` on a simulated disk."""

    def __init__(self, store: MemoryStore, whose: Whose) -> None:
        self.path = Path(NAME)
        self._store, self._whose = store, whose

    def write(self, owed: Owed) -> None:
        """Keep it."""
        if self._store.full:
            raise StoreError("residuals can't be stored: the disk is full")
        self._store.beside[NAME] = packed(self._whose, owed)

    def read(self) -> Owed | None:
        """What was kept."""
        raw = self._store.beside.get(NAME)
        return unpacked(raw, self._whose) if raw is not None else None

    def remove(self) -> None:
        """It is gone."""
        self._store.beside.pop(NAME, None)


class Leaving:
    """One peer's leaving; ``start`` begins its next life."""

    def __init__(self, sim: Simulation, peer: SimPeer, start: Callable[[], None]) -> None:
        self._sim, self._peer, self._start = sim, peer, start
        self._until = sim.now + LEAVE_S

    def begin(self) -> None:
        """It trains no more, and sees the round in flight through, within bounds."""
        self._sim.outages.ails(self._peer.me.peer, 2 * LEAVE_S)
        self._peer.core.leaving = True
        self._peer.withdraw()
        self._look()

    def _look(self) -> None:
        """Go once it may, or it is time; but not with what the others need, as in every fault."""
        sim, peer = self._sim, self._peer
        if sim.calm:
            peer.core.leaving = False
            return
        may = peer.core.may_leave or sim.now >= self._until
        if may and sim.faults.may_vanish([peer]):
            self._go()
        else:
            peer.later(LOOK_S, self._look)

    def _go(self) -> None:
        sim, peer = self._sim, self._peer
        if peer.state is not None:
            owed = peer.state.owed()
            sim.note(peer.name, kept(peer.residuals, owed, peer.state.sent, peer.core.over))
            if owed is not None:
                sim.left[peer.me.peer] = peer.me, owed.round
        said = peer.core.announcement(Progress(peer=peer.me.peer, session=peer.me.session), peer.machine.now)
        sim.broadcast(replace(said, phase="gone", held=()))
        sim.leave(peer)
        self._start()
