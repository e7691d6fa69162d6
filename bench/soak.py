"""A run under fire: real processes behind an emulated WAN, killed, stopped and joined at random.

    python -m bench.soak --minutes 20 --bar     (or: make soak, make soak-short)

Up to eight peers with unequal links train a small model. Every 10 to 30 s one dies (SIGKILL; now and then
it stands still for a minute instead), every 10 to 30 s one joins (from nothing, or again with its disk), and
now and then the hub dies: its nats-server, or all of it, which is then started again on its disk. At the end
it says what was lost. That each block of the data is in the model exactly once it proves from the ledger, as
two of the peers kept it. It exits with 1 if something was that must not be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.heading import head
from bench.ledger import Account, Samples, account, journal, same
from bench.stage import HUB, WATCHER, Actor, Late, Stage, bar, ends_on_sigterm
from bench.wan import Link, Wan

from potluck.recipe import Data, End, Recipe, Rounds
from potluck.wire.records import Member

LINKS = {
    HUB: Link(200, 200, 0.002),
    WATCHER: Link(100, 100, 0.005),
    "h1": Link(100, 100, 0.005),
    "h2": Link(100, 100, 0.010),
    "h3": Link(50, 100, 0.010),
    "h4": Link(50, 50, 0.015, loss=0.0005),
    "h5": Link(40, 100, 0.020),
    "h6": Link(20, 50, 0.020, loss=0.001),
    "h7": Link(20, 100, 0.030),
    "h8": Link(10, 50, 0.040, loss=0.001),
}
"""From an office to a home far away."""

HOSTS = [name for name in LINKS if name.startswith("h") and name != HUB]
ANCHOR = "p1"
"""Is never killed: somebody has to be there for the whole time for memory to be watched."""

PACE_S, BATCH = 0.3, 16
TOKENS_PER_S = BATCH / PACE_S
ROUND_S = 4.0
STILL_S = 60.0
HUB_AWAY_S = 2.0
SETTLE_S = 60.0
"""How long the run may take to commit twice more after the last fault."""

BLOCKS, EPOCHS = 50, 1_000_000
"""Small epochs, of which many pass; so many that no run comes to their end."""

GOODPUT = 0.90
GROWTH = 0.05


@dataclass
class Plan:
    """How rough it gets. Times in seconds."""

    seconds: float
    start: int = 7
    least: int = 5
    between: tuple[float, float] = (10.0, 30.0)
    still_s: float = STILL_S
    hub_every: tuple[float, float] = (60.0, 120.0)


SHORT = Plan(60.0, start=5, least=4, between=(8.0, 16.0), still_s=10.0, hub_every=(20.0, 35.0))


@dataclass
class Memory:
    """Anonymous memory of processes over time: pid to (seconds since the start, bytes)."""

    seen: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))

    def look(self, at: float, processes: dict[str, int | None]) -> None:
        for name, pid in processes.items():
            size = _anonymous_bytes(pid) if pid else 0
            if size:
                self.seen[f"{name} {pid}"].append((at, size))

    def growth(self, half: float, end: float) -> tuple[float, dict[str, list[int]]]:
        """Of those that were there for the whole second half: last quarter of it over the first, less 1."""
        before = after = 0.0
        detail = {}
        for name, samples in self.seen.items():
            late = [(at, size) for at, size in samples if at >= half]
            if len(late) < 4 or late[0][0] > half + 15 or late[-1][0] < end - 15:
                continue
            quarter = len(late) // 4
            first = sum(size for _, size in late[:quarter]) / quarter
            last = sum(size for _, size in late[-quarter:]) / quarter
            before, after = before + first, after + last
            detail[name] = [round(first), round(last)]
        return (after / before - 1 if before else 0.0), detail


class Soak:
    """The play: who dies and who comes, drawn from a seed."""

    def __init__(self, stage: Stage, plan: Plan, seed: int) -> None:
        self.stage, self.plan = stage, plan
        self.dice = random.Random(seed)
        self.memory = Memory()
        self.began = 0.0
        self.faults: dict[str, int] = defaultdict(int)
        self._named = 0
        self._waking: list[tuple[float, Actor]] = []
        self._dead: list[str] = []

    def play(self) -> None:
        """Start, be rough for the plan's time, and let the run commit twice more."""
        names = {self._new_name(): HOSTS[index] for index in range(self.plan.start)}
        self.stage.start(names)
        self.began = time.monotonic()
        end = self.began + self.plan.seconds
        due = {what: self.began + self._pause(what) for what in ("death", "join", "hub")}
        looked = 0.0
        while (now := time.monotonic()) < end:
            for what in sorted(due, key=due.__getitem__):
                if now >= due[what]:
                    getattr(self, what)()
                    due[what] = time.monotonic() + self._pause(what)
            self._wake(now)
            if now - looked > 5:
                looked = now
                self._look()
            if fallen := self.stage.fallen():
                raise Late(f"{fallen[0].name} ended by itself: {fallen[0].log.read_text()[-3000:]}")
            with self.stage.changed:
                self.stage.changed.wait(0.2)
        self._wake(float("inf"))
        rounds = len(self.stage.commits())
        self.stage.until("two more commits", SETTLE_S, lambda: len(self.stage.commits()) >= rounds + 2)

    def _pause(self, what: str) -> float:
        return self.dice.uniform(*(self.plan.hub_every if what == "hub" else self.plan.between))

    def _new_name(self) -> str:
        self._named += 1
        return f"p{self._named}"

    def _up(self) -> list[Actor]:
        """Peers that are there and do not stand still."""
        still = {id(actor) for _, actor in self._waking}
        return [a for a in self.stage.actors if a.alive and a.name != WATCHER and id(a) not in still]

    def death(self) -> None:
        """A peer dies, or stands still."""
        victims = [a for a in self._up() if a.name != ANCHOR and a.first("joined")]
        if not victims or len(self._up()) <= self.plan.least:
            return
        victim = self.dice.choice(victims)
        if self.dice.random() < 0.15 and not self._waking:
            self._tell("stopped", victim.name)
            self.stage.stop(victim)
            self._waking.append((time.monotonic() + self.plan.still_s, victim))
            return
        self._tell("killed", victim.name)
        self.stage.kill(victim)
        self._dead.append(victim.name)

    def join(self) -> None:
        """A peer comes: a new one, or one that died, with its disk."""
        taken = {a.host for a in self.stage.actors if a.alive}
        free = [host for host in HOSTS if host not in taken]
        if not free:
            return
        again = self._dead and self.dice.random() < 0.5
        name = self._dead.pop(self.dice.randrange(len(self._dead))) if again else self._new_name()
        self._tell("joined again" if again else "joined", name)
        self.stage.play("join", name, self.dice.choice(free))

    def hub(self) -> None:
        """The hub dies, or its nats-server."""
        if self.dice.random() < 0.5:
            self._tell("killed nats-server of", HUB)
            self.stage.kill_nats()
            return
        self._tell("killed", HUB)
        self.stage.kill_hub()
        with self.stage.changed:
            self.stage.changed.wait_for(lambda: False, HUB_AWAY_S)
        self.stage.start_hub()

    def _wake(self, now: float) -> None:
        for at, actor in list(self._waking):
            if now >= at:
                self._waking.remove((at, actor))
                self._tell("goes on", actor.name)
                self.stage.resume(actor)

    def _tell(self, what: str, whom: str) -> None:
        self.faults[what] += 1
        said = {"fault": what, "whom": whom, "s": round(time.monotonic() - self.began, 1)}
        print(json.dumps(said), file=sys.stderr, flush=True)

    def _look(self) -> None:
        anchor = next(a for a in self.stage.actors if a.name == ANCHOR)
        assert self.stage.hub is not None
        processes = {
            ANCHOR: anchor.process.pid,
            WATCHER: self.stage.watcher.process.pid,
            HUB: self.stage.hub.pid,
            "nats-server": self.stage.nats(),
        }
        self.memory.look(time.monotonic() - self.began, processes)


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return 1024 * int(fields.get("RssAnon", "0 kB").split()[0])


