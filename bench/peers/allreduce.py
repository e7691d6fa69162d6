"""The all-reduce case of ``bench.allreduce`` in other systems, on the same links and in the same minutes.

    python -m bench.peers.allreduce --bar [--rounds 3] --hivemind PYTHON --torchft PYTHON

Four peers, 100 Mbit/s each way, 20 ms one way, 25 million values, of which each has its own. Beside Potluck
(``int8`` and ``fp32``): gloo, torch's own; torchft, which is gloo below; hivemind in fp32 and in eight bits.
A system that has no environment is left out, with a line that says so; see README.md. Needs root.

Seconds of a round are from when the first peer begins to exchange to when the last one has the mean, in the
median. ``with_gathering_s`` has in it what comes before: torchft's quorum, hivemind's search for a group.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import allreduce
from bench.allreduce import Case, network
from bench.heading import head
from bench.peers import gloo
from bench.peers.hivemind_faults import AVERAGER, Hivemind
from bench.peers.swarm import Replica, Swarm, available
from bench.peers.torchft_faults import Torchft
from bench.stage import Late, bar, ends_on_sigterm
from bench.wan import Wan

PATIENCE_S = 120.0
"""Of those waiting times that end a round: the ones of the faults are shorter than this takes."""

EIGHT_BITS = "Uniform8BitQuantization"
"""hivemind's own."""


def measure(swarm: Swarm, case: Case, rounds: int) -> dict[str, Any]:
    """Median seconds of so many rounds of everybody; the first is not counted, as in ``bench.allreduce``."""
    for number in range(case.peers):
        swarm.start(f"r{number}", f"h{number + 1}")  # type: ignore[attr-defined]
    replicas = list(swarm.replicas.values())

    def enough() -> list[tuple[float, float]] | None:
        found = whole(replicas, case.peers)
        return found[1 : rounds + 1] if len(found) > rounds else None

    took = swarm.until(f"{rounds} rounds", enough)
    return {
        "applied_s": statistics.median(exchange for exchange, _ in took),
        "with_gathering_s": statistics.median(round_ for _, round_ in took),
        "all_s": [round(exchange, 3) for exchange, _ in took],
    }


def whole(replicas: Sequence[Replica], peers: int) -> list[tuple[float, float]]:
    """Seconds of each round that all had together: of its exchange, and with what comes before."""
    first, *others = [rounds_of(replica, peers) for replica in replicas]
    found = []
    for mine in first:
        theirs = [
            next((one for one in other if one[0] < mine[1] and mine[0] < one[1]), None) for other in others
        ]
        together = [mine, *(one for one in theirs if one is not None)]
        if len(together) == peers:
            exchange_s = max(end for _, end, _ in together) - min(start for start, _, _ in together)
            found.append((exchange_s, max(took_s for _, _, took_s in together)))
    return found


def rounds_of(replica: Replica, peers: int) -> list[tuple[float, float, float]]:
    """When each round of all began to exchange and when it ended, as one worker said; its seconds in all."""
    found, began = [], 0.0
    for line in list(replica.said):
        if "exchanging" in line:
            began = line["at"]
        elif line.get("committed") and line["members"] == peers and began:
            # hivemind calls a round a success though parts were not averaged: their values keep their spread.
            if line.get("spread", 0.0) < 1.1 / peers**0.5:
                found.append((began, line["at"], line["took_s"]))
            began = 0.0
    return found


def hivemind(python: str, case: Case, rounds: int, directory: Path, compression: str) -> dict[str, Any]:
    """With the options of the faults, but for those that would end a round before it is through."""
    averager = {**AVERAGER, "allreduce_timeout": PATIENCE_S}
    changed = {
        "values": case.values,
        "averager": averager,
        "step_s": PATIENCE_S,
        "compression": compression,
        "renewed": True,
    }
    with network(case) as wan:
        assert isinstance(wan, Wan), "the case has a link"
        return measure(Hivemind(wan, python, directory, 4, **changed), case, rounds)


def torchft(python: str, case: Case, rounds: int, directory: Path) -> dict[str, Any]:
    """As ``hivemind``."""
    with network(case) as wan:
        assert isinstance(wan, Wan), "the case has a link"
        swarm = Torchft(wan, python, directory, 4, values=case.values, timeout_s=PATIENCE_S)
        return measure(swarm, case, rounds)


def run(case: Case, args: argparse.Namespace, directory: Path) -> None:
    rounds = args.rounds
    systems: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
        "potluck int8": ("", lambda at: allreduce.measure(case, "int8", rounds, at)),
        "potluck fp32": ("", lambda at: allreduce.measure(case, "fp32", rounds, at)),
        "gloo": ("", lambda at: _gloo(case, rounds)),
        "torchft": ("torchft", lambda at: torchft(args.torchft, case, rounds, at)),
        "hivemind fp32": (
            "hivemind",
            lambda at: hivemind(args.hivemind, case, rounds, at, "NoCompression"),
        ),
        "hivemind uint8": ("hivemind", lambda at: hivemind(args.hivemind, case, rounds, at, EIGHT_BITS)),
    }
    for name, (environment, one) in systems.items():
        if args.only and name not in args.only:
            continue
        if environment and not available(name, getattr(args, environment)):
            continue
        place = directory / name.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        try:
            tell(case, name, one(place))
        except (TimeoutError, Late) as late:
            print(json.dumps({"system": name, "failed": str(late)[:300]}), flush=True)


def _gloo(case: Case, rounds: int) -> dict[str, Any]:
    with network(case) as wan:
        return gloo.measure(wan, case.peers, case.values, rounds)


def tell(case: Case, system: str, found: dict[str, Any]) -> None:
    figures = {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}
    line = {"system": system, **case.told, **figures, "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(line), flush=True)
    bar("allreduce_over_bound", found["applied_s"] / case.bound_s, "ratio", system=system)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--values", type=int, default=Case.values)
    parser.add_argument("--only", nargs="+", help="systems, as the lines name them")
    parser.add_argument("--hivemind", default="", help="Python of an environment with hivemind")
    parser.add_argument("--torchft", default="", help="Python of an environment with torchft")
    parser.add_argument("--keep", type=Path, help="keep logs here")
    args = parser.parse_args(argv)
    head(argv)
    with ends_on_sigterm(), tempfile.TemporaryDirectory(prefix="potluck-peers-") as scratch:
        run(Case(values=args.values), args, args.keep or Path(scratch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
