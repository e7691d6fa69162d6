"""What the ledger says of how good states are: a fold that every peer computes alike.

It decides nothing about rounds, so a release that can't read an evaluation follows the run all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from potluck.wire.records import Commit, Evaluation, Snapshot, chunk_sizes

KEPT = 1000
"""Of more evaluations than so many the oldest are forgotten, but for the best."""


@dataclass(frozen=True)
class Grounds:
    """What a state follows from: a recorded snapshot, and the commits since."""

    snapshot: Snapshot
    commits: tuple[Commit, ...]

    def content(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of each piece."""
        for blob in self.snapshot.files:
            yield from zip(blob.chunks, chunk_sizes(blob), strict=True)
        for commit in self.commits:
            yield from ((info.digest, info.size) for info in commit.parts)


class Evaluations:
    """The evaluations of a run by round, the first of each round, and which is the best."""

    def __init__(self) -> None:
        self.of: dict[int, Evaluation] = {}
        self.best: Evaluation | None = None
        """Of several as good the one of the earliest round."""
        self._grounds: dict[int, Grounds] = {}
        """Those of the best, and of the one that was the best before."""
        self._states: dict[int, str] = {}
        """The states that rounds began from, by the round before."""

    @property
    def last(self) -> int:
        """The newest round that is evaluated; -1 if none is."""
        return max(self.of, default=-1)

    @property
    def grounds(self) -> Grounds | None:
        """What the best state follows from; None if it was too old already when it was evaluated."""
        return self._grounds.get(self.best.round) if self.best is not None else None

    def fault(self, body: Evaluation, head: int) -> str | None:
        """Why an evaluation does not count, with rounds committed up to ``head``; None if it does."""
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
        return None

    def follow(
        self, body: Evaluation, head: int, snapshots: Mapping[int, Snapshot], commits: Mapping[int, Commit]
    ) -> str | None:
        """Fold one in; returns why it was skipped, if it was.

        Of the run there are still these ``snapshots`` and ``commits``, by round.
        """
        if fault := self.fault(body, head):
            return fault
        self.of[body.round] = body
        if self.best is None or (body.worth, -body.round) > (self.best.worth, -self.best.round):
            self.best = body
            self._grounded(body.round, snapshots, commits)
        self._forget()
        return None

    def opened(self, head: int, base: str) -> None:
        """A round begins from the state after ``head``: an evaluation of another one does not count."""
        self._states[head] = base
        found = self.of.get(head)
        if found is not None and found.state != base:
            del self.of[head]
            self.best = max(self.of.values(), key=lambda e: (e.worth, -e.round), default=None)

    def _grounded(
        self, round_: int, snapshots: Mapping[int, Snapshot], commits: Mapping[int, Commit]
    ) -> None:
        for old in list(self._grounds)[:-1]:
            del self._grounds[old]
        start = max((r for r in snapshots if r <= round_), default=None)
        if start is not None:
            since = tuple(commits[r] for r in range(start + 1, round_ + 1))
            self._grounds[round_] = Grounds(snapshots[start], since)

    def _forget(self) -> None:
        while len(self.of) > KEPT:
            del self.of[min(r for r, body in self.of.items() if body is not self.best)]
        while len(self._states) > KEPT:
            del self._states[min(self._states)]


def told(body: Evaluation) -> str:
    """Its figures in words: ``loss 3.8123, bits per byte 2.1043``."""
    return ", ".join(f"{name} {value:.5g}" for name, value in body.metrics)
