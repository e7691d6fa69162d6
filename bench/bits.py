"""Bits that a peer sends and gets for each parameter and inner step, with rounds of 30 steps.

    python -m bench.bits --bar [--peers 20] [--codec topk] [--values 25000000]

From the simulator: the real cores decide who sends what to whom, in virtual time; contributions and results
have the sizes that the codec really makes of random values, with their tallies, messages, answers and frames.
``bench.utilisation`` measures the same on the sockets of four real peers.

bits_up, bits_down  of a peer, in the mean, to and from other peers; presence through the hub is not in it
bytes_ratio         bytes of data parallelism in bf16 (a ring all-reduce in each step) for the same tokens,
                    over ours; both directions

A peer sends its contribution, and as a reducer its results: each is printed as well.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from bench.heading import head
from bench.scale import ENDLESS_S, SPEED, Metered
from bench.stage import bar

from potluck.codecs import codec as named
from potluck.net.framing import HEADER
from potluck.peer.layout import part_bounds
from potluck.recipe import Rounds
from potluck.testing.referee import Referee
from potluck.testing.scenario import CALM
from potluck.testing.simulator import SIZE
from potluck.wire.codec import digest, encode
from potluck.wire.messages import Answer, Fetch, PushContribution, PushResult, Request
from potluck.wire.records import Held
from potluck.wire.result import Tally, pack

STEPS = 30
"""Inner steps of each peer in a round."""

BF16 = 16
"""Bits of a gradient that data parallelism sends."""


@dataclass(frozen=True)
class Sent:
    """Bytes of one round and one peer: sent and got in all, of what was sent contributions and results, with
    the messages around them; and payloads to and from the hub.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("up", "down", "contribution", "result", "hub_up", "hub_down")

    up: float
    down: float
    contribution: float
    result: float
    hub_up: float = 0.0
    hub_down: float = 0.0


def tell_bits(sent: Sent, peers: int, values: int, how: str) -> None:
    """A line of JSON with everything, then the bars."""
    figures = {key: bits(getattr(sent, key), values) for key in Sent.KINDS}
    rounded = {key: float(f"{value:.4g}") for key, value in figures.items()}
    told = {"bits": how, "peers": peers, "values": values, "steps": STEPS, **rounded}
    print(json.dumps(told | {"bytes_up": round(sent.up), "bytes_down": round(sent.down)}), flush=True)
    bar("bits_up", figures["up"], "bit", digits=6, peers=peers)
    bar("bits_down", figures["down"], "bit", digits=6, peers=peers)
    bar("bytes_ratio", ring(peers) / (figures["up"] + figures["down"]), "ratio", digits=1, peers=peers)


def bits(count: float, values: int) -> float:
    """For each parameter and inner step."""
    return 8 * count / values / STEPS


def ring(peers: int) -> float:
    """Bits for each parameter and step that a ring all-reduce in bf16 sends and gets, together."""
    return 2 * 2 * (peers - 1) / peers * BF16


class Planned(Metered):
    """A round of real cores in as many parts as a real one has, counted by kind."""

    def __init__(self, peers: int, parts: int, rounds: int) -> None:
        world = replace(CALM, peers=peers, delay_s=(0.04, 0.06), blocks=0, round_tokens=2 * peers * SPEED)
        super().__init__(replace(world, duration_s=ENDLESS_S, bound_s=ENDLESS_S), rounds)
        self.recipe = replace(self.recipe, rounds=replace(self.recipe.rounds, parts=parts))
        self.referee = Referee(SIZE, self.recipe.rounds, self.fail)

    def each(self) -> Counter[str]:
        """Requests of all peers by kind, in all rounds that were counted."""
        self.run()
        return self.meter.kinds


def planned(peers: int, values: int, codec: str, rounds: int = 3) -> Sent:
    """Mean bytes of a peer and round; what it gets is what others send."""
    kinds = Planned(peers, Rounds.parts, rounds).each()
    count = rounds * peers
    sizes = Sizes(peers, values, codec)
    contribution = kinds["contribution"] * sizes.contribution / count
    result = (kinds["result"] * sizes.result + kinds["fetch"] * sizes.fetched) / count
    answers = (kinds["contribution"] + kinds["result"]) * sizes.answer + kinds["fetch"] * sizes.fetch
    each = contribution + result + answers / count
    return Sent(each, each, contribution, result)


class Sizes:
    """Bytes of a part on a socket: the mean over a vector's parts, of values at random."""

    def __init__(self, peers: int, values: int, codec: str) -> None:
        bounds = part_bounds(values, Rounds.parts)
        chosen = np.random.default_rng(0)
        coder = named(codec)
        raws = [coder.encode(chosen.standard_normal(b.stop - b.start, np.float32)) for b in bounds]
        raw = raws[0]
        mean = sum(map(len, raws)) / len(raws)
        members = tuple((index, 2.0**20) for index in range(peers))
        content = pack(Tally(100, 0, 0, members), raw)
        name = digest(content)
        result = mean + len(content) - len(raw)
        self.contribution = mean + HEADER.size + framed(PushContribution(100, 0, 15, 2.0**20, len(raw)))
        self.result = result + HEADER.size + framed(PushResult(100, 0, Held(15, name, len(content))))
        self.answer = framed(Answer(True))
        self.fetch = framed(Fetch(name, compressed=True))
        self.fetched = result + HEADER.size + framed(Answer(True, size=len(content)))


def framed(message: Request | Answer) -> int:
    """Bytes of a message with its frame."""
    return len(encode(message)) + HEADER.size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway")
    parser.add_argument("--peers", type=int, nargs="+", default=[4, 20])
    parser.add_argument("--codec", default="topk")
    parser.add_argument("--values", type=int, default=25_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few values and one round: a check, no result")
    args = parser.parse_args()
    head()
    if args.quick:
        args.values, args.rounds = 5_000_000, 1
    for peers in args.peers:
        tell_bits(planned(peers, args.values, args.codec, args.rounds), peers, args.values, "planned")


if __name__ == "__main__":
    main()
