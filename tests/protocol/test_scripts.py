"""Golden dialogues: what a small swarm says of itself, to be reviewed like code.

After a change that is meant, ``python -m tests.protocol.test_scripts`` writes them anew; read the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from potluck.store.contents import MemoryStore
from potluck.testing.scenario import CALM, World, fault
from potluck.testing.simulator import Simulation
from potluck.testing.world import SimPeer

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


def kill_once(sim: Simulation, held: Callable[[SimPeer, list[SimPeer]], bool]) -> None:
    """The first reducer dies as soon as something holds of it and the others."""
    dead: list[SimPeer] = []

    def look() -> None:
        for peer in sim.living():
            others = [other for other in sim.living() if other is not peer]
            if not dead and peer.core.exchange is not None and held(peer, others):
                dead.append(peer)
                sim.kill(peer)
        if not dead:
            sim.at(0.02, look)

    look()


def reducer_dies_while_reducing(sim: Simulation) -> None:
    """A reducer dies once its own result is done, and nobody else has it."""
    kill_once(sim, lambda peer, others: bool(_own(peer)) and not any(_has(other, peer) for other in others))


def reducer_dies_after_its_part_is_out(sim: Simulation) -> None:
    """A reducer dies once another member has one of its results."""
    kill_once(sim, lambda peer, others: any(_has(other, peer) for other in others))


def _own(peer: SimPeer) -> set[str]:
    """Results that a peer reduced itself."""
    exchange = peer.core.exchange
    assert exchange is not None
    return {info.digest for info in exchange.held if exchange.reduces(info.part)}


def _has(other: SimPeer, reducer: SimPeer) -> bool:
    exchange = other.core.exchange
    return exchange is not None and bool(_own(reducer) & {info.digest for info in exchange.held})


def who_gathers_dies(sim: Simulation) -> None:
    """One that gathers for its group, and reduces nothing, dies with what came to it."""
    dead: list[SimPeer] = []

    def look() -> None:
        for peer in sim.living():
            if not dead and _gathered(peer):
                dead.append(peer)
                sim.kill(peer)
        if not dead:
            sim.at(0.02, look)

    look()


def _gathered(peer: SimPeer) -> bool:
    """Whether another's contribution is here, and none of the parts is ours to reduce."""
    exchange = peer.core.exchange
    if exchange is None or exchange.index is None or exchange.reduces_any:
        return False
    return any(part.gathered.keys() - {exchange.index} for part in exchange._parts)


def two_stewards(sim: Simulation) -> None:
    """Two peers act as stewards at once, neither hearing the other: the ledger lets one win."""
    plan(sim, "at 4 mute peer1 -> peer3 for 10", "at 4 mute peer3 -> peer1 for 10")


def asymmetric_partition(sim: Simulation) -> None:
    """For a while peer2 gets nothing from peer1, though peer1 gets all from peer2."""
    plan(sim, "at 4 cut peer1 -> peer2 for 12")


def stopped_for_a_minute(sim: Simulation) -> None:
    """SIGSTOP stops a peer for 60 seconds in the middle of a round."""
    in_round(sim, lambda: sim.peers[sim.peer_id("peer2")].machine.pause(60.0))


def everyone_restarts_from_one_disk(sim: Simulation) -> None:
    """Everybody is killed; one starts from its disk, the others with empty ones."""
    plan(sim, "at 9 restart all from peer3")


def thin_link(sim: Simulation) -> None:
    """One of four peers has a thin link: once that is known it reduces nothing, and the record says why."""


def run_of_one(sim: Simulation) -> None:
    """A peer alone: it is steward, reducer and member, and the only holder."""


def plan(sim: Simulation, *lines: str) -> None:
    sim.faults.plan(tuple(fault(line) for line in lines))


DIALOGUES: dict[Callable[[Simulation], None], World] = {
    calm: QUIET,
    joiner: QUIET,
    reducer_dies: QUIET,
    reducer_dies_while_reducing: QUIET,
    reducer_dies_after_its_part_is_out: QUIET,
    who_gathers_dies: replace(QUIET, peers=6, flat=3, round_tokens=1600),
    two_stewards: QUIET,
    asymmetric_partition: QUIET,
    stopped_for_a_minute: replace(QUIET, duration_s=90.0, round_tokens=3000),
    everyone_restarts_from_one_disk: QUIET,
    hub_away: QUIET,
    thin_link: replace(QUIET, peers=4, thin=0.3),
    run_of_one: replace(QUIET, peers=1, round_tokens=400),
}


def dialogue(script: Callable[[Simulation], None]) -> str:
    """What happens, as every peer tells it: seconds, peer, words."""
    sim = Simulation(7, DIALOGUES[script])
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
