"""The kill and the join of ``bench.faults`` in hivemind, on the same emulated links."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.swarm import PAUSE_S, STATE_BYTES, VALUES, Replica, Swarm
from bench.wan import Link, Wan

AVERAGER = {
    "target_group_size": 16,
    "min_matchmaking_time": 5.0,
    "request_timeout": 1.0,
    "next_chunk_timeout": 5.0,
    "allreduce_timeout": 15.0,
}
"""The group as the averager's documentation recommends, matchmaking and requests as in hivemind's
``benchmark_averaging.py`` (``hivemind.Optimizer`` says: 3 to 5 s on small networks, 10 to 15 s over the
internet), and for the last two the rules of ``hivemind.Optimizer``: as long as matchmaking, and as a step.
"""

STEP_S = 15.0
"""As in ``benchmark_averaging.py``."""

WORKER = Path(__file__).with_name("hivemind_worker.py")


class Hivemind(Swarm):
    """The DHT's initial peer and workers on a WAN."""

    system = "hivemind"

    def __init__(self, wan: Wan, python: str, directory: Path, state_bytes: int, **changed: object) -> None:
        super().__init__()
        self.wan, self.python, self.directory, self.state_bytes = wan, python, directory, state_bytes
        self.changed_options = changed
        self.initial: list[str] = []
        hub = self._play("hub", "hub", {})
        self.initial = self.until("the DHT's initial peer", lambda: hub.find(0, peers=None))["peers"]

    def start(self, name: str, host: str, *, joins: bool = False) -> Replica:
        options = {
            "values": VALUES,
            "state_bytes": self.state_bytes,
            "averager": AVERAGER,
            "step_s": STEP_S,
            "pause_s": PAUSE_S,
            "joins": joins,
            **self.changed_options,
        }
        self.replicas[name] = self._play(name, host, options)
        return self.replicas[name]

    def _play(self, name: str, host: str, options: dict[str, Any]) -> Replica:
        mine = {
            "name": name,
            "address": self.wan.address(host),
            "directory": str(self.directory),
            "initial_peers": self.initial,
            **options,
        }
        # What one that is killed leaves in shared memory goes with its mount namespace, or with the logs.
        command = ["sh", "-c", 'mount -t tmpfs shm /dev/shm && exec "$@"', "sh", "env", "OMP_NUM_THREADS=1"]
        command += [f"TMPDIR={self.directory}", self.python, str(WORKER), json.dumps(mine)]
        with (self.directory / f"{name}.log").open("wb") as log:
            process = self.wan.start(host, command, stdout=subprocess.PIPE, stderr=log)
        return Replica(process, host, self.changed)

    def kill(self, name: str) -> float:
        """SIGKILL to all processes of a worker: its own, its DHT's and averager's, and p2pd. Returns when."""
        at = time.monotonic()
        os.killpg(self.replicas.pop(name).process.pid, signal.SIGKILL)
        return at


def measure(python: str, link: Link, peers: int, trials: int, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Seconds from a SIGKILL in the middle of an exchange to the end of the round that it fell into and to
    that of the next one, which is of all survivors, and from a joiner's start (its imports done) to its
    first round; or why there is no figure.
    """
    hosts = [f"h{number}" for number in range(1, peers + 2)]
    cases = {"kill": (0, trials, _kill), "join": (STATE_BYTES, max(1, trials // 2), _join)}
    for name in wanted:
        state_bytes, times, trial = cases[name]
        links = dict.fromkeys(("hub", *hosts), link)
        with tempfile.TemporaryDirectory(prefix="potluck-hivemind-") as scratch, Wan(links) as wan:
            try:
                swarm = Hivemind(wan, python, Path(scratch), max(4, state_bytes))
                for number, host in enumerate(hosts[:peers]):
                    swarm.start(f"r{number}", host)
                swarm.together(peers)
                found = [trial(swarm, hosts, round_) for round_ in range(times)]
                yield {name: found, **(_bound(link, found) if name == "join" else {})}
            except TimeoutError as late:
                logs = {p.stem: p.read_text()[-300:] for p in Path(scratch).glob("*.log")}
                yield {name: None, "why": str(late), "logs": logs}


def _bound(link: Link, joins: list[dict[str, float]]) -> dict[str, Any]:
    """Joins over the time in which a link carries the state."""
    bound_s = STATE_BYTES * 8 / (link.down_mbit * 1e6)
    return {"bound_s": bound_s, "over_bound": [round(join["committed_s"] / bound_s, 2) for join in joins]}


def _kill(swarm: Hivemind, _: list[str], trial: int) -> dict[str, float]:
    name = list(swarm.replicas)[1]
    peers, victim = len(swarm.replicas), swarm.replicas[name]
    now = time.monotonic()
    swarm.until("an exchange", lambda: victim.find(now, exchanging=None))
    at = swarm.kill(name)
    left = sorted(swarm.replicas)
    ended = [
        swarm.until("the round's end", partial(r.find, at, committed=True)) for r in swarm.replicas.values()
    ]
    whole = [
        swarm.until("the next round", partial(r.find, at, committed=True, names=left))
        for r in swarm.replicas.values()
    ]
    swarm.start(f"r{peers + trial}", victim.host)
    with contextlib.suppress(TimeoutError):
        swarm.together(peers)
    return {
        "ended_s": round(max(line["at"] for line in ended) - at, 3),
        "survivors_s": round(max(line["at"] for line in whole) - at, 3),
    }


def _join(swarm: Hivemind, hosts: list[str], trial: int) -> dict[str, float]:
    peers, name = len(swarm.replicas), f"j{trial}"
    joiner = swarm.start(name, hosts[-1], joins=True)
    ready = swarm.until("the joiner starts", lambda: joiner.find(0, ready=True))
    loaded = swarm.until("the joiner's state", lambda: joiner.find(0, loaded=True))
    inside = swarm.until(
        "its first round", lambda: joiner.find(loaded["at"], committed=True, members=peers + 1)
    )
    swarm.kill(name)
    with contextlib.suppress(TimeoutError):
        swarm.together(peers)
    return {"joined_s": loaded["at"] - ready["at"], "committed_s": inside["at"] - ready["at"]}
