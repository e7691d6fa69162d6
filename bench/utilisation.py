"""How much of the time peers compute, while rounds are exchanged on emulated links; and the bytes that takes.

    python -m bench.utilisation --bar [--codec int8 topk] [--rounds 10]

Four real peers behind 50 Mbit/s and 75 ms one way, 25 M parameters, inner steps of a fixed 50 ms that cost
no processor (they sleep), one peer with steps of 200 ms. A round's tokens are 30 steps of the fast peers and
what the slow one does meanwhile; a round that takes longer to exchange has more.

utilisation          steps done times their fixed time, over the time from the first to the last, of all peers
                     in a window of whole rounds; ``utilisation_worst``: of the peer that has least
utilisation_with_free_cores   the same without the time in which a peer's thread was ready to run and no core
                     was free: what is lost in boundaries and to the interpreter alone
blocking             the same if each round's exchange, as measured in that window, stopped the training
bits_up, bits_down   bits for each parameter and inner step that a peer sends and gets on its sockets to other
                     peers, framing included, with rounds of exactly 30 steps; see ``bench.bits``
bytes_ratio          bytes of data parallelism in bf16 for the same tokens, over those

No snapshots are written meanwhile. All peers, their links and the hub share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.allreduce import Case, network
from bench.bits import STEPS, Sent, tell_bits
from bench.exchanger import STEP_TOKENS
from bench.heading import head
from bench.stage import START_S, Actor, Stage, bar, played
from bench.wan import Link

from potluck.recipe import Outer, Recipe, Rounds

WARM = 2
"""Rounds that are not counted."""

SLOWER = 4
"""The last peer's steps take so many times as long."""

LOST = ("boundary_s", "boundary_cpu_s", "late_s", "queued_s")
"""What a peer's marks count from the beginning; see ``bench.waiter``."""

LIMIT_S = 120.0
"""How long one round may take."""

LINK = Link(50.0, 50.0, 0.0375)
"""75 ms one way between any two peers."""


@dataclass(frozen=True)
class Pace:
    """Steps of ``step_s`` seconds, ``steps`` of them in a round if its exchange is quick enough."""

    step_s: float = 0.05
    steps: int = STEPS
    snapshot_every: int = 1000

    def of(self, number: int, peers: int) -> float:
        """Seconds of a step of the peer with this number, from 1."""
        return self.step_s * (SLOWER if number == peers else 1)

    def tokens(self, peers: int) -> int:
        """Of a round: ``steps`` of the fast peers, and what the slow one does in that time."""
        return int(self.steps * (peers - 1 + 1 / SLOWER) * STEP_TOKENS)


@dataclass(frozen=True)
class Share:
    """Seconds of one peer in its window: in steps, in all, lost in boundaries (of which the processor had
    some) and by late steps, without a core in both, and between each open and what was applied of it.
    """

    name: str
    steps: int
    compute_s: float
    wall_s: float
    boundary_s: float
    boundary_cpu_s: float
    late_s: float
    queued_s: float
    exchange_s: float

    @property
    def utilisation(self) -> float:
        return self.compute_s / self.wall_s

    @property
    def with_free_cores(self) -> float:
        """What it would be if this thread had never waited for a core."""
        return self.compute_s / (self.wall_s - self.queued_s)


