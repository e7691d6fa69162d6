"""What the swarms of other systems have in common: workers that say in JSON lines what happens to them."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

VALUES = 525_568
"""As many as the model of the kill trials has parameters."""

STATE_BYTES = 100_000_000
PAUSE_S = 0.2
LIMIT_S = 120.0


def available(system: str, python: str) -> bool:
    """Whether a system has an environment; says so if it has none."""
    if python and Path(python).exists():
        return True
    told = f"no environment at {python or '(none given)'}: bench/peers/README.md says how to make one"
    print(json.dumps({"system": system, "skipped": told}), flush=True)
    return False


class Replica:
    """One worker's process, where it is, and what it said."""

    def __init__(self, process: subprocess.Popen[Any], host: str, changed: threading.Condition) -> None:
        self.process, self.host, self.changed = process, host, changed
        self.said: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None, "a worker is started with a pipe"
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
    """Replicas by their names, and waiting for what they say."""

    system: str

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.replicas: dict[str, Replica] = {}

    def until(self, what: str, happened: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + LIMIT_S
        with self.changed:
            while not (found := happened()):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.system}: {what}: not within {LIMIT_S:.0f} s")
                self.changed.wait(0.2)
        return found

    def together(self, members: int) -> None:
        """Wait for a step with so many in it, from now on."""
        now = time.monotonic()
        for replica in self.replicas.values():
            self.until(f"a step of {members}", partial(replica.find, now, committed=True, members=members))
