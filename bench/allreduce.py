"""How long one exchange takes, of real peers on emulated links: from the open until all have applied it.

    python -m bench.allreduce --bar [--codec fp32 int8] [--rounds 5] [--gloo]
    python -m bench.allreduce --presets [NAME ...]     all rates and delays, 4 and 8 peers, unequal links
    python -m bench.allreduce --thin --values 5000000 --codec int8     what a peer with a thin link costs

The model is one vector of N values, and a step costs nothing: what is left is cut, codec, wire, mean, commit
and outer step. The bound is what the wire takes in plain fp32 with nothing else: 2 (n - 1) / n · 4 N bytes at
the rate of the slowest link. ``--gloo`` measures torch.distributed's all-reduce in fp32 on the same links.

``--thin`` measures rounds of the same swarm without and with a link that is ten times thinner, the last
peer's. The bar says how much longer they take, in times of what that link needs for one contribution.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.exchanger import STEP_TOKENS
from bench.heading import head
from bench.loopback import Loopback
from bench.stage import HUB, START_S, Actor, Stage, bar, played
from bench.wan import Link, Wan

from potluck.codecs import CODECS
from potluck.recipe import Recipe, Rounds

LIMIT_S = 240.0
"""How long one round may take."""

WARM = 1
"""Rounds that are not counted: connections are made in the first, and links measured."""

THINNER = 10
"""With ``--thin`` one link has so many times less."""

PACE_S = 0.02
"""A step of the peers."""

BETWEEN_S = 2.0
"""Steps between two rounds, in seconds."""


LINK = Link(100.0, 100.0, 0.010)
"""20 ms one way between any two peers."""


@dataclass(frozen=True)
class Case:
    """``peers`` with ``values`` each, all behind ``link``, or ``links`` of their own; None is loopback."""

    peers: int = 4
    values: int = 25_000_000
    link: Link | None = LINK
    links: tuple[Link, ...] = ()
    parts: int = Rounds.parts

    @property
    def of_peers(self) -> tuple[Link, ...]:
        """Each peer's link."""
        return self.links or (self.link or Link(),) * self.peers

    @property
    def bound_s(self) -> float:
        """Seconds of an all-reduce in plain fp32, on the wire alone; 0 without a limit."""
        rates = [rate for link in self.of_peers for rate in (link.up_mbit, link.down_mbit)]
        rate = min(rates) * 1e6 / 8
        return 2 * (self.peers - 1) / self.peers * 4 * self.values / rate if rate else 0.0

    def thinner(self) -> Case:
        """The same with a thin link: the last peer's."""
        *others, last = self.of_peers
        thin = replace(last, up_mbit=last.up_mbit / THINNER, down_mbit=last.down_mbit / THINNER)
        return replace(self, links=(*others, thin))

    def own_s(self, codec: str) -> float:
        """Seconds in which the last peer's link carries one contribution, at most."""
        return CODECS[codec].sizes(self.values)[-1] * 8 / (self.of_peers[-1].up_mbit * 1e6)

    @property
    def told(self) -> dict[str, Any]:
        """What a line of results says of it."""
        mbit = sorted({link.up_mbit for link in self.of_peers})
        delay_ms = sorted({round(2000 * link.delay_s, 1) for link in self.of_peers})
        return {"peers": self.peers, "values": self.values, "mbit": mbit, "one_way_ms": delay_ms}


UNEQUAL = tuple(Link(mbit, mbit, 0.010) for mbit in (200.0, 100.0, 100.0, 50.0))


PRESET_VALUES = 2_500_000
"""Of the presets: at 10 Mbit/s a round in fp32 takes a quarter of a minute with so few."""


