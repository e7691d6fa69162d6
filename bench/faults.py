"""How long a fault holds a swarm up, behind an emulated WAN: bars in seconds, and a join against its bound.

    python -m bench.faults --bar [--trials 5] [--torchft PYTHON] [--hivemind PYTHON]

kill_to_commit_s      SIGKILL of one of four peers in the middle of an exchange, until the next commit
hub_kill_to_commit_s  SIGKILL of the hub in the middle of an exchange, until the next commit. It is started
                      again at once on its disk, as systemd or Kubernetes would.
join_over_bound       a peer that comes, with 100 MB of state to fetch, until the first commit that has its
                      work, over the time in which its link carries the state

``--torchft`` and ``--hivemind`` measure the same kill and join in those systems on the same links; see
bench/peers/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.heading import head
from bench.peers.swarm import available
from bench.stage import HUB, WATCHER, Actor, Stage, bar, played
from bench.wan import Link, Wan

from potluck.recipe import Outer, Recipe, Rounds

MBIT = 100.0
LINK = Link(MBIT, MBIT, 0.010)
"""20 ms one way between any two peers, 40 ms there and back."""

HOSTS = ["h1", "h2", "h3", "h4", "h5"]
PEERS = 4
LIMIT_S = 120.0
SETTLED = 2
"""Commits with everybody in them before each trial."""

# Half a million parameters in rounds of about 3 s: most of a trial is waiting, not arithmetic.
SMALL = {"width": 256, "inner": 1024, "batch": 16, "pace_s": 0.2}
# Two vectors (parameters and outer momentum) of 12.5 million fp32 numbers. Steps take next to no time, for
# two cores have to carry five peers: else the trial would measure the cores.
LARGE = {"values": 12_500_000, "batch": 4, "pace_s": 0.25}


def recipe(options: dict[str, Any], round_s: float, codec: str = "int8") -> Recipe:
    tokens = int(PEERS * options["batch"] / options["pace_s"] * round_s)
    rounds = Rounds(tokens=tokens, grace_s=3.0, snapshot_every=8, parts=16, codec=codec)
    return Recipe(name="faults", rounds=rounds, outer=Outer(kind="nesterov", lr=0.7, momentum=0.9))


STATE_BYTES = 2 * 4 * LARGE["values"]


class Trials:
    """One swarm, and what is done to it again and again."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._named = 0

    def start(self) -> None:
        self.stage.start({self._name(): host for host in HOSTS[:PEERS]})

    def _name(self) -> str:
        self._named += 1
        return f"p{self._named}"

    def peers(self) -> list[Actor]:
        return [a for a in self.stage.actors if a.alive and a.name != WATCHER]

    def settle(self) -> None:
        """Wait until rounds have everybody's work in them."""
        names, since = {a.name for a in self.peers()}, len(self.stage.commits())

        def settled() -> bool:
            whole = [c for c in self.stage.commits()[since:] if set(c["contributors"]) == names]
            return len(whole) >= SETTLED

        self.stage.until(f"{SETTLED} commits of {sorted(names)}", LIMIT_S, settled)

    def exchange(self) -> None:
        """Wait until a round opens: results are under way for some hundred milliseconds then."""
        seen = self.stage.watcher.last("opened")
        opened = seen["opened"] if seen else 0
        self.stage.until(
            "a round opens",
            LIMIT_S,
            lambda: (self.stage.watcher.last("opened") or {}).get("opened", 0) > opened,
        )

    def kill(self) -> float:
        """Seconds from the death of a member to the commit of the round that it died in."""
        self.settle()
        self.exchange()
        victim = self.peers()[1]
        took_s = self._until_commit(lambda: self.stage.kill(victim))
        self.stage.play("join", self._name(), victim.host)
        self.stage.until("the next one joins", LIMIT_S, lambda: self.peers()[-1].first("joined"))
        return took_s

    def hub(self) -> float:
        """Seconds from the hub's death to the next commit."""
        self.settle()
        self.exchange()

        def kill() -> float:
            at = self.stage.kill_hub()
            self.stage.start_hub()
            return at

        return self._until_commit(kill)

    def _until_commit(self, fault: Callable[[], float]) -> float:
        at = fault()
        found = self.stage.until(
            "the next commit", LIMIT_S, lambda: [c for c in self.stage.commits() if c["at"] > at]
        )
        return float(found[0]["at"] - at)

    def join(self) -> dict[str, float]:
        """A peer comes from nothing. Seconds from when its program has imported all, to each step; what it
        had received when it had the state.
        """
        self.settle()
        actor = self.stage.play("join", self._name(), HOSTS[-1])
        inside = self.stage.until("its work is in a commit", LIMIT_S, lambda: self._commit_with(actor.name))
        ready, joined = actor.first("ready"), actor.first("joined")
        assert ready is not None
        assert joined is not None
        self.stage.kill(actor)
        return {
            "joined_s": joined["at"] - ready["at"],
            "received_mb": joined["received"] / 1e6,
            "committed_s": inside["at"] - ready["at"],
        }

    def _commit_with(self, name: str) -> dict[str, Any] | None:
        return next((c for c in self.stage.commits() if name in c["contributors"]), None)


