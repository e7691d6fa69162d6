"""A swarm of real processes behind an emulated WAN, for the benchmarks of faults."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.loopback import Loopback
from bench.wan import Wan

from potluck.recipe import Recipe

ROOT = Path(__file__).parents[1]
HUB = "hub"
WATCHER = "watcher"
START_S = 120.0
"""How long a process may take to be there, on a machine that is busy."""

GO_S = 30.0
"""How long processes may take to go in good order."""


class Late(Exception):
    """Something that had to happen did not, in time."""


@dataclass
class Actor:
    """A process of one name, and what it said. ``stopped`` are the times in which it stood still."""

    name: str
    host: str
    process: subprocess.Popen[Any]
    log: Path
    said: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[list[float]] = field(default_factory=list)
    ended: float | None = None

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def last(self, key: str) -> dict[str, Any] | None:
        """The last line with this key."""
        return next((line for line in reversed(self.said) if key in line), None)

    def first(self, key: str) -> dict[str, Any] | None:
        """The first line with this key."""
        return next((line for line in list(self.said) if key in line), None)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


class Stage:
    """Hub, watcher and peers; as a context it leaves nothing behind.

    Args:
        wan: with hosts ``hub``, ``watcher``, and one for each peer that is there at a time.
        options: of ``bench.peer.Options``, for all peers.
    """

    def __init__(self, wan: Wan | Loopback, directory: Path, recipe: Recipe, options: dict[str, Any]) -> None:
        self.wan, self.directory, self.recipe, self.options = wan, directory, recipe, options
        self.actors: list[Actor] = []
        self.orphans = 0
        self.changed = threading.Condition()
        self.hub: subprocess.Popen[Any] | None = None
        self.invite = ""
        self.watcher: Actor
        self._readers: list[threading.Thread] = []

    # -- the cast --------------------------------------------------------------------------------

    def start(self, peers: dict[str, str]) -> None:
        """Hub, first peer, watcher, then the others (names to hosts); returns when all train."""
        self.start_hub()
        (first, host), *others = peers.items()
        self.play("host", first, host, recipe=self.recipe.to_toml())
        self.watcher = self.play("watch", WATCHER, WATCHER)
        for name, place in others:
            self.play("join", name, place)
        for actor in self.actors:
            self.until(f"{actor.name} joins", START_S, partial(actor.first, "joined"))
        self.until("all train", START_S, lambda: self.training() >= set(peers))

    def start_hub(self) -> None:
        """Start the hub, or start it again on its directory."""
        options = {
            "directory": str(self.directory / HUB),
            "host": self.wan.address(HUB),
            "port": 0,
            "until_idle_s": None,
        }
        command = [sys.executable, "-m", "potluck.hub", json.dumps(options)]
        with (self.directory / "hub.log").open("ab") as log:
            self.hub = self.wan.start(HUB, command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
        assert self.hub.stdout is not None
        with self.hub.stdout:
            there = select.select([self.hub.stdout], [], [], START_S)[0]
            said = json.loads((self.hub.stdout.readline() if there else b"") or b"{}")
        if "invite" not in said:
            raise Late(f"the hub did not start: {said}; see {self.directory / 'hub.log'}")
        self.invite = self.invite or said["invite"]

    def play(self, what: str, name: str, host: str, **options: Any) -> Actor:
        """Start a process on a host; one that bears a name again has that one's directory."""
        mine = {
            **(self.options if what != "watch" else {}),
            "invite": self.invite,
            "name": name,
            "directory": str(self.directory / name),
            "listen": self.wan.address(host),
            **options,
        }
        log = self.directory / f"{name}-{len(self.actors)}.log"
        command = [sys.executable, "-m", "bench.peer", what, json.dumps(mine)]
        with log.open("wb") as errors:
            process = self.wan.start(
                host, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT
            )
        actor = Actor(name, host, process, log)
        self.actors.append(actor)
        reader = threading.Thread(target=self._read, args=(actor,), daemon=True)
        reader.start()
        self._readers.append(reader)
        return actor

    def _read(self, actor: Actor) -> None:
        assert actor.process.stdout is not None, "it is started with a pipe"
        with actor.process.stdout as lines, actor.log.with_suffix(".jsonl").open("wb") as kept:
            for line in lines:
                kept.write(line)
                try:
                    said = json.loads(line)
                except ValueError:
                    # The last line of one that was killed may be torn.
                    print(f"{actor.name} said what can't be read: {line[:200]!r}", file=sys.stderr)
                    continue
                with self.changed:
                    actor.said.append(said)
                    self.changed.notify_all()

    # -- what is seen ----------------------------------------------------------------------------

    def until(self, what: str, limit_s: float, happened: Callable[[], Any]) -> Any:
        """Wait until something that processes say makes this true; returns what it returned.

        Raises:
            Late: with the last words of whoever ended.
        """
        deadline = time.monotonic() + limit_s
        with self.changed:
            while not (found := happened()):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Late(f"{what}: not within {limit_s:.0f} s\n{self._last_words()}")
                self.changed.wait(min(left, 0.2))
        return found

    def _last_words(self) -> str:
        told = []
        for actor in self.actors:
            if not actor.alive and actor.ended is None:
                told.append(f"{actor.name} ended by itself: {actor.log.read_text()[-2000:]}")
            events = [line["event"] for line in actor.said[-200:] if "event" in line]
            told.append(f"{actor.name}: {events[-4:]}")
        return "\n".join(told)

    def training(self) -> set[str]:
        """Names of the peers that train, as the watcher hears them."""
        heard = self.watcher.last("peers")
        return {name for name, phase in heard["peers"].items() if phase == "training"} if heard else set()

    def commits(self) -> list[dict[str, Any]]:
        """Every commit so far, as the watcher followed it."""
        with self.changed:
            return [line for line in self.watcher.said if "commit" in line]

    def fallen(self) -> list[Actor]:
        """Processes that ended though nobody ended them."""
        return [a for a in self.actors if not a.alive and a.ended is None]

    # -- faults ----------------------------------------------------------------------------------

    def kill(self, actor: Actor) -> float:
        """SIGKILL: no good-bye. Returns when."""
        actor.ended = time.monotonic()
        actor.signal(signal.SIGKILL)
        actor.process.wait()
        return actor.ended

    def stop(self, actor: Actor) -> None:
        """SIGSTOP."""
        actor.stopped.append([time.monotonic(), float("inf")])
        actor.signal(signal.SIGSTOP)

    def resume(self, actor: Actor) -> None:
        """SIGCONT."""
        actor.signal(signal.SIGCONT)
        actor.stopped[-1][1] = time.monotonic()

    def kill_hub(self) -> float:
        """SIGKILL to the hub's process; it takes nats-server with it."""
        assert self.hub is not None
        self.hub.kill()
        at = time.monotonic()
        self.hub.wait()
        return at

    def kill_nats(self) -> float:
        """SIGKILL to nats-server; the hub starts it again."""
        pid = self.nats()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return time.monotonic()

    def nats(self) -> int | None:
        """The process of nats-server, if there is one."""
        for pid in self.wan.processes():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "nats-server":
                    return pid
        return None

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Ask all to go in good order, and count the processes that are left then."""
        for actor in self.actors:
            if actor.alive and actor.ended is None:
                actor.ended = time.monotonic()
                with contextlib.suppress(ProcessLookupError):
                    actor.signal(signal.SIGCONT)
                    actor.signal(signal.SIGINT)
        deadline = time.monotonic() + GO_S
        processes = [actor.process for actor in self.actors]
        for process in processes:
            _await(process, deadline)
        if self.hub is not None:
            self.hub.send_signal(signal.SIGTERM)
            _await(self.hub, deadline)
        left = [(pid, _command(pid)) for pid in self.wan.processes()]
        self.orphans = len(left)
        for pid, command in left:
            print(f"still there: {pid} {command}", file=sys.stderr)
        self.wan.close()
        for reader in self._readers:
            reader.join(5)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:300]
    except OSError:
        return "(gone meanwhile)"


def _await(process: subprocess.Popen[Any], deadline: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, deadline - time.monotonic()))


@contextlib.contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so contexts are left.

    Ctrl-C does as well: a shell's ``&`` has SIGINT ignored, here and in every process that is started here.
    """
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def played(name: str, keep: Path | None, play: Callable[[Path], None]) -> int:
    """Play a benchmark, in a directory that stays if it is to be kept; 1 if what it waits for never comes."""
    with ends_on_sigterm(), tempfile.TemporaryDirectory(prefix=f"potluck-{name}-") as scratch:
        try:
            play(keep or Path(scratch))
        except Late as late:
            print(late, file=sys.stderr)
            return 1
    return 0


def bar(name: str, value: float, unit: str, digits: int = 4, **of: Any) -> None:
    """A figure as a line of JSON; ``of`` says of which case, where one name has several."""
    print(json.dumps({"bar": name, "value": round(value, digits), "unit": unit, **of}), flush=True)