def presets(values: int) -> dict[str, Case]:
    """Rates and delays, four and eight peers, unequal links, and no links at all, each by its name."""
    found = {"loopback": Case(values=values, link=None), "unequal": Case(values=values, links=UNEQUAL)}
    for peers in (4, 8):
        for mbit in (10, 50, 200):
            for one_way_ms in (20, 75, 150):
                link = Link(mbit, mbit, one_way_ms / 2000)
                found[f"{peers}_peers_{mbit}_mbit_{one_way_ms}_ms"] = Case(peers, values, link)
    return found


class Play:
    """One swarm without a watcher, which would fetch what it measures."""

    def __init__(self, stage: Stage, case: Case) -> None:
        self.stage, self.case = stage, case

    def start(self) -> None:
        stage = self.stage
        stage.start_hub()
        stage.play("exchange", "p1", "h1", recipe=stage.recipe.to_toml())
        for number in range(2, self.case.peers + 1):
            stage.play("exchange", f"p{number}", f"h{number}")
        for actor in stage.actors:
            stage.until(f"{actor.name} joins", START_S, partial(actor.first, "joined"))

    def rounds(self, wanted: int) -> list[dict[str, float]]:
        """So many rounds with everybody in them, after the first ones."""
        found: list[dict[str, float]] = []

        def enough() -> bool:
            found[:] = [line for r in self._committed() if (line := self.round(r))][WARM:]
            return len(found) >= wanted

        self.stage.until(f"{wanted} rounds of all", START_S + LIMIT_S * wanted, enough)
        return found[:wanted]

    def _committed(self) -> list[int]:
        first = self.stage.actors[0]
        whole = [c for c in first.said if len(c.get("contributors", ())) == self.case.peers]
        return sorted(c["commit"] for c in whole if c["attempt"] == 0)

    def round(self, number: int) -> dict[str, float] | None:
        """Seconds from the first that saw the open to the first commit, and until all have applied it; CPU
        seconds of one peer, mean.
        """
        opened = [_when(a, "opened", number) for a in self.stage.actors]
        committed = [_when(a, "commit", number) for a in self.stage.actors]
        applied = [_when(a, "applied", number) for a in self.stage.actors]
        if not all(opened) or not all(committed) or not all(applied):
            return None
        began = min(line["at"] for line in opened if line)
        cpu_s = [_cpu_s(a, number) for a in self.stage.actors]
        return {
            "commit_s": min(line["at"] for line in committed if line) - began,
            "applied_s": max(line["at"] for line in applied if line) - began,
            "cpu_s": statistics.mean(cpu_s),
        }


def _when(actor: Actor, what: str, number: int) -> dict[str, Any] | None:
    return next((line for line in list(actor.said) if line.get(what) == number), None)


def _cpu_s(actor: Actor, number: int) -> float:
    opened, applied = _when(actor, "opened", number), _when(actor, "applied", number)
    return float(applied["cpu_s"] - opened["cpu_s"]) if opened and applied else 0.0


def measure(case: Case, codec: str, rounds: int, directory: Path) -> dict[str, Any]:
    """Median seconds of the rounds of one swarm, and each round's."""
    tokens = int(case.peers * BETWEEN_S / PACE_S * STEP_TOKENS)
    recipe = Recipe(
        name="allreduce",
        rounds=Rounds(tokens=tokens, codec=codec, grace_s=30.0, snapshot_every=1000, parts=case.parts),
    )
    directory.mkdir(parents=True, exist_ok=True)
    with network(case) as wan, Stage(wan, directory, recipe, options(case)) as stage:
        play = Play(stage, case)
        play.start()
        found = play.rounds(rounds)
    medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
    return {**medians, "all_s": [round(one["applied_s"], 3) for one in found]}


def options(case: Case) -> dict[str, Any]:
    """Of each peer."""
    return {"values": case.values, "pace_s": PACE_S, "batch": 1}


def network(case: Case) -> Wan | Loopback:
    """The hub has a link as most peers have."""
    if case.link is None:
        return Loopback()
    hosts = {f"h{number + 1}": link for number, link in enumerate(case.of_peers)}
    return Wan({HUB: case.link, **hosts})


