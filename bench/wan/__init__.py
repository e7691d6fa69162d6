"""An emulated WAN for benchmarks: hosts are network namespaces of this machine, links are of any kind.

Linux and root only, with a C compiler: the kernel's own emulator (netem) is often missing, and a packet in
Python would cost more than the peers that send it.

with Wan({"a": Link(100, 20, 0.01), "b": Link(50, 10, 0.02)}) as wan:
    server = wan.start("a", [sys.executable, "serve.py", wan.address("a")])
    wan.link("b", Link(50, 1, 0.2, loss=0.01))
    wan.cut("a", "b")
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PREFIX = "potluck-wan"
"""Namespaces are named ``potluck-wan-PID-STARTED-HOST``, after the process that they belong to."""

SUBNET = "10.213.7"
HERE = Path(__file__).parent
END_S = 5.0
"""How long a process that was killed may take to be gone, in seconds."""


@dataclass(frozen=True)
class Link:
    """How a host is connected. Delay and loss of a path are the sums of those of its two ends.

    Args:
        up_mbit: rate of what it sends, in Mbit/s; 0 is no limit.
        down_mbit: rate of what it gets.
        delay_s: its share of the way, in seconds; a round trip between two hosts takes twice both shares.
        loss: share of packets that get lost, 0 to 1.
        queue_s: what would wait longer in a router is dropped, in seconds.
    """

    up_mbit: float = 0.0
    down_mbit: float = 0.0
    delay_s: float = 0.0
    loss: float = 0.0
    queue_s: float = 0.2


@dataclass
class Traffic:
    """Bytes and packets of a host since the last look. ``overflowed`` found a full queue."""

    sent: int
    received: int
    overflowed: int
    lost: int
    late_ms: float = field(default=0.0)


def missing() -> str:
    """Why no WAN can be emulated here; empty if one can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    if shutil.which("ip") is None:
        return "there is no ip (Debian: apt-get install iproute2)"
    if shutil.which("cc") is None:
        return "there is no C compiler (Debian: apt-get install gcc libc6-dev)"
    name = f"{PREFIX}-{os.getpid()}-{_started(os.getpid())}-try"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespace can be made: {tried.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


class Wan:
    """Hosts behind emulated links, up inside the context, gone outside, with every process on them.

    Raises:
        RuntimeError: it can't be built here, and why.
    """

    def __init__(self, links: Mapping[str, Link]) -> None:
        self._links = dict(links)
        self._numbers = {name: number for number, name in enumerate(self._links)}
        self._stem = f"{PREFIX}-{os.getpid()}-{_started(os.getpid())}"
        self._emulator: subprocess.Popen[str] | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix=f"{self._stem}-")
        self._children: list[subprocess.Popen[Any]] = []

    # -- up and down -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if reason := missing():
            raise RuntimeError(f"no WAN can be emulated: {reason}")
        clean()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process on the hosts, and the hosts. Safe to call twice."""
        _remove(f"{self._stem}-")
        if self._emulator is not None:
            assert self._emulator.stdin is not None
            assert self._emulator.stdout is not None
            self._emulator.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._emulator.wait(END_S)
            self._emulator.kill()
            self._emulator.wait()
            self._emulator.stdout.close()
            self._emulator = None
        for child in self._children:
            child.wait(END_S)
        self._children.clear()
        self._scratch.cleanup()

    def _build(self) -> None:
        program = Path(self._scratch.name) / "wan"
        built = subprocess.run(
            ["cc", "-O2", "-o", str(program), str(HERE / "wan.c")],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise RuntimeError(f"the emulator does not compile: {built.stderr}")
        for name in self._links:
            _ip("netns", "add", self.namespace(name))
            _ip("-n", self.namespace(name), "link", "set", "lo", "up")
        hosts = [f"{self.namespace(name)}={self.address(name)}" for name in self._links]
        self._emulator = subprocess.Popen(
            [str(program), *hosts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with contextlib.suppress(OSError):
            # A WAN does not slow down because this machine is busy.
            os.setpriority(os.PRIO_PROCESS, self._emulator.pid, -10)
        if self._answer() != "ready":
            raise RuntimeError("the emulator did not start")
        for name, link in self._links.items():
            inside = ("-n", self.namespace(name))
            _ip(*inside, "address", "add", f"{self.address(name)}/24", "dev", "wan0")
            _ip(*inside, "link", "set", "wan0", "mtu", "1500", "txqueuelen", "1000", "up")
            self.link(name, link)

    # -- hosts -----------------------------------------------------------------------------------

    def namespace(self, host: str) -> str:
        """The name of a host's network namespace."""
        return f"{self._stem}-{host}"

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return f"{SUBNET}.{self._numbers[host] + 1}"

    def start(self, host: str, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on a host; options as ``subprocess.Popen``. It ends with the WAN at the latest."""
        argv = ["ip", "netns", "exec", self.namespace(host), *command]
        child: subprocess.Popen[Any] = subprocess.Popen(argv, start_new_session=True, **options)
        self._children.append(child)
        return child

    def processes(self) -> list[int]:
        """Process ids on all hosts, also of those that nobody here started."""
        return [pid for name in self._links for pid in _pids(self.namespace(name))]

    # -- links -----------------------------------------------------------------------------------

    def link(self, host: str, link: Link) -> None:
        """A host's link is now this."""
        self._links[host] = link
        number = self._numbers[host]
        rates = f"{link.up_mbit * 1e6:.0f} {link.down_mbit * 1e6:.0f}"
        self._tell(f"link {number} {rates} {link.delay_s:.6f} {link.loss:.6f} {link.queue_s:.6f}")

    def cut(self, sender: str, receiver: str, *, both: bool = True) -> None:
        """Nothing gets from ``sender`` to ``receiver`` any more, nor back if ``both``."""
        self._set_cut(sender, receiver, both, 1)

    def mend(self, sender: str, receiver: str, *, both: bool = True) -> None:
        """Take a cut back."""
        self._set_cut(sender, receiver, both, 0)

    def traffic(self) -> dict[str, Traffic]:
        """What happened on each host's link since the last look."""
        self._say("stats")
        told = json.loads(self._answer())
        late_ms = told["late_ms"]
        return {
            name: Traffic(**one, late_ms=late_ms)
            for name, one in zip(self._links, told["hosts"], strict=True)
        }

    def _set_cut(self, sender: str, receiver: str, both: bool, cut: int) -> None:
        one, other = self._numbers[sender], self._numbers[receiver]
        self._tell(f"cut {one} {other} {cut}")
        if both:
            self._tell(f"cut {other} {one} {cut}")

    def _tell(self, command: str) -> None:
        self._say(command)
        answer = self._answer()
        if answer != "ok":
            raise RuntimeError(f"the emulator does not take {command!r}: {answer or 'it has ended'}")

    def _say(self, command: str) -> None:
        assert self._emulator is not None
        assert self._emulator.stdin is not None
        self._emulator.stdin.write(command + "\n")
        self._emulator.stdin.flush()

    def _answer(self) -> str:
        assert self._emulator is not None
        assert self._emulator.stdout is not None
        return self._emulator.stdout.readline().strip()


def clean() -> list[str]:
    """Remove what runs that were killed left behind, and its processes; returns the namespaces' names.

    A namespace is a leftover if the process in its name is gone: an emulator ends with its owner.
    """
    removed = []
    for name in filter(_left_behind, _namespaces()):
        _remove(name)
        removed.append(name)
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        if _left_behind(path.name):
            shutil.rmtree(path, ignore_errors=True)
    return removed


def _left_behind(name: str) -> bool:
    parts = name.removeprefix(f"{PREFIX}-").split("-")
    return len(parts) >= 3 and parts[0].isdecimal() and _started(int(parts[0])) != parts[1]


def _remove(stem: str) -> None:
    """Namespaces whose names begin so, and all that runs in them."""
    names = [name for name in _namespaces() if name.startswith(stem)]
    deadline = time.monotonic() + END_S
    while pids := [pid for name in names for pid in _pids(name)]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _kill(pid, deadline)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {pids} do not end")
    for name in names:
        _ip("netns", "delete", name)


def _kill(pid: int, deadline: float) -> None:
    """SIGKILL, and wait until it is gone, or the time has come."""
    handle = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        os.close(handle)


def _namespaces() -> list[str]:
    return sorted(path.name for path in Path("/run/netns").glob(f"{PREFIX}-*"))


def _pids(namespace: str) -> list[int]:
    """What runs in a namespace; zombies hold none any more."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _started(pid: int) -> str:
    """When a process started, in ticks since the machine did; empty if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


__all__ = ["Link", "Traffic", "Wan", "clean", "missing"]
