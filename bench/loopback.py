"""Hosts that are all this machine, without limits: what ``bench.wan.Wan`` is for whoever has no root."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any, Self


class Loopback:
    """As a context it leaves no process behind; each process is the head of a session of its own."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def address(self, host: str) -> str:
        """The same for all."""
        return "127.0.0.1"

    def start(self, host: str, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process; options as ``subprocess.Popen``."""
        child: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **options)
        self._children.append(child)
        return child

    def processes(self) -> list[int]:
        """Those that were started here and are still there."""
        return [child.pid for child in self._children if child.poll() is None]

    def close(self) -> None:
        """End every process, and what it started. Safe to call twice."""
        for child in self._children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self._children.clear()
