"""Whether a simulated swarm evaluates its shared states in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potluck.protocol.view import RunView

if TYPE_CHECKING:
    from potluck.testing.simulator import Simulation

EVALUATED_S = 18.0
"""In the calm a state is evaluated so long after it is due: one that was begun before, then itself."""


def overdue(sim: Simulation, view: RunView) -> str | None:
    """What is not evaluated though it was due long ago, in words; None if nothing is."""
    every, last = sim.world.evaluate, view.evaluations.last
    if not every:
        return None
    due = (last // every + 1) * every
    if view.finished is not None and last < view.round:
        due = min(due, view.round)
    if due > view.round:
        return None
    since = sim.referee.commits[due].at if due else 0.0
    waits_s = sim.now - max(since, sim.world.duration_s + 1)
    if waits_s <= EVALUATED_S:
        return None
    return f"round {due} is not evaluated in {waits_s:.0f} s; there are {sorted(view.evaluations.of)}"
