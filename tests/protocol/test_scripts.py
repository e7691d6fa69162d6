"""Golden dialogues: what a small swarm says of itself, to be reviewed like code.

After a change that is meant, ``python -m tests.protocol.test_scripts`` writes them anew; read the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from potluck.store.contents import MemoryStore
from potluck.testing.scenario import CALM
from potluck.testing.simulator import Simulation

SCRIPTS = Path(__file__).parent.parent / "scripts"

QUIET = replace(CALM, peers=3, duration_s=22.0, calm_s=1.0)


def in_round(sim: Simulation, action: Callable[[], None]) -> None:
    """Do something as soon as every peer there is in an open round."""
    if sim.peers and all(p.core.view.open for p in sim.living()):
        action()
    else:
        sim.at(0.02, lambda: in_round(sim, action))


def calm(sim: Simulation) -> None:
    """Three peers, and nothing goes wrong."""


def joiner(sim: Simulation) -> None:
    """A fourth peer comes while a round is open."""
    in_round(sim, lambda: sim.spawn(MemoryStore()))


def reducer_dies(sim: Simulation) -> None:
    """One of three reducers dies right after a round was opened."""
    in_round(sim, lambda: sim.kill(sim.living()[1]))


def hub_away(sim: Simulation) -> None:
    """The hub is away for eight seconds in the middle of a round."""
    in_round(sim, lambda: sim.hub_away(8.0))


DIALOGUES: list[Callable[[Simulation], None]] = [calm, joiner, reducer_dies, hub_away]


def dialogue(script: Callable[[Simulation], None]) -> str:
    """What happens, as every peer tells it: seconds, peer, words."""
    sim = Simulation(7, QUIET)
    script(sim)
    sim.run()
    lines = [f"# {script.__doc__}", ""]
    lines += [f"{at_s:5.1f} {who}: {text}" for at_s, who, text in sim.outcome.notes]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("script", DIALOGUES, ids=lambda script: script.__name__)
def test_a_small_swarm_says_what_is_written(script: Callable[[Simulation], None]) -> None:
    written = (SCRIPTS / f"{script.__name__}.txt").read_text("utf-8")
    assert dialogue(script) == written, "if this is meant: python -m tests.protocol.test_scripts"


if __name__ == "__main__":
    for one in DIALOGUES:
        (SCRIPTS / f"{one.__name__}.txt").write_text(dialogue(one), "utf-8")
