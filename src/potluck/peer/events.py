"""What happens in a run, told to whoever asked: seen in the network thread, told in the training thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from potluck.errors import RunOver, UsageError
from potluck.peer.course import Course
from potluck.protocol.core import PeerCore
from potluck.wire.messages import Progress

log = logging.getLogger("potluck")

Kind = Literal["round", "evaluation", "peer", "over", "problem"]

MAX_WAITING = 10_000
"""Events that nobody comes to hear are kept up to so many; then the oldest go."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, and the reason for it in words.

    ``"round"``: a committed round is in the model here; ``tokens`` are the run's up to the ledger's head,
    ``loss`` is the commit's mean training loss. ``"evaluation"``: the state after ``round`` was measured, to
    these ``metrics``; ``best``: none was better so far. ``"peer"``: somebody, named ``peer``, came or went.
    ``"over"``: the run has reached its end, and its last round is here. ``"problem"``: something is amiss,
    which the peer deals with itself if it can. ``round`` is the round, or the last one applied here.
    """

    kind: Kind
    reason: str
    round: int
    peer: str = ""
    tokens: int = 0
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: bool = False


class Events:
    """Thread-safe. ``post`` from any thread; ``tell`` from the one that trains, which runs the callbacks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: dict[Kind, list[Callable[[Event], object]]] = {kind: [] for kind in get_args(Kind)}
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self._telling = False

    def on(self, kind: Kind, callback: Callable[[Event], object]) -> None:
        """Call this with each event of a kind from now on, after those that were there before.

        Raises:
            UsageError: there are no such events.
        """
        if kind not in self._callbacks:
            raise UsageError(f"there are no {kind!r} events; there are {', '.join(self._callbacks)}")
        with self._lock:
            self._callbacks[kind].append(callback)

    def post(self, event: Event) -> None:
        """Something happened."""
        with self._lock:
            if self._callbacks[event.kind]:
                self._waiting.append(event)

    def tell(self) -> None:
        """Run the callbacks of what happened since, in order. One that fails is told in words, and the others
        and the run go on.

        Raises:
            RunOver: a callback did, which ends the training here.
        """
        if self._telling:
            return  # a callback came to a boundary itself
        self._telling = True
        try:
            while event := self._next():
                for callback in list(self._callbacks[event.kind]):
                    _call(callback, event)
        finally:
            self._telling = False

    def _next(self) -> Event | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None


def _call(callback: Callable[[Event], object], event: Event) -> None:
    try:
        callback(event)
    except RunOver:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        log.error(
            "a callback for %r events failed, and the run goes on: %s", event.kind, what, exc_info=error
        )


class Watcher:
    """Sees what a core came to: rounds, peers, the run's end, and how far it is. In the network thread."""

    def __init__(self, core: PeerCore, events: Events, course: Course) -> None:
        self._core, self._events, self.course = core, events, course
        self._round: int | None = None
        self._list: list[Progress] | None = None
        self._there: dict[str, Progress] = {}
        self._over = False
        self._evaluated: set[int] | None = None

    def look(self, now: float) -> None:
        """Post what is new; quick if nothing is."""
        others = [p for p in self._core.swarm.alive(now) if p.peer != self._core.me.peer]
        self.course.seen(self._core.view, others)
        if self._core.phase != "joining" or self._round is not None:
            self._rounds()
            self._evaluations()
            self._peers(now)
            self._end()

    def problem(self, text: str) -> None:
        """Something is amiss."""
        self._events.post(Event("problem", text, self._core.catchup.round))

    def _rounds(self) -> None:
        core, here = self._core, self._core.catchup.round
        if self._round is None:
            self._round = here  # what was there when we came
        for number in range(self._round + 1, here + 1):
            if commit := core.view.commits.get(number):
                tokens, loss = core.view.tokens, commit.loss
                self._events.post(Event("round", commit.reason, number, tokens=tokens, loss=loss))
        self._round = max(self._round, here)

    def _evaluations(self) -> None:
        found = self._core.view.evaluations
        if self._evaluated is None:
            self._evaluated = set(found.of)
        for number in sorted(found.of.keys() - self._evaluated):
            body, best = found.of[number], found.best
            metrics = dict(body.metrics)
            self._events.post(Event("evaluation", body.reason, number, metrics=metrics, best=body is best))
        self._evaluated = set(found.of)

    def _peers(self, now: float) -> None:
        alive = self._core.swarm.alive(now)
        if alive is self._list:
            return
        there = {p.peer: p for p in alive if p.peer != self._core.me.peer}
        if self._list is not None:
            for peer in there.keys() - self._there.keys():
                self._peer(there[peer], "is here")
            for peer in self._there.keys() - there.keys():
                last = self._core.swarm.last(peer)
                left = last is not None and last.phase == "gone"
                self._peer(self._there[peer], "left" if left else "is gone: it is not heard any more")
        self._list, self._there = alive, there

    def _peer(self, progress: Progress, what: str) -> None:
        name = progress.name or progress.peer[:8]
        self._events.post(Event("peer", f"{name} {what}", self._core.catchup.round, peer=name))

    def _end(self) -> None:
        if self._core.over and not self._over:
            self._over = True
            assert self._core.view.finished is not None
            reason, tokens = self._core.view.finished.reason, self._core.view.tokens
            self._events.post(Event("over", reason, self._core.catchup.round, tokens=tokens))
