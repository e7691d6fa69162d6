"""Where the training thread and the network thread meet, at the boundary between two inner steps.

Neither waits for the other: the network leaves new shared states and requests for a cut, the trainer
leaves its progress, and each takes what it finds.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from potluck.peer.dataplane import Carry, Vector

EMA = 0.1
"""Weight of the newest step in the running means of speed and loss."""


@dataclass(frozen=True)
class CutRequest:
    """A round that waits for this peer's contribution."""

    round: int
    attempt: int
    index: int


@dataclass(frozen=True)
class Work:
    """What the trainer has done: ``tokens`` and ``steps`` since the last cut, running means of the rest."""

    tokens: float = 0.0
    steps: int = 0
    tokens_per_s: float = 0.0
    step_s: float = 0.0
    loss: float | None = None
    total_tokens: float = 0.0


Taken = Callable[[CutRequest, Vector, float], None]


class Handover:
    """Thread-safe. ``taken`` is called from the training thread with each cut."""

    def __init__(self, taken: Taken) -> None:
        self._lock = threading.Lock()
        self._taken = taken
        self._carries: list[Carry] = []
        self._request: CutRequest | None = None
        self._work = Work()
        self._in_flight = 0.0
        self._last_step: float | None = None
        self._began = time.monotonic()
        self.over: str | None = None
        """Why the run is over, once it is."""
        self.failure: BaseException | None = None
        """What ended the network's side, if something did."""
        self.threads = 1
        """How many threads this peer's share of the machine is."""

    # -- the network's side ----------------------------------------------------------------------

    def offer(self, carry: Carry) -> None:
        """A new shared state for the trainer."""
        with self._lock:
            if carry.origin is None:
                self._carries = [carry]
                self._work = replace(self._work, tokens=0.0, steps=0)
                self._in_flight = 0.0
            else:
                self._carries.append(carry)
            if carry.included:
                self._in_flight = 0.0

    def request(self, request: CutRequest) -> None:
        """Ask for a cut at the next boundary; a newer request replaces one not yet met."""
        with self._lock:
            self._request = request

    def withdraw(self) -> CutRequest | None:
        """Take back the request that was not met, if there is one."""
        with self._lock:
            request, self._request = self._request, None
        return request

    def reset(self, theta: Vector) -> None:
        """The trainer diverged: it goes on from the shared state, and what it did is dropped."""
        self.offer(Carry(theta, None))

    @property
    def work(self) -> Work:
        """What the trainer has done."""
        with self._lock:
            return self._work

    @property
    def idle_s(self) -> float:
        """How long ago the last step ended, or training began."""
        with self._lock:
            return time.monotonic() - (self._began if self._last_step is None else self._last_step)

    def begin(self) -> None:
        """Training begins now."""
        with self._lock:
            self._began = time.monotonic()

    # -- the trainer's side ----------------------------------------------------------------------

    def stepped(self, tokens: float, loss: float | None) -> None:
        """One inner step is done."""
        now = time.monotonic()
        with self._lock:
            work, last = self._work, self._last_step
            self._last_step = now
            took_s = now - last if last is not None else 0.0
            step_s = _mean(work.step_s, took_s) if took_s else work.step_s
            speed = _mean(work.tokens_per_s, tokens / took_s) if took_s else work.tokens_per_s
            if loss is not None and work.loss is not None:
                loss = _mean(work.loss, loss)
            self._work = Work(
                work.tokens + tokens,
                work.steps + 1,
                speed,
                step_s,
                loss if loss is not None else work.loss,
                work.total_tokens + tokens,
            )

    def exchange(self, read: Callable[[], Vector], write: Callable[[list[Carry], Vector], Vector]) -> None:
        """Take new shared states in, then meet a request for a cut.

        Args:
            read: the model's parameters as they are.
            write: put shared states into the model whose parameters are given; returns the new ones.
        """
        with self._lock:
            carries, self._carries = self._carries, []
            request, self._request = self._request, None
            weight = 0.0
            if request is not None:
                weight = self._work.tokens + self._in_flight
                self._in_flight = weight
                self._work = replace(self._work, tokens=0.0, steps=0)
        if not carries and request is None:
            return
        local = read()
        if carries:
            local = write(carries, local)
        if request is not None:
            self._taken(request, local, weight)

    def wait_first(self) -> list[Carry]:
        """The states that are there before training begins."""
        with self._lock:
            carries, self._carries = self._carries, []
        return carries


def _mean(old: float, new: float) -> float:
    return old + EMA * (new - old) if old and math.isfinite(old) else new