# -- the reckoning -------------------------------------------------------------------------------


def digests(actors: list[Actor]) -> tuple[int, list[int]]:
    """How many rounds more than one peer reported, and those whose reports differ."""
    said: dict[int, dict[str, str]] = defaultdict(dict)
    for number, actor in enumerate(actors):
        for line in actor.said:
            if line.get("state"):
                said[line["round"]][f"{actor.name}-{number}"] = line["state"]
    compared = {r: set(told.values()) for r, told in said.items() if len(told) > 1}
    return len(compared), sorted(r for r, told in compared.items() if len(told) > 1)


def seconds_alive(actor: Actor, begin: float, end: float) -> float:
    """Within a window: from when its program could train until it ended, less the times it stood still."""
    ready = actor.first("ready")
    if ready is None:
        return 0.0
    ready_at: float = ready["at"]
    since, until = max(begin, ready_at), min(end, actor.ended or end)
    still = sum(max(0.0, min(b, until) - max(a, since)) for a, b in actor.stopped)
    return max(0.0, until - since) - still


def trained(actor: Actor, begin: float, end: float) -> float:
    """Tokens that a peer says it trained in a window."""
    counts = [(line["at"], line["trained"]) for line in actor.said if "trained" in line]
    inside = [count for at, count in counts if begin <= at <= end]
    before = [count for at, count in counts if at < begin]
    return (inside[-1] - (before[-1] if before else 0)) if inside else 0.0


