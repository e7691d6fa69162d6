"""What a training loop that holds the interpreter takes from the network's thread, and the other way round.

    python -m bench.busy [--rounds 5] [--codec int8] [--values 25000000]

Two real peers exchange on emulated links. The trainer of the first sleeps between its steps (``asleep``), or
spins in pure Python without a pause: in its own process, where the network's thread has to ask for the
interpreter (``thread``), or in another one beside it, as if the network had its own process (``process``,
without what it would cost to hand vectors over). The trainer of the second always sleeps.

Prints for each case the seconds of a round, and how many turns the loop made in a second of an exchange, as a
share of those between two exchanges.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.allreduce import BETWEEN_S, PACE_S, WARM, Case, Play, _when, network, options
from bench.exchanger import STEP_TOKENS
from bench.stage import ROOT, START_S, Actor, Stage, bar, played

from potluck.codecs import CODECS
from potluck.recipe import Recipe, Rounds

CASES = ("asleep", "thread", "process")


class Busy(Play):
    """A swarm whose first peer may have a trainer that spins."""

    def __init__(self, stage: Stage, case: Case, kind: str) -> None:
        super().__init__(stage, case)
        self._kind = kind

    def start(self) -> None:
        stage = self.stage
        stage.start_hub()
        what = "spin" if self._kind == "thread" else "exchange"
        stage.play(what, "p1", "h1", recipe=stage.recipe.to_toml())
        stage.play("exchange", "p2", "h2")
        for actor in stage.actors:
            stage.until(f"{actor.name} joins", START_S, partial(actor.first, "joined"))

    def windows(self, rounds: int) -> list[tuple[float, float]]:
        """When each round that was measured began and ended."""
        found = []
        for number in self._committed()[WARM:][:rounds]:
            line = self.round(number)
            opened = [_when(a, "opened", number) for a in self.stage.actors]
            began = min(o["at"] for o in opened if o)
            assert line is not None
            found.append((began, began + line["applied_s"]))
        return found


def shares(counts: list[tuple[float, int]], windows: list[tuple[float, float]]) -> float:
    """Turns in a second of the windows, over those in a second between them; ``counts`` are (time, turns)."""
    turns, seconds = [0.0, 0.0], [0.0, 0.0]
    first, last = windows[0][0], windows[-1][1]
    for (at, count), (until, more) in itertools.pairwise(counts):
        if first <= at and until <= last:
            inside = any(began <= at and until <= ended for began, ended in windows)
            outside = all(until <= began or ended <= at for began, ended in windows)
            if inside or outside:
                turns[inside] += more - count
                seconds[inside] += until - at
    return (turns[True] / seconds[True]) / (turns[False] / seconds[False])


def measure(kind: str, codec: str, case: Case, rounds: int, directory: Path) -> dict[str, Any]:
    """Medians of the rounds of one swarm."""
    tokens = int(case.peers * BETWEEN_S / PACE_S * STEP_TOKENS)
    recipe = Recipe(name="busy", rounds=Rounds(tokens=tokens, codec=codec, grace_s=30.0, snapshot_every=1000))
    directory.mkdir(parents=True, exist_ok=True)
    beside: list[tuple[float, int]] = []
    with network(case) as wan, Stage(wan, directory, recipe, options(case)) as stage:
        play = Busy(stage, case, kind)
        play.start()
        spinning = _beside(beside) if kind == "process" else None
        try:
            found = play.rounds(rounds)
        finally:
            if spinning is not None:
                spinning.kill()
                spinning.wait()
        counts = beside or _counts(stage.actors[0])
        share = round(shares(counts, play.windows(rounds)), 3) if counts else None
    medians = {key: round(statistics.median(one[key] for one in found), 3) for key in found[0]}
    return {**medians, "all_s": [round(one["applied_s"], 3) for one in found], "training": share}


def _beside(counts: list[tuple[float, int]]) -> subprocess.Popen[str]:
    """A process that spins; what it tells goes into ``counts``."""
    command = [sys.executable, "-m", "bench.spinner"]
    spinning = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def read() -> None:
        assert spinning.stdout is not None
        with spinning.stdout:
            for line in spinning.stdout:
                told = json.loads(line)
                counts.append((told["at"], told["loops"]))

    threading.Thread(target=read, daemon=True).start()
    return spinning


def _counts(actor: Actor) -> list[tuple[float, int]]:
    return [(line["at"], line["loops"]) for line in list(actor.said) if "loops" in line]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--codec", choices=list(CODECS), default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--values", type=int, default=Case.values)
    parser.add_argument("--only", choices=CASES, nargs="+", default=CASES)
    parser.add_argument("--bar", action="store_true", help="the bar is printed anyway, of two cases")
    parser.add_argument("--quick", action="store_true", help="few values on loopback: a check, no result")
    args = parser.parse_args(argv)
    case = Case(peers=2, values=args.values)
    if args.quick:
        case, args.rounds = replace(case, values=200_000, link=None), 2

    def play(directory: Path) -> None:
        found = {}
        for kind in args.only:
            found[kind] = measure(kind, args.codec, case, args.rounds, directory / kind)
            print(json.dumps({"case": kind, **found[kind], "load": round(os.getloadavg()[0], 1)}), flush=True)
        if {"asleep", "thread"} <= found.keys():
            bar("busy_over_asleep", found["thread"]["applied_s"] / found["asleep"]["applied_s"], "ratio")

    return played("busy", None, play)


if __name__ == "__main__":
    sys.exit(main())
