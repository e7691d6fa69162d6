"""The kill and the join of ``bench.faults`` in torchft, on the same emulated links."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.wan import Link, Wan

VALUES = 525_568
"""As many as the model of the kill trials has parameters."""

STATE_BYTES = 100_000_000
PAUSE_S = 0.2
TIMEOUT_S = 10.0
"""Of process group and manager. With torchft's own 60 s the survivors did not commit within 120 s."""

LIGHTHOUSE = ("--min_replicas", "2", "--quorum_tick_ms", "100", "--join_timeout_ms", "10000")
"""The last two as in torchft's README."""

LIMIT_S = 120.0
PORT = 29_510
WORKER = Path(__file__).with_name("torchft_worker.py")


class Replica:
    """One worker's process and what it said."""

    def __init__(self, process: subprocess.Popen[Any], changed: threading.Condition) -> None:
        self.process, self.changed = process, changed
        self.said: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                with self.changed:
                    self.said.append(json.loads(line))
                    self.changed.notify_all()

    def find(self, since: float, **wanted: Any) -> dict[str, Any] | None:
        """The first line since then with these values (None: any)."""
        for line in list(self.said):
            fits = all(key in line and value in (None, line[key]) for key, value in wanted.items())
            if fits and line["at"] > since:
                return line
        return None


class Swarm:
    """Lighthouse and replicas on a WAN."""

    def __init__(self, wan: Wan, python: str, directory: Path, state_bytes: int) -> None:
        self.wan, self.python, self.directory, self.state_bytes = wan, python, directory, state_bytes
        self.changed = threading.Condition()
        self.replicas: dict[str, Replica] = {}
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
        }
        command = ["env", "GLOO_SOCKET_IFNAME=wan0", "OMP_NUM_THREADS=1", self.python]
        command += [str(WORKER), json.dumps(options)]
        with (self.directory / f"{name}.log").open("wb") as log:
            process = self.wan.start(host, self._named(host, command), stdout=subprocess.PIPE, stderr=log)
        self.replicas[name] = Replica(process, self.changed)
        return self.replicas[name]

    def until(self, what: str, happened: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + LIMIT_S
        with self.changed:
            while not (found := happened()):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"torchft: {what}: not within {LIMIT_S:.0f} s")
                self.changed.wait(0.2)
        return found

    def together(self, members: int) -> None:
        """Wait for a step with so many in it, from now on."""
        now = time.monotonic()
        for replica in self.replicas.values():
            self.until(f"a step of {members}", lambda r=replica: r.find(now, committed=True, members=members))


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
            swarm = Swarm(wan, python, Path(scratch), max(4, state_bytes))
            for number, host in enumerate(hosts[:peers]):
                swarm.start(f"r{number}", host)
            try:
                swarm.together(peers)
                yield {name: [trial(swarm, hosts, round_) for round_ in range(times)]}
            except TimeoutError as late:
                logs = {p.stem: p.read_text()[-300:] for p in Path(scratch).glob("*.log")}
                yield {name: None, "why": str(late), "logs": logs}


def _kill(swarm: Swarm, hosts: list[str], trial: int) -> float:
    names = list(swarm.replicas)
    peers, victim = len(names), swarm.replicas[names[1]]
    now = time.monotonic()
    swarm.until("an exchange", lambda: victim.find(now, exchanging=None, members=peers))
    at = time.monotonic()
    # The leader of the process group is a shell's successor: what is killed is the replica itself.
    victim.process.send_signal(signal.SIGKILL)
    del swarm.replicas[names[1]]
    found = [
        swarm.until("the next step", lambda r=r: r.find(at, committed=True, members=peers - 1))
        for r in swarm.replicas.values()
    ]
    swarm.start(f"r{peers + trial}", hosts[int(names[1][1:])] if trial == 0 else hosts[peers])
    with contextlib.suppress(TimeoutError):
        swarm.together(peers)
    return round(min(line["at"] for line in found) - at, 3)


def _join(swarm: Swarm, hosts: list[str], trial: int) -> dict[str, float]:
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
