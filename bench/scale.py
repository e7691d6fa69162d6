"""What a round costs a peer and the hub as the swarm grows, from the simulator: real cores, virtual time.

    python -m bench.scale --bar [--peers 10 100 1000 10000] [--rounds 2]

One JSON object a line, for each number of peers: what one round took from commit to commit, in a calm world
of 100 ms round trips in which all take part, and work for twice as long as it takes to hear all. Requests
of a peer to others (mean and most), how many others it asked, bytes that it sent if a contribution has 25 MB,
seconds of the round and of its exchange (open to commit), and messages a second at the hub.
``--flat`` has no groups, for comparison.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache

from bench.heading import head

from potluck.peer import state
from potluck.protocol.plan import FLAT
from potluck.protocol.swarm import CROWD
from potluck.store.contents import MemoryStore
from potluck.testing.scenario import CALM, World
from potluck.testing.simulator import Simulation
from potluck.testing.world import SimPeer
from potluck.wire.records import Entry, Open

ENDLESS_S = 1e6

CONTRIBUTION_BYTES = 25e6
"""25 M values in int8."""

SPEED = 100
"""Tokens a second of a simulated peer, on average."""

PARTIAL = 4
"""Bytes of a value in a partial: it is in fp32, and what packing saves is not counted."""

TALLY_BYTES = 13
"""Of each member, in each result."""


@dataclass
class Meter:
    """Counts from one moment on."""

    at: float = 0.0
    hub: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    asked: dict[str, set[str]] = field(default_factory=dict)
    connections: int = 0
    exchange_s: float = 0.0


class Metered(Simulation):
    """Stops after some rounds, of which the first is not measured. Peers begin with the founder's disk."""

    def __init__(self, world: World, rounds: int) -> None:
        super().__init__(1, world)
        self.rounds, self.meter, self.opened = rounds, Meter(), 0.0

    def append(self, raw: bytes, after: int) -> bool:
        taken = super().append(raw, after)
        if taken and isinstance(self.entry(after + 1).record.body, Open):
            self.opened = self.now
        return taken

    def _comes(self, peer: str) -> None:
        store = MemoryStore()
        founder = next(iter(self.peers.values())).store
        for digest in founder.digests():
            store.put(founder.get(digest) or b"")
        self.spawn(store, peer=peer)

    def asked(self, peer: str, other: str, what: str) -> None:
        self.meter.requests[peer] += 1
        self.meter.kinds[what] += 1
        self.meter.asked.setdefault(peer, set()).add(other)

    def committed(self, entry: Entry, peer: SimPeer) -> None:
        done = len(self.referee.commits)
        super().committed(entry, peer)
        if len(self.referee.commits) == done:
            return
        if done == 0:
            self.meter = Meter(self.now, self._hub())
        else:
            self.meter.connections = max(self.meter.connections, *map(len, self.meter.asked.values()))
            self.meter.asked.clear()
            self.meter.exchange_s += self.now - self.opened
        self.stopped = done == self.rounds

    def _hub(self) -> int:
        return self.outcome.announcements + self.outcome.deliveries

    def figures(self) -> dict[str, float]:
        """A round's, as the module says."""
        meter, rounds, peers = self.meter, self.rounds, self.world.peers
        took_s = self.now - meter.at
        return {
            "messages_a_peer": meter.requests.total() / rounds / peers,
            "most_messages": max(meter.requests.values()) / rounds,
            "most_connections": meter.connections,
            "bytes_a_peer": self._bytes() / rounds / peers,
            "round_s": took_s / rounds,
            "exchange_s": meter.exchange_s / rounds,
            "hub_messages_s": (self._hub() - meter.hub) / took_s,
        }

    def _bytes(self) -> float:
        kinds, part = self.meter.kinds, CONTRIBUTION_BYTES / self.recipe.rounds.parts
        results = kinds["result"] + kinds["fetch"]
        tallies = results * TALLY_BYTES * self.world.peers
        return (kinds["contribution"] + results + PARTIAL * kinds["partial"]) * part + tallies


state.unpack = lru_cache(64)(state.unpack)  # type: ignore[attr-defined]
"""All peers are in this process, and read the same results."""

UNITS = {"round_s": "s", "exchange_s": "s", "hub_messages_s": "1/s", "bytes_a_peer": "B"}


def measure(peers: int, rounds: int, flat: int) -> dict[str, float]:
    """The figures of one number of peers."""
    tokens = int(peers * SPEED * 2 * max(1.0, peers / CROWD))
    world = replace(CALM, peers=peers, flat=flat, delay_s=(0.04, 0.06), blocks=0, round_tokens=tokens)
    simulation = Metered(replace(world, duration_s=ENDLESS_S, bound_s=ENDLESS_S), rounds)
    simulation.run()
    return simulation.figures()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway: they are all there is")
    parser.add_argument("--peers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--flat", action="store_true")
    wanted = parser.parse_args()
    head()
    for peers in wanted.peers:
        for name, value in measure(peers, wanted.rounds, peers if wanted.flat else FLAT).items():
            line = {"bar": name, "value": round(value, 3), "unit": UNITS.get(name, ""), "peers": peers}
            print(json.dumps(line | {"groups": not wanted.flat}), flush=True)


if __name__ == "__main__":
    main()
