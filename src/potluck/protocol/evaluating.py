"""Who evaluates a shared state, and when: peers take turns without a leader.

An evaluation is due when the run is at another multiple of ``every`` rounds than the last one evaluated was,
and once it is over. Who can evaluate says so. A hash of what is due and of the key puts them in line: the
first begins at once, each further one some seconds later, unless somebody says that it is at it. Should two
begin, the ledger takes the first.
"""

from __future__ import annotations

from collections.abc import Iterable

from potluck.protocol.steward import Decision
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import RunView
from potluck.wire.codec import digest
from potluck.wire.messages import Progress
from potluck.wire.records import Evaluation

TURN_S = 3.0
"""Each further one in line waits so much longer, in seconds: a beat, and some delay."""

LOOK_S = 0.5
"""How often the line is looked at while an evaluation is due, in seconds."""

PATIENCE = 4
"""Who has been at one for as many times ``every`` rounds is waited for no longer."""


class Evaluating:
    """Our part in it. ``every`` is how many rounds are between two evaluations; 0: we can't evaluate."""

    def __init__(self, me: str) -> None:
        self._me = me
        self.every = 0
        self.round = -1
        """Of the state that is being evaluated here; -1: none is."""
        self._result: Evaluation | None = None
        self._due: tuple[object, float] = (None, 0.0)
        self._look_at = 0.0
        self._begun: object = None
        self._failed: object = None

    def begins(self, view: RunView, swarm: Swarm, round_: int, state: str, now: float) -> bool:
        """Whether to begin now, with our state after a round, and its digest."""
        due = self._what(view)
        if due != self._due[0]:
            self._due = (due, now)
        if due is None or self.round >= 0 or self._result is not None or due == self._failed:
            return False
        if round_ != view.round or now < self._look_at or swarm.deaf(now) or not swarm.settled(now):
            return False
        self._look_at = now + LOOK_S
        place = self._place(due, view, swarm.alive(now))
        if place is None:
            self._due = (due, now)  # should it fail, they must not all begin at once
            return False
        if now < self._due[1] + place * TURN_S or swarm.majority(round_, now) != state:
            return False
        self.round, self._begun = view.round, due
        return True

    def done(self, result: Evaluation | None) -> None:
        """An evaluation ended; without a result it is left to others until the next is due."""
        self.round, self._result = -1, result
        self._failed = None if result is not None else self._begun

    def followed(self, body: Evaluation) -> None:
        """One is in the ledger, ours or another's."""
        if self._result is not None and self._result.round == body.round:
            self._result = None

    def verdict(self, view: RunView) -> Decision:
        """Our result, while the ledger lacks it and it would count there."""
        if self._result is not None and view.evaluations.fault(self._result, view.round):
            self._result = None
        return Decision(self._result, "an evaluation" if self._result is not None else "nothing evaluated")

    @property
    def busy(self) -> bool:
        """Whether one is on its way here, or not in the ledger yet."""
        return self.round >= 0 or self._result is not None

    def awaited(self, view: RunView) -> bool:
        """Whether the state that the run ended with is still to be evaluated, by us or others."""
        return view.finished is not None and self._what(view) not in (None, self._failed)

    def _what(self, view: RunView) -> object:
        """What is due, by a name; None if nothing is."""
        if not self.every or view.genesis is None:
            return None
        last, head = view.evaluations.last, view.round
        if last >= head:
            return None
        if view.finished is not None:
            return "last"
        return head // self.every if head // self.every > last // self.every else None

    def _place(self, due: object, view: RunView, alive: Iterable[Progress]) -> int | None:
        """Our place in line; None while somebody is at it."""
        since = view.round - PATIENCE * self.every
        others = [p for p in alive if p.evaluates and p.peer != self._me]
        # One may be a record ahead of us; who says more than that is not waited for.
        if any(max(since, 0) <= p.evaluating <= view.round + 1 for p in others):
            return None
        phases = ("training", "following", *(("leaving",) if view.finished is not None else ()))
        ours = _lot(due, self._me)
        return sum(_lot(due, p.peer) < ours for p in others if p.phase in phases and p.evaluating < 0)


def _lot(due: object, peer: str) -> str:
    return digest(f"{due}/{peer}".encode())
