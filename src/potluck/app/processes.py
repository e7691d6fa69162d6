"""Which processes of this machine take part in runs, so that ``potluck leave`` can ask them to go.

A process number is used again once its process has ended, so each file also says when its process started,
and a signal goes through a handle of that very process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from potluck.errors import StoreError, UsageError
from potluck.wire.codec import digest

MAX_FILE_BYTES = 10_000


class Process(Struct, frozen=True):
    """A peer's process: its number, when it started (in the kernel's own count), and what it does.

    ``machine`` says where its number is that of this process.
    """

    pid: int
    started: str
    machine: str
    run: str
    name: str


@contextlib.contextmanager
def registered(home: Path, run: str, name: str) -> Iterator[None]:
    """Inside, this process can be found by ``processes``.

    Raises:
        StoreError: the disk refuses.
    """
    pid = os.getpid()
    process = Process(pid, _started(pid) or "", _numbering(), run, name)
    path = home / "processes" / f"{pid}-{process.machine}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(".writing")
        draft.write_bytes(msgspec.json.encode(process))
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"can't write to {path.parent}: {error.strerror or error}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def processes(home: Path) -> list[Process]:
    """Those of this machine that are there; files of processes that died are removed."""
    found = []
    for path in sorted((home / "processes").glob("*.json")):
        try:
            with path.open("rb") as file:
                process = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=Process)
        except (OSError, msgspec.DecodeError):
            continue  # just removed, or nothing of ours
        if process.machine != _numbering():
            continue  # the directory is shared between machines, or containers
        if _started(process.pid) == process.started:
            found.append(process)
        else:
            path.unlink(missing_ok=True)
    return found


class Asked:
    """A process that was asked to leave. A context: the handle is closed at its end.

    Raises:
        UsageError: it belongs to another user, or this system has no handles of processes.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self._handle: int | None = None
        if not hasattr(os, "pidfd_open"):
            raise UsageError("`potluck leave` needs Linux: press Ctrl-C where the peer runs instead")
        with contextlib.suppress(ProcessLookupError):
            self._handle = os.pidfd_open(process.pid)
            self._ask(self._handle)

    def _ask(self, handle: int) -> None:
        # The handle was opened first, so what is found now under its number is what it will signal.
        if _started(self.process.pid) != self.process.started:
            self.close()
            return
        try:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        except PermissionError as error:
            self.close()
            raise UsageError(
                f"{self.process.name} (process {self.process.pid}) is another user's: ask them to leave"
            ) from error

    def ended(self, timeout_s: float) -> bool:
        """Whether it has ended, or does within this time."""
        return self._handle is None or bool(select.select([self._handle], [], [], max(0.0, timeout_s))[0])

    def close(self) -> None:
        """Give the handle back. Safe to call twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def leave_all(wanted: list[Process], timeout_s: float) -> Iterator[tuple[Process, bool, float]]:
    """Ask them all at once to leave; yields each with whether it has ended, and after how many seconds."""
    started = time.monotonic()
    with contextlib.ExitStack() as handles:
        asked = []
        for process in wanted:
            asked.append(Asked(process))
            handles.callback(asked[-1].close)
        for one in asked:
            ended = one.ended(started + timeout_s - time.monotonic())
            yield one.process, ended, time.monotonic() - started


@functools.cache
def _numbering() -> str:
    """The same for all processes that see each other's numbers, also after the machine started again."""
    try:
        space = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        space = ""
    return digest(f"{platform.node()}/{space}".encode())[:16]


def _started(pid: int) -> str | None:
    """When a process started, in ticks since this start of the machine; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The name, in brackets, may hold anything; the start is the 22nd field, the 20th after it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else f"{boot}/{fields[19]}"