def potluck_faults(directory: Path, trials: int) -> dict[str, list[float]]:
    links = dict.fromkeys((HUB, WATCHER, *HOSTS), LINK)
    found: dict[str, list[float]] = {"kill": [], "hub": []}
    with Wan(links) as wan, Stage(wan, directory, recipe(SMALL, 3.0), SMALL) as stage:
        play = Trials(stage)
        play.start()
        for _ in range(trials):
            found["kill"].append(play.kill())
            found["hub"].append(play.hub())
    return found


def potluck_joins(directory: Path, trials: int, codec: str, round_s: float) -> list[dict[str, float]]:
    links = dict.fromkeys((HUB, WATCHER, *HOSTS), LINK)
    with Wan(links) as wan, Stage(wan, directory, recipe(LARGE, round_s, codec), LARGE) as stage:
        play = Trials(stage)
        play.start()
        return [play.join() for _ in range(trials)]


def tell(what: str, **values: Any) -> None:
    print(json.dumps({"what": what, **values, "load": round(os.getloadavg()[0], 1)}), flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway: they are all there is")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--only", action="append", choices=["kill", "join"])
    parser.add_argument("--codec", default="topk", help="of the rounds that a joiner finds")
    parser.add_argument("--round-s", type=float, default=2.0, help="training in a round that a joiner finds")
    parser.add_argument("--keep", type=Path, help="keep logs and disks here")
    parser.add_argument("--torchft", help="Python of an environment with torchft: measured as well")
    parser.add_argument("--hivemind", help="the same, with hivemind")
    args = parser.parse_args(argv)
    head(argv)
    return played("faults", args.keep, lambda directory: run(args, directory))


def run(args: argparse.Namespace, directory: Path) -> None:
    wanted = args.only or ["kill", "join"]
    for what in ("kill", "join", "torchft"):
        (directory / what).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if "kill" in wanted:
        found = potluck_faults(directory / "kill", args.trials)
        tell("potluck", kill_s=found["kill"], hub_kill_s=found["hub"])
        bar("kill_to_commit_s", statistics.median(found["kill"]), "s")
        bar("hub_kill_to_commit_s", statistics.median(found["hub"]), "s")
    if "join" in wanted:
        joins = potluck_joins(directory / "join", args.trials, args.codec, args.round_s)
        bound_s = STATE_BYTES * 8 / (MBIT * 1e6)
        tell("potluck", joins=joins, bound_s=bound_s)
        bar("join_over_bound", statistics.median(j["committed_s"] for j in joins) / bound_s, "ratio")
    if args.torchft and available("torchft", args.torchft):
        from bench.peers.torchft_faults import measure

        for line in measure(args.torchft, LINK, PEERS, args.trials, wanted):
            tell("torchft", **line)
    if args.hivemind and available("hivemind", args.hivemind):
        from bench.peers.hivemind_faults import measure as measure_hivemind

        for line in measure_hivemind(args.hivemind, LINK, PEERS, args.trials, wanted):
            tell("hivemind", **line)
    tell("all", minutes=round((time.monotonic() - began) / 60, 1))


if __name__ == "__main__":
    sys.exit(main())
