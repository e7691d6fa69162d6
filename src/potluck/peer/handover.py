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

from potluck.data.leases import LeaseQueue
from potluck.peer.layout import Carry, Stretch, Vector
from potluck.protocol.leases import Span

EMA = 0.1
"""Weight of the newest step in the running means of speed and loss."""

HORIZON_S = 60.0
"""A trainer wants data for so long, so that it goes on while the hub is away, in seconds."""

MAX_LEASE = 4096
"""Data blocks that a trainer wants at most."""

FIRST_LEASE = 4
"""Data blocks that it wants before it knows how long a step takes."""


@dataclass(frozen=True)
class CutRequest:
    """A round that waits for this peer's contribution: these ``stretches`` of the parameters (None: all)."""

    round: int
    attempt: int
    index: int
    stretches: tuple[Stretch, ...] | None = None


@dataclass(frozen=True)
class Work:
    """What the trainer has done: ``tokens`` and ``steps`` since the last cut, running means of the rest."""

    tokens: float = 0.0
    steps: int = 0
    tokens_per_s: float = 0.0
    step_s: float = 0.0
    loss: float | None = None
    total_tokens: float = 0.0


@dataclass(frozen=True)
class Demand:
    """Leased data as the trainer sees it; see ``Progress``."""

    leased: int = 0
    wants: int = 0
    waiting: bool = False


Taken = Callable[[CutRequest, Vector, float, int], None]
Reading = Callable[[CutRequest], Vector]
Taking = Callable[[list[Carry], CutRequest | None], Vector | None]


class Handover:
    """Thread-safe. ``taken`` is called from the training thread with each cut: what was asked for, the
    parameters, their weight in tokens, and how many leased data blocks are behind them.

    A token is in the run once it is in all ``fragments``, and counts in proportion: the weight of a cut are
    the tokens behind its fragment's difference, divided by that number.
    """

    def __init__(self, taken: Taken, fragments: int = 1) -> None:
        self._lock = threading.Condition()
        self._taken = taken
        self._data = LeaseQueue()
        self._reads = self._waiting = self._void = False
        self._blocks_a_step = 1
        self.ask: Callable[[], None] = lambda: None
        """Called from the training thread when it has no data left."""
        self._carries: list[Carry] = []
        self._request: CutRequest | None = None
        self._work = Work()
        self._since = [0.0] * fragments
        """Of each fragment, the tokens done before its difference began."""
        self._in_flight = 0, 0.0
        """The fragment that was cut last, and the tokens done until then."""
        self._last_step: float | None = None
        self._began: float | None = None
        self.over: str | None = None
        """Why the run is over, once it is."""
        self.ended: str | None = None
        """Why the training ends here, though the run may go on."""
        self.failure: BaseException | None = None
        """What ended the network's side, if something did."""
        self.threads = 1
        """How many threads this peer's share of the machine is."""

    def end(self, reason: str) -> None:
        """The training ends here, whatever becomes of the run."""
        self.ended = self.ended or reason

    # -- the network's side ----------------------------------------------------------------------

    def offer(self, carry: Carry) -> None:
        """A new shared state for the trainer."""
        with self._lock:
            if carry.origin is None:
                self._carries = [carry]
                self._drop_work()
                self._void = False
            else:
                self._carries.append(carry)
            if carry.included:
                fragment, done = self._in_flight
                self._since[fragment] = max(self._since[fragment], done)
            self._lock.notify_all()

    def leased(self, spans: tuple[Span, ...]) -> None:
        """More data to train on."""
        with self._lock:
            self._data.lease(spans)
            self._lock.notify_all()

    def included(self, blocks: int) -> None:
        """So many of our data blocks are in a commit."""
        with self._lock:
            self._data.included(blocks)

    def revoked(self) -> None:
        """Our data went to others: what was done since the last commit does not count. A reset follows."""
        with self._lock:
            self._data.revoke()
            self._void = True
            self._drop_work()

    def request(self, request: CutRequest) -> None:
        """Ask for a cut at the next boundary; a newer request replaces one not yet met."""
        with self._lock:
            self._request = request
            self._lock.notify_all()

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
        """How long ago the last step ended, or training began; 0 before, and while it waits for data."""
        with self._lock:
            since = self._began if self._last_step is None else self._last_step
            return time.monotonic() - since if since is not None and not self._waiting else 0.0

    @property
    def begun(self) -> bool:
        """Whether there is a trainer that takes new shared states up."""
        with self._lock:
            return self._began is not None

    @property
    def demand(self) -> Demand:
        """What to tell others of our data."""
        with self._lock:
            if not self._reads:
                return Demand()
            need = FIRST_LEASE
            if self._work.step_s > 0:
                need = self._blocks_a_step * (2 + int(min(HORIZON_S / self._work.step_s, MAX_LEASE)))
            need, left = min(need, MAX_LEASE), self._data.left
            return Demand(self._data.leased, need - left if 2 * left < need else 0, self._waiting)

    def _drop_work(self) -> None:
        self._work = replace(self._work, tokens=0.0, steps=0)
        self._since = [self._work.total_tokens] * len(self._since)
        self._data.rewind()

    def begin(self) -> None:
        """Training begins now."""
        with self._lock:
            self._began = time.monotonic()

    @property
    def news(self) -> bool:
        """Whether there is something to ``exchange``."""
        with self._lock:
            return bool(self._carries) or self._request is not None or self._void

    # -- the trainer's side ----------------------------------------------------------------------

    def stepped(self, tokens: float, loss: float | None) -> None:
        """One inner step is done."""
        now = time.monotonic()
        with self._lock:
            done = self._data.done
            self._data.stepped()
            self._blocks_a_step = max(1, self._data.done - done)
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

    def exchange(self, read: Reading, take: Taking) -> None:
        """Take new shared states in, then meet a request for a cut.

        Args:
            read: the model's parameters as they are, those that are asked for.
            take: put shared states into the model; returns its new parameters, as ``read``, for a request.
        """
        with self._lock:
            carries, self._carries = self._carries, []
            request, self._request = self._request, None
            if self._void or any(carry.origin is None for carry in carries):
                self._drop_work()  # the step that just ended as well
            weight, blocks = 0.0, self._data.done
            if request is not None:
                fragment, done = request.round % len(self._since), self._work.total_tokens
                weight = (done - self._since[fragment]) / len(self._since)
                self._in_flight = fragment, done
                self._work = replace(self._work, tokens=0.0, steps=0)
        local = take(carries, request) if carries else None
        if request is not None:
            self._taken(request, read(request) if local is None else local, weight, blocks)

    def next_block(self, wait_s: float) -> int | None:
        """The position of the next data block to train on; None if none came within ``wait_s``, or if there
        is something else to do at a boundary.
        """
        with self._lock:
            self._reads = True
            news = self._data.left == 0 and not self._waiting
            self._waiting = self._data.left == 0
        if news:
            self.ask()
        with self._lock:
            self._lock.wait_for(lambda: self._data.left > 0 or self._carries or self._request, wait_s)
            position = self._data.take()
            self._waiting = position is None
        return position

    def wait_first(self) -> list[Carry]:
        """The states that are there before training begins."""
        with self._lock:
            carries, self._carries = self._carries, []
        return carries


def _mean(old: float, new: float) -> float:
    return old + EMA * (new - old) if old and math.isfinite(old) else new
