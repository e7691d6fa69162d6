"""Real processes for tests: started, watched line by line, and always ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import potluck

PROGRAM = Path(__file__).with_name("peer_program.py")


class Peer:
    """One peer's process and what it said; ``release`` is where another Potluck than ours lies."""

    def __init__(self, *arguments: str, release: Path | None = None, program: Path = PROGRAM) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | ({"PYTHONPATH": str(release)} if release else {}),
        )
        self.name = arguments[2]
        self.said: list[dict[str, Any]] = []
        self.other: list[str] = []
        self._new: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self._new.put(json.loads(line))
            else:
                self.other.append(line)

    def wait(self, key: str, timeout_s: float, containing: str = "") -> dict[str, Any]:
        """The next line that has this key."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                said = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                tail = "".join(self.other[-20:])
                raise AssertionError(
                    f"{self.name} did not say {key!r}; it said {self.said[-5:]}\n{tail}"
                ) from None
            self.said.append(said)
            if key in said and containing in str(said[key]):
                return said

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> float:
        """SIGKILL; returns when, by the monotonic clock."""
        self.signal(signal.SIGKILL)
        at = time.monotonic()
        self.process.wait(10)
        return at

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Swarm:
    """A hub, peers, and an observer in this process that follows the run."""

    def __init__(
        self, directory: Path, rounds: int, epochs: int = 0, hub: str = "", fragments: int = 1
    ) -> None:
        self.directory, self._data = directory, [f"epochs={epochs}"]
        self.peers: dict[str, Peer] = {}
        self.events: list[tuple[float, str]] = []
        self._lock = threading.Condition()
        more = [*self._data, f"fragments={fragments}", *([f"hub={hub}"] if hub else [])]
        self.peers["p1"] = Peer("host", str(directory / "p1"), "p1", str(rounds), *more)
        self.invite: str = self.peers["p1"].wait("invite", 60)["invite"]
        self.observer = potluck.join(
            self.invite,
            name="observer",
            directory=directory / "observer",
            listen="127.0.0.1",
            trains=False,
            watch=self._event,
        )

    def _event(self, text: str) -> None:
        with self._lock:
            self.events.append((time.monotonic(), text))
            self._lock.notify_all()

    def join(self, *names: str, release: Path | None = None, **options: float) -> None:
        """Start peers, and wait until they have the run's state."""
        more = [*self._data, *(f"{key}={value}" for key, value in options.items())]
        for name in names:
            if name in self.peers:
                self.peers[name].end()
            where = str(self.directory / name)
            self.peers[name] = Peer("join", where, name, self.invite, *more, release=release)
        for name in names:
            self.peers[name].wait("joined", 60)

    def until(self, happened: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for something that events announce (or the next look, half a second later)."""
        deadline = time.monotonic() + timeout_s
        # The lock is not held meanwhile: what is asked may need the thread that brings events.
        while not happened():
            left = deadline - time.monotonic()
            tail = "\n".join(f"{t - deadline + timeout_s:7.2f} {text}" for t, text in self.events[-25:])
            assert left > 0, f"{what} did not happen within {timeout_s} s\n{tail}"
            with self._lock:
                self._lock.wait(min(left, 0.05))

    @property
    def view(self) -> Any:
        return self.observer.view

    def members(self, round_: int) -> set[str]:
        names = {p.member: p.name for p in self.observer.peers} | self._names
        return {names.get(m, "?") for m in self.view.members.get(round_, ())}

    @property
    def _names(self) -> dict[Any, str]:
        heard = self.observer._node.core.swarm._heard
        return {h.progress.member: h.progress.name for h in list(heard.values())}

    def contributors(self, round_: int) -> set[str]:
        """Names of those whose work is in every part of a committed round."""
        commit, members = self.view.commits[round_], self.view.members[round_]
        indices = set.intersection(*({i for i, _ in info.contributors} for info in commit.parts))
        return {self._names[members[i]] for i in indices}

    def wait_round(self, round_: int, timeout_s: float) -> None:
        self.until(lambda: self.view.round >= round_, timeout_s, f"round {round_}")

    def training(self) -> set[str]:
        return {p.name for p in self.observer.peers if p.phase == "training"}

    def end(self) -> None:
        self.observer.leave()
        for peer in self.peers.values():
            peer.end()
