"""Real ``potluck`` processes for tests: started, heard line by line, and always ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from potluck.app.cli import app

LISTEN = "127.0.0.1"

START_S = 90.0
"""Several programs import PyTorch at once, maybe on a busy machine."""

LEAVE_S = 10.0
"""Leaving takes up to five seconds; the rest is for a busy machine."""

RECIPE = """
name = "tiny"
[task]
kind = "causal-lm"
tokenizer = "bpe-320"
text = "text/*.txt"
context = 32
batch = 4
[task.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 32
[inner]
lr = 1e-2
[rounds]
tokens = 8_000
grace_s = 2.0
snapshot_every = 2
parts = 4
[end]
rounds = {rounds}
"""


def write_recipe(directory: Path, rounds: int = 0) -> Path:
    """A recipe that starts within seconds, and its text beside it."""
    (directory / "text").mkdir()
    lines = "".join(f"The {n}th cat sat on the {n % 7}th mat.\n" for n in range(2500))
    (directory / "text" / "cats.txt").write_text(lines, "utf-8")
    path = directory / "tiny.toml"
    path.write_text(RECIPE.format(rounds=rounds), "utf-8")
    return path


class Shell:
    """One ``potluck`` process with ``--json``, and its events."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.said: list[dict[str, Any]] = []
        self.other: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "potluck", *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._new: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self._new.put(json.loads(line))
            else:
                self.other.append(line)
        self._new.put(None)

    def wait(self, event: str, timeout_s: float = START_S, containing: str = "", **least: float) -> Any:
        """The next event of this kind, with this text in it and figures of at least so much."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                said = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self} did not say {event!r} within {timeout_s} s") from None
            if said is None:
                raise AssertionError(f"{self} ended with {self.process.wait(5)} without {event!r}")
            self.said.append(said)
            fits = said["event"] == event and containing in json.dumps(said, ensure_ascii=False)
            if fits and all(said[key] >= value for key, value in least.items()):
                return said

    def signal(self, number: int) -> float:
        """Send a signal; returns when, by the monotonic clock."""
        os.kill(self.process.pid, number)
        return time.monotonic()

    def ended(self, timeout_s: float = LEAVE_S) -> int:
        """The exit code, once it has ended."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} had not ended after {timeout_s} s") from None

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def __str__(self) -> str:
        tail = "\n".join([*map(str, self.said[-8:]), *self.other[-20:]])
        return f"potluck {' '.join(self.arguments)}\n{tail}\n"


class Shells:
    """The shells of one test, and the hubs that they started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._all: list[Shell] = []

    def open(self, *arguments: str) -> Shell:
        self._all.append(Shell(*arguments))
        return self._all[-1]

    def home(self, name: str) -> Path:
        return self.directory / name

    def peer(self, name: str, command: str, *arguments: str) -> Shell:
        """``host`` or ``join``, each with a data directory of its own."""
        home = str(self.home(name))
        own = ("--name", name, "--directory", home, "--listen", LISTEN)
        return self.open(command, *arguments, *own, *([] if "--follow" in arguments else ["--threads", "1"]))

    def end(self) -> None:
        for shell in self._all:
            shell.end()
        end_hubs(self.directory)


def end_hubs(directory: Path) -> None:
    """End the hubs that work below a directory, by process number, and wait until they have ended."""
    for pid in hubs(directory):
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
            _wait(handle, pid)
        finally:
            os.close(handle)


def kill_hub(directory: Path) -> None:
    """SIGKILL to the hub below a directory and to its nats-server; returns when both have ended."""
    [hub] = hubs(directory)
    family = [hub]
    for pid in family:
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            family += map(int, tasks.read_text().split())
    handles = {pid: os.pidfd_open(pid) for pid in family}
    assert len(family) >= 3, "hub, guard and nats-server"
    try:
        for handle in handles.values():
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        for pid, handle in handles.items():
            _wait(handle, pid)
    finally:
        for handle in handles.values():
            os.close(handle)


def _wait(handle: int, pid: int) -> None:
    import select

    assert select.select([handle], [], [], 20)[0], f"the hub {pid} does not end"


def hubs(directory: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"potluck.hub" in words and any(str(directory).encode() in word for word in words):
            found.append(int(path.parent.name))
    return found


def potluck(*arguments: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(app, list(arguments))


def events(result: Result) -> list[dict[str, Any]]:
    """The JSON lines of a command."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def summary(result: Result) -> dict[str, Any]:
    """The last of them."""
    return events(result)[-1]