def tell(case: Case, codec: str, found: dict[str, Any], **of: Any) -> None:
    """A line of JSON: what was measured, and how often the bound it took."""
    over = {"over_bound": round(found["applied_s"] / case.bound_s, 3)} if case.bound_s else {}
    figures = {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}
    line = {**of, "codec": codec, **case.told, **figures, **over, "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(line), flush=True)


def run(case: Case, args: argparse.Namespace, directory: Path) -> None:
    """The case that bars are of."""
    for codec in args.codec or list(CODECS):
        found = measure(case, codec, args.rounds, directory / codec)
        tell(case, codec, found)
        if case.bound_s:
            bar(f"{codec}_over_bound", found["applied_s"] / case.bound_s, "ratio")
        else:
            bar(f"{codec}_loopback_s", found["applied_s"], "s")
    if args.gloo:
        tell(case, "gloo", _gloo(case, args.rounds))


def run_presets(cases: Mapping[str, Case], args: argparse.Namespace, directory: Path) -> None:
    """Other cases, without bars."""
    for name, case in cases.items():
        for codec in args.codec or list(CODECS):
            tell(case, codec, measure(case, codec, args.rounds, directory / f"{name}-{codec}"), preset=name)
        if args.gloo:
            tell(case, "gloo", _gloo(case, args.rounds), preset=name)


def _gloo(case: Case, rounds: int) -> dict[str, Any]:
    from bench.peers.gloo import measure as measure_gloo

    with network(case) as wan:
        return measure_gloo(wan, case.peers, case.values, rounds)


def run_thin(case: Case, codec: str, rounds: int, directory: Path) -> None:
    """Rounds without the thin link, and with it."""
    thin = case.thinner()
    if not thin.of_peers[-1].up_mbit:
        raise SystemExit("--thin needs emulated links: a rate, and no --loopback")
    found = {}
    for name, one in (("even", case), ("thin", thin)):
        found[name] = measure(one, codec, rounds, directory / name)
        tell(one, codec, found[name])
    longer_s = found["thin"]["applied_s"] - found["even"]["applied_s"]
    bar("slow_link_penalty", longer_s / thin.own_s(codec), "ratio")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway, of the first case")
    parser.add_argument("--codec", nargs="+", choices=list(CODECS), help="all, unless named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=int, default=Case.peers)
    parser.add_argument("--values", type=int, help=f"{Case.values:,}, and {PRESET_VALUES:,} of presets")
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--one-way-ms", type=float, default=20.0)
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets that each link loses")
    parser.add_argument("--parts", type=int, default=Case.parts)
    parser.add_argument("--loopback", action="store_true", help="no emulated links: needs no root")
    parser.add_argument(
        "--presets", nargs="*", metavar="NAME", choices=list(presets(0)), help="all of them, unless named"
    )
    parser.add_argument(
        "--thin", action="store_true", help="what a link that is ten times thinner costs, only"
    )
    parser.add_argument("--gloo", action="store_true", help="the same in torch.distributed")
    parser.add_argument("--quick", action="store_true", help="few values on loopback: a check, no result")
    parser.add_argument("--keep", type=Path, help="keep logs and disks here")
    args = parser.parse_args(argv)
    head(argv)
    link = Link(args.mbit, args.mbit, args.one_way_ms / 2000, args.loss)
    case = Case(args.peers, args.values or Case.values, None if args.loopback else link, parts=args.parts)
    if args.quick:
        case, args.rounds = replace(case, peers=2, values=200_000, link=None), 2
    cases = presets(args.values or PRESET_VALUES)

    def play(directory: Path) -> None:
        if args.thin:
            run_thin(case, (args.codec or ["int8"])[0], args.rounds, directory)
        elif args.presets is not None:
            run_presets({name: cases[name] for name in args.presets or cases}, args, directory)
        else:
            run(case, args, directory)

    return played("allreduce", args.keep, play)


if __name__ == "__main__":
    sys.exit(main())
