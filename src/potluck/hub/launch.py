"""Starts a hub as a process of its own, which outlives the peer that started it."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from potluck.errors import EnvironmentProblem, StoreError
from potluck.hub.site import Nats
from potluck.hub.state import LOCK, HubState

START_S = 30.0
"""How long a hub may take to come up, in seconds."""

IDLE_S = 60.0
"""A hub that a peer started ends so long after the last peer has left, in seconds."""


@dataclass(frozen=True)
class Launched:
    """A hub in another process: its invite, process id and log."""

    invite: str
    pid: int
    log: Path


def launch_hub(
    directory: Path,
    *,
    host: str,
    port: int = 0,
    until_idle_s: float | None = IDLE_S,
    run: str = "",
    nats: Nats | None = None,
) -> Launched:
    """Start a hub on a directory and wait until it is up; ``run`` as for ``Hub``, and ``nats`` for a new one.

    A new directory is removed again if it does not come up: nobody would know what it is, and there may be
    credentials in it.

    Raises:
        EnvironmentProblem: it did not come up, and why.
        StoreError: the directory can't be written.
    """
    is_new = not directory.exists()
    try:
        return _launch(directory, nats, host=host, port=port, until_idle_s=until_idle_s, run=run)
    except BaseException:
        if is_new:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _launch(directory: Path, nats: Nats | None, **options: Any) -> Launched:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if nats is not None:
        nats.save(directory)  # not an argument, which others on this machine could read
    log = directory / "hub.log"
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "potluck.hub", json.dumps(options | {"directory": str(directory)})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C in the peer's terminal is not for the hub
        )
    line = _first_line(process)
    said = json.loads(line) if line.startswith(b"{") else {"error": _last_words(log)}
    if "error" in said:
        process.kill()
        process.wait()
        raise EnvironmentProblem(f"the hub did not start: {said['error']}")
    # The hub is on its own from here on.
    process.returncode = 0
    return Launched(said["invite"], process.pid, log)


def running_hub(hubs: Path, run: str) -> Path | None:
    """Which of the directories in ``hubs`` has a hub of this run that is up, if one has."""
    for path in sorted(hubs.glob("*/hub.json")):
        try:
            state = HubState.load(path.parent)
        except StoreError:
            continue  # whoever starts that hub hears of it
        if state is None or state.run != run:
            continue
        try:
            with FileLock(path.parent / LOCK, mode=0o600, thread_local=False, blocking=False):
                pass
        except Timeout:
            return path.parent
    return None


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    stdout = process.stdout
    found: queue.Queue[bytes] = queue.Queue()

    def read() -> None:
        with stdout:
            found.put(stdout.readline())

    threading.Thread(target=read, daemon=True).start()
    try:
        return found.get(timeout=START_S)
    except queue.Empty:
        return b""


def _last_words(log: Path) -> str:
    """Of a hub that did not say in time whether it is up."""
    lines = log.read_text("utf-8", "replace").splitlines()[-3:]
    return f"it says nothing (its log: {' | '.join(lines)[-1000:] or 'empty'})"
