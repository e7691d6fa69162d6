"""What the ledger says of how good states are: a fold that every peer computes alike.

It decides nothing about rounds, so a release that can't read an evaluation follows the run all the same.
"""

from __future__ import annotations

import math

from potluck.wire.records import Evaluation

KEPT = 1000
"""Of more evaluations than so many the oldest are forgotten, but for the best."""


class Evaluations:
    """The evaluations of a run by round, the first of each round, and which is the best."""

    def __init__(self) -> None:
        self.of: dict[int, Evaluation] = {}
        self.best: Evaluation | None = None
        """Of several as good the one of the earliest round."""
        self._states: dict[int, str] = {}
        """The states that rounds began from, by the round before."""

    @property
    def last(self) -> int:
        """The newest round that is evaluated; -1 if none is."""
        return max(self.of, default=-1)

    def follow(self, body: Evaluation, head: int) -> str | None:
        """Fold one in, with rounds committed up to ``head``; returns why it was skipped, if it was."""
        if body.round > head:
            return "its round is not committed"
        if body.round in self.of:
            return f"round {body.round} is evaluated already"
        if body.round < min(self.of, default=0) and len(self.of) >= KEPT:
            return "its round is long past"
        if not all(math.isfinite(value) for _, value in body.metrics):
            return "it has a figure that is no finite number"
        if len({name for name, _ in body.metrics}) < len(body.metrics):
            return "it has a metric twice"
        known = self._states.get(body.round)
        if known is not None and known != body.state:
            return f"it is of state {body.state[:12]}, and the run's was {known[:12]}"
        self.of[body.round] = body
        if self.best is None or (body.worth, -body.round) > (self.best.worth, -self.best.round):
            self.best = body
        self._forget()
        return None

    def opened(self, head: int, base: str) -> None:
        """A round begins from the state after ``head``: an evaluation of another one does not count."""
        self._states[head] = base
        found = self.of.get(head)
        if found is not None and found.state != base:
            del self.of[head]
            self.best = max(self.of.values(), key=lambda e: (e.worth, -e.round), default=None)

    def _forget(self) -> None:
        while len(self.of) > KEPT:
            del self.of[min(r for r, body in self.of.items() if body is not self.best)]
        while len(self._states) > KEPT:
            del self._states[min(self._states)]


def told(body: Evaluation) -> str:
    """Its figures in words: ``loss 3.8123, bits per byte 2.1043``."""
    return ", ".join(f"{name} {value:.5g}" for name, value in body.metrics)