class Play:
    """One swarm, from its start to the end of the window."""

    def __init__(self, stage: Stage, case: Case, pace: Pace, rounds: int) -> None:
        self.stage, self.case, self.pace, self.rounds = stage, case, pace, rounds
        self.first = 0

    def run(self) -> None:
        """Start all peers, and wait until every one has marked the window's last round."""
        stage, peers = self.stage, self.case.peers
        stage.start_hub()
        for number in range(1, peers + 1):
            recipe = {"recipe": stage.recipe.to_toml()} if number == 1 else {}
            stage.play("wait", f"p{number}", f"h{number}", pace_s=self.pace.of(number, peers), **recipe)
        for actor in stage.actors:
            stage.until(f"{actor.name} joins", START_S, partial(actor.first, "joined"))
        limit_s = START_S + LIMIT_S
        whole = stage.until("a round of all", limit_s, lambda: self._whole() or None)
        self.first = whole[0] + WARM
        last = self.last
        for actor in stage.actors:
            stage.until(f"round {last}", LIMIT_S * self.rounds, partial(line, actor, "mark", last))

    @property
    def last(self) -> int:
        """The round whose mark ends the window; ``first`` is the one whose mark begins it."""
        return self.first + self.rounds

    def _whole(self) -> list[int]:
        """Rounds with everybody's work in them."""
        said = list(self.stage.actors[0].said)
        full = [c for c in said if len(c.get("contributors", ())) == self.case.peers]
        return sorted(c["commit"] for c in full)

    @property
    def whole(self) -> int:
        """How many rounds of the window have everybody's work."""
        return sum(self.first < number <= self.last for number in self._whole())

    def shares(self) -> list[Share]:
        """Every peer's."""
        return [self._share(number, actor) for number, actor in enumerate(self.stage.actors, start=1)]

    def _share(self, number: int, actor: Actor) -> Share:
        marks = sorted((one for one in actor.said if "mark" in one), key=lambda one: one["mark"])
        begin = next(one for one in marks if one["mark"] >= self.first)
        end = next(one for one in marks if one["mark"] >= self.last)
        steps = end["steps"] - begin["steps"]
        lost = {key: end[key] - begin[key] for key in LOST}
        return Share(
            actor.name,
            steps,
            steps * self.pace.of(number, self.case.peers),
            end["ended"] - begin["ended"],
            exchange_s=self._exchange_s(actor),
            **lost,
        )

    def _exchange_s(self, actor: Actor) -> float:
        """From each open that this peer saw to when it had applied the commit, over the window."""
        took_s = 0.0
        for number in range(self.first + 1, self.last + 1):
            opened, applied = line(actor, "opened", number), line(actor, "applied", number)
            if opened and applied:
                took_s += applied["at"] - opened["at"]
        return took_s

    def sent(self) -> Sent:
        """Bytes of one round and peer, in the mean over the window."""
        whole = [self._sent(actor) for actor in self.stage.actors]
        count = len(whole) * self.rounds
        total = Counter[str]()
        for one in whole:
            total.update(one)
        return Sent(**{key: total[key] / count for key in Sent.KINDS})

    def _sent(self, actor: Actor) -> Counter[str]:
        begin, end = line(actor, "applied", self.first), line(actor, "applied", self.last)
        assert begin is not None
        assert end is not None
        kinds = {kind: end["kinds"][kind] - begin["kinds"].get(kind, 0) for kind in end["kinds"]}
        hub = {key: end["hub"].get(key, 0) - begin["hub"].get(key, 0) for key in ("out_bytes", "in_bytes")}
        return Counter(
            up=end["sent"] - begin["sent"],
            down=end["received"] - begin["received"],
            contribution=kinds.get("PushContribution", 0),
            result=kinds.get("PushResult", 0),
            hub_up=hub["out_bytes"],
            hub_down=hub["in_bytes"],
        )


def line(actor: Actor, what: str, number: int) -> dict[str, Any] | None:
    """What this process said of this round, first."""
    return next((one for one in list(actor.said) if one.get(what) == number), None)


def measure(
    case: Case, pace: Pace, codec: str, rounds: int, directory: Path
) -> tuple[Play, list[Share], Sent]:
    """One swarm with this codec."""
    recipe = Recipe(
        name="utilisation",
        outer=Outer(kind="nesterov", lr=0.7, momentum=0.9),
        rounds=Rounds(
            tokens=pace.tokens(case.peers),
            codec=codec,
            grace_s=30.0,
            snapshot_every=pace.snapshot_every,
            parts=case.parts,
        ),
    )
    directory.mkdir(parents=True, exist_ok=True)
    with network(case) as wan, Stage(wan, directory, recipe, {"values": case.values}) as stage:
        play = Play(stage, case, pace, rounds)
        play.run()
        return play, play.shares(), play.sent()


