"""Runs one program for as long as its owner lives, whichever way the owner ends.

Started as a file by a bare interpreter (``python -I -S guard.py OWNER LOCK PROGRAM ARGUMENT...``), so it
imports nothing but the standard library. Its standard input is a pipe whose other end the owner holds and
never writes to: when that end closes, the program is asked to stop, and killed if it does not. The program
inherits a lock, so a second guard of the same lock waits until the first one's program is really gone.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable

STOP_S = 5.0
"""How long the program may take to stop by itself, in seconds."""

LOCK_S = 10.0
"""How long to wait for the program of an earlier guard to be gone, in seconds."""

BUSY = 75
"""Exit status: the lock is held by a program that goes on."""

_STEP_S = 0.05
_PR_SET_PDEATHSIG = 1


class Owner:
    """What tells that the owner is gone or wants us to stop: the pipe's end, its process's end, a signal."""

    def __init__(self, pid: int) -> None:
        self.leaving = False
        self._poll = select.poll()
        self._poll.register(sys.stdin.fileno(), select.POLLIN)
        # A fork of the owner keeps the pipe open, so its process is watched as well where that can be done.
        if hasattr(os, "pidfd_open"):
            try:
                self._poll.register(os.pidfd_open(pid), select.POLLIN)
            except ProcessLookupError:
                self.leaving = True
        self._wake, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._poll.register(self._wake, select.POLLIN)

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when something happened (``leaving`` tells whether it was that), or after ``timeout_s``."""
        for descriptor, _ in self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            if descriptor != self._wake or set(os.read(self._wake, 64)) - {signal.SIGCHLD}:
                self.leaving = True


def main(owner_pid: int, lock_path: str, command: list[str]) -> int:
    """Run ``command``; returns its exit status, or ``BUSY``."""
    owner = Owner(owner_pid)
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    if not _locked(lock, owner):
        return BUSY
    if owner.leaving:
        return 0
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, pass_fds=(lock,), preexec_fn=_die_with(os.getpid())
    )
    while program.poll() is None and not owner.leaving:
        owner.wait()
    program.terminate()
    try:
        return program.wait(STOP_S)
    except subprocess.TimeoutExpired:
        program.kill()
        return program.wait()


def _locked(lock: int, owner: Owner) -> bool:
    for _ in range(int(LOCK_S / _STEP_S)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if owner.leaving:
                return False
            owner.wait(_STEP_S)
        else:
            return True
    return False


def _die_with(guard: int) -> Callable[[], None] | None:
    """What the program does before it starts: ask the kernel to end it when the guard is killed (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it went before it was asked
            os._exit(1)

    return prepare


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