def goodput(stage: Stage, began: float) -> dict[str, float]:
    """From the first commit after ``began`` to the last: tokens committed, trained, and possible."""
    commits = [line for line in stage.commits() if line["at"] >= began]
    begin, end = commits[0]["at"], commits[-1]["at"]
    peers = [a for a in stage.actors if a.name != WATCHER]
    possible = TOKENS_PER_S * sum(seconds_alive(a, begin, end) for a in peers)
    return {
        "seconds": round(end - begin, 1),
        "rounds": len(commits) - 1,
        "committed": sum(line["tokens"] for line in commits[1:]),
        "trained": sum(trained(a, begin, end) for a in peers),
        "possible": round(possible),
    }


def lost_rounds(stage: Stage) -> int:
    """Rounds opened again, and numbers that no commit has."""
    commits: list[int] = [line["commit"] for line in stage.commits()]
    gaps = commits[-1] - commits[0] + 1 - len(set(commits))
    seen = stage.watcher.last("reopened")
    reopened: int = seen["reopened"] if seen else 0
    return gaps + reopened


def batches(actors: list[Actor]) -> dict[Member, set[Samples]]:
    """What each life of a peer said it trains on."""
    said: dict[Member, set[Samples]] = {}
    for actor in actors:
        joined = actor.first("session")
        if joined is not None:
            lines = [tuple(line["samples"]) for line in actor.said if "samples" in line]
            said[Member(joined["peer"], joined["session"])] = set(lines)
    return said


def data_account(stage: Stage) -> tuple[Account, bool]:
    """What the ledger says of the data, and whether two peers' copies of it are the same."""
    mine, other = journal(stage.directory / WATCHER), journal(stage.directory / ANCHOR)
    return account(mine, batches(stage.actors)), same(mine, other)


def judge(soak: Soak, plan: Plan, *, strict: bool) -> bool:
    """Print bars and what is behind them; whether all is as it must be."""
    stage = soak.stage
    work = goodput(stage, soak.began)
    compared, differ = digests(stage.actors)
    growth, sizes = soak.memory.growth(plan.seconds / 2, plan.seconds)
    data, agree = data_account(stage)
    once = data.sound and agree
    lost, share = lost_rounds(stage), work["committed"] / max(1, work["possible"])
    behind: dict[str, Any] = {
        "faults": dict(soak.faults),
        "work": work,
        "trained_over_possible": round(work["trained"] / max(1, work["possible"]), 4),
        "committed_over_trained": round(work["committed"] / max(1, work["trained"]), 4),
        "rounds_compared": compared,
        "rounds_that_differ": differ,
        "blocks_included": sum(data.included.values()),
        "epochs_passed": data.passed,
        "blocks_waiting": data.waiting,
        "blocks_twice": data.twice[:10],
        "blocks_untrained": data.untrained[:10],
        "blocks_balanced": data.balanced,
        "ledgers_agree": agree,
        "memory_bytes": sizes,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(behind), flush=True)
    bar("rounds_lost", lost, "rounds")
    bar("digests_equal", float(compared > 0 and not differ), "1 or 0")
    bar("blocks_exactly_once", float(once), "1 or 0")
    bar("goodput", share, "ratio")
    if sizes:
        bar("memory_growth", growth, "ratio")
    bar("orphans", stage.orphans, "processes")
    sound = not lost and compared > 0 and not differ and once and not stage.orphans
    return sound and (not strict or (share >= GOODPUT and bool(sizes) and growth < GROWTH))


def recipe(peers: int) -> Recipe:
    """Rounds of about ``ROUND_S`` when so many peers train."""
    tokens = int(peers * TOKENS_PER_S * ROUND_S)
    data = Data(samples=BLOCKS * BATCH, block=BATCH)
    end = End(epochs=EPOCHS)
    return Recipe(
        name="soak", data=data, end=end, rounds=Rounds(tokens=tokens, grace_s=3.0, snapshot_every=4, parts=16)
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--short", action="store_true", help="a minute of it; goodput and memory don't count")
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway: they are all there is")
    parser.add_argument(
        "--seed", type=int, default=0, help="of who dies when (what follows is not repeatable)"
    )
    parser.add_argument("--keep", type=Path, help="keep logs and disks here")
    args = parser.parse_args(argv)
    head(argv)
    plan = SHORT if args.short else Plan(60 * args.minutes)
    with ends_on_sigterm(), tempfile.TemporaryDirectory(prefix="potluck-soak-") as scratch:
        directory = args.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        options = {"pace_s": PACE_S, "batch": BATCH}
        with Wan(LINKS) as wan, Stage(wan, directory, recipe(plan.start), options) as stage:
            soak = Soak(stage, plan, args.seed)
            try:
                soak.play()
            except Late as late:
                print(late, file=sys.stderr)
                return 1
        return 0 if judge(soak, plan, strict=not args.short) else 1


if __name__ == "__main__":
    sys.exit(main())