def total(shares: Sequence[Share]) -> float:
    """Of all peers together."""
    return sum(one.compute_s for one in shares) / sum(one.wall_s for one in shares)


def with_free_cores(shares: Sequence[Share]) -> float:
    """Of all peers together, without the time that their threads waited for a core."""
    return sum(one.compute_s for one in shares) / sum(one.wall_s - one.queued_s for one in shares)


def blocking(shares: Sequence[Share]) -> float:
    """What it would be if no peer trained while it exchanges; boundaries and late steps left out."""
    compute_s = sum(one.compute_s for one in shares)
    return compute_s / (compute_s + sum(one.exchange_s for one in shares))


def tell(case: Case, pace: Pace, codec: str, play: Play, shares: Sequence[Share]) -> None:
    """A line of JSON for each peer, then one of the swarm; ``blocking_exactly`` is what rounds of exactly
    ``steps`` steps would give that wait for each exchange.
    """
    for one in shares:
        figures = {key: round(value, 3) for key, value in vars(one).items() if key not in ("name", "steps")}
        found = {"steps": one.steps, **figures, "utilisation": round(one.utilisation, 4)}
        found["with_free_cores"] = round(one.with_free_cores, 4)
        print(json.dumps({"codec": codec, "peer": one.name, **found}), flush=True)
    fast, rounds = shares[:-1] or shares, play.rounds
    exchange_s = statistics.mean(one.exchange_s for one in shares) / rounds
    exactly_s = pace.steps * pace.step_s
    told = {
        "rounds": rounds,
        "whole_rounds": play.whole,
        "steps_a_round": round(statistics.mean(one.steps for one in fast) / rounds, 1),
        "round_s": round(statistics.mean(one.wall_s for one in shares) / rounds, 2),
        "exchange_s": round(exchange_s, 2),
        "blocking_exactly": round(exactly_s / (exactly_s + exchange_s), 3),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps({"codec": codec, **case.told, **told}), flush=True)


def run(case: Case, pace: Pace, codecs: Sequence[str], rounds: int, directory: Path) -> None:
    for codec in codecs:
        play, shares, sent = measure(case, pace, codec, rounds, directory / codec)
        tell(case, pace, codec, play, shares)
        bar("utilisation", total(shares), "ratio", codec=codec)
        bar("utilisation_worst", min(one.utilisation for one in shares), "ratio", codec=codec)
        bar("utilisation_with_free_cores", with_free_cores(shares), "ratio", codec=codec)
        bar("blocking", blocking(shares), "ratio", codec=codec)
        if codec == codecs[-1]:
            tell_bits(sent, case.peers, case.values, "measured")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway")
    parser.add_argument("--codec", nargs="+", default=["int8", "topk"], help="bits are of the last one")
    parser.add_argument("--rounds", type=int, default=10, help="of the window")
    parser.add_argument("--peers", type=int, default=Case.peers)
    parser.add_argument("--values", type=int, default=Case.values)
    parser.add_argument("--mbit", type=float, default=LINK.up_mbit)
    parser.add_argument("--one-way-ms", type=float, default=2000 * LINK.delay_s)
    parser.add_argument("--step-ms", type=float, default=1000 * Pace.step_s)
    parser.add_argument("--steps", type=int, default=Pace.steps, help="of a fast peer in a round, at least")
    parser.add_argument("--snapshot-every", type=int, default=Pace.snapshot_every)
    parser.add_argument("--quick", action="store_true", help="few values on loopback: a check, no result")
    parser.add_argument("--keep", type=Path, help="keep logs and disks here")
    args = parser.parse_args(argv)
    head(argv)
    case = Case(args.peers, args.values, Link(args.mbit, args.mbit, args.one_way_ms / 2000))
    pace = Pace(args.step_ms / 1000, args.steps, args.snapshot_every)
    if args.quick:
        case, args.rounds, args.codec = replace(case, peers=2, values=200_000, link=None), 3, ["topk"]
    return played("utilisation", args.keep, lambda at: run(case, pace, args.codec, args.rounds, at))


if __name__ == "__main__":
    sys.exit(main())
