"""The kill and the join of ``bench.faults`` in torchft, on the same emulated links."""

from __future__ import annotations

import contextlib
import json
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

TIMEOUT_S = 10.0
"""Of process group and manager. With torchft's own 60 s the survivors did not commit within 120 s."""

LIGHTHOUSE = ("--min_replicas", "2", "--quorum_tick_ms", "100", "--join_timeout_ms", "10000")
"""The last two as in torchft's README."""

PORT = 29_510
WORKER = Path(__file__).with_name("torchft_worker.py")


class Torchft(Swarm):
    """Lighthouse and replicas on a WAN."""

    system = "torchft"

    def __init__(self, wan: Wan, python: str, directory: Path, state_bytes: int, **changed: object) -> None:
        super().__init__()
        self.wan, self.python, self.directory, self.state_bytes = wan, python, directory, state_bytes
        self.changed_options = changed
        log = (directory / "lighthouse.log").open("wb")
        lighthouse = Path(python).with_name("torchft_lighthouse")
        command = [str(lighthouse), "--bind", f"[::]:{PORT}", *LIGHTHOUSE]
        with log:
            wan.start("hub", self._named("hub", command), stdout=log, stderr=log)

    def _named(self, host: str, command: list[str]) -> list[str]:
        """torchft tells others its host's name, so that has to be an address."""
        address = self.wan.address(host)
        return ["unshare", "--uts", "sh", "-c", f'hostname {address}; exec "$@"', "sh", *command]

    def start(self, name: str, host: str) -> Replica:
        options = {
            "name": name,
            "address": self.wan.address(host),
            "lighthouse": f"http://{self.wan.address('hub')}:{PORT}",
            "values": VALUES,
            "state_bytes": self.state_bytes,
            "pause_s": PAUSE_S,
            "timeout_s": TIMEOUT_S,
            **self.changed_options,
        }
        command = ["env", "GLOO_SOCKET_IFNAME=wan0", "OMP_NUM_THREADS=1", self.python]
        command += [str(WORKER), json.dumps(options)]
        with (self.directory / f"{name}.log").open("wb") as log:
            process = self.wan.start(host, self._named(host, command), stdout=subprocess.PIPE, stderr=log)
        self.replicas[name] = Replica(process, host, self.changed)
        return self.replicas[name]


def measure(python: str, link: Link, peers: int, trials: int, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Seconds from a SIGKILL in the middle of an exchange to the survivors' next committed step, and from a
    joiner's start (its imports done) to its first; or why there is no figure.
    """
    hosts = [f"h{number}" for number in range(1, peers + 2)]
    cases = {"kill": (0, trials, _kill), "join": (STATE_BYTES, max(1, trials // 2), _join)}
    for name in wanted:
        state_bytes, times, trial = cases[name]
        links = dict.fromkeys(("hub", *hosts), link)
        with tempfile.TemporaryDirectory(prefix="potluck-torchft-") as scratch, Wan(links) as wan:
            swarm = Torchft(wan, python, Path(scratch), max(4, state_bytes))
            for number, host in enumerate(hosts[:peers]):
                swarm.start(f"r{number}", host)
            try:
                swarm.together(peers)
                yield {name: [trial(swarm, hosts, round_) for round_ in range(times)]}
            except TimeoutError as late:
                logs = {p.stem: p.read_text()[-300:] for p in Path(scratch).glob("*.log")}
                yield {name: None, "why": str(late), "logs": logs}


def _kill(swarm: Torchft, _: list[str], trial: int) -> float:
    names = list(swarm.replicas)
    peers, victim = len(names), swarm.replicas[names[1]]
    now = time.monotonic()
    swarm.until("an exchange", lambda: victim.find(now, exchanging=None, members=peers))
    at = time.monotonic()
    # The leader of the process group is a shell's successor: what is killed is the replica itself.
    victim.process.send_signal(signal.SIGKILL)
    del swarm.replicas[names[1]]
    found = [
        swarm.until("the next step", partial(r.find, at, committed=True, members=peers - 1))
        for r in swarm.replicas.values()
    ]
    swarm.start(f"r{peers + trial}", victim.host)
    with contextlib.suppress(TimeoutError):
        swarm.together(peers)
    next_at: float = min(line["at"] for line in found)
    return round(next_at - at, 3)


def _join(swarm: Torchft, hosts: list[str], trial: int) -> dict[str, float]:
    peers = len(swarm.replicas)
    joiner = swarm.start(f"j{trial}", hosts[-1])
    ready = swarm.until("the joiner starts", lambda: joiner.find(0, ready=True))
    loaded = swarm.until("the joiner's state", lambda: joiner.find(0, loaded=True))
    inside = swarm.until(
        "its first step", lambda: joiner.find(loaded["at"], committed=True, members=peers + 1)
    )
    joiner.process.kill()
    del swarm.replicas[f"j{trial}"]
    with contextlib.suppress(TimeoutError):
        swarm.together(peers)
    return {"joined_s": loaded["at"] - ready["at"], "committed_s": inside["at"] - ready["at"]}
