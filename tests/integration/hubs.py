"""Hubs as processes of their own, for tests: watched line by line, killed, stopped, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from potluck.hub.service import TOKEN_FILE
from potluck.wire.invite import Invite


class HubProcess:
    """One hub, up when this returns."""

    def __init__(self, directory: Path, token: str = "") -> None:
        options = {"directory": str(directory), "host": "127.0.0.1", "port": 0, "until_idle_s": None}
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "potluck.hub", json.dumps(options | {"token": token})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._new: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        said = json.loads(self.until('{"', 60))
        assert "invite" in said, said
        self.invite, self.seat = Invite.parse(said["invite"]), int(said["seat"])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._new.put(line)

    def until(self, words: str, timeout_s: float) -> str:
        """The next line with these words."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                tail = "".join(self.lines[-30:])
                raise AssertionError(f"the hub did not say {words!r} in {timeout_s} s:\n{tail}") from None
            self.lines.append(line)
            if words in line:
                return line

    @property
    def token(self) -> str:
        return (self.directory / TOKEN_FILE).read_text()

    @property
    def pids(self) -> list[int]:
        """Its own and that of each of its nats-servers."""
        found = [int(path.stem.rpartition("_")[2]) for path in self.directory.glob("*/*.ports")]
        return [self.process.pid, *found]

    def signal(self, number: int) -> None:
        """To the hub and its nats-servers."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> float:
        """SIGKILL, all of it; returns when, by the monotonic clock."""
        self.signal(signal.SIGKILL)
        at = time.monotonic()
        self.process.wait(10)
        return at

    def end(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Hubs:
    """The hubs of one run, by seat."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.by_seat: dict[int, HubProcess] = {}
        self._all: list[HubProcess] = []

    def start(self, seat: int, token: str = "") -> HubProcess:
        """A new hub, or an old one on its directory."""
        hub = HubProcess(self.directory / f"hub-{seat}", token)
        self._all.append(hub)
        assert hub.seat == seat
        self.by_seat[seat] = hub
        return hub

    def grow(self) -> None:
        """From one to three."""
        for seat in (2, 3):
            self.start(seat, self.by_seat[1].token)

    def moved(self, seats: Iterable[int] = (1, 2, 3)) -> None:
        """Wait until hubs started a moment ago say that all have the whole ledger."""
        for seat in seats:
            self.by_seat[seat].until("has the whole ledger", 60)

    def end(self) -> None:
        for hub in reversed(self._all):
            hub.end()
