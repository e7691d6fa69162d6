"""The data that is leased to one trainer: which block comes next, and what is done of them.

Blocks leave in the order in which they came. Those before ``_done`` are in the model's parameters here, those
before ``_taken`` were handed to the training loop, and a commit takes them out in front.
"""

from __future__ import annotations

from collections.abc import Iterable

from potluck.protocol.leases import Span, count, take


class LeaseQueue:
    """Positions leased to one life of one peer. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self.leased = 0
        """How many were ever leased."""
        self._spans: list[Span] = []
        self._taken = 0
        self._done = 0

    @property
    def left(self) -> int:
        """How many the training loop has not been given yet."""
        return count(self._spans) - self._taken

    @property
    def done(self) -> int:
        """How many are in the parameters here, and in no commit yet."""
        return self._done

    def trained(self) -> list[int]:
        """The positions of ``done``."""
        return [p for span in take(list(self._spans), self._done) for p in range(*span)]

    def lease(self, spans: Iterable[Span]) -> None:
        """More positions, behind those that are here."""
        spans = list(spans)
        self._spans += spans
        self.leased += count(spans)

    def take(self) -> int | None:
        """The next position for the training loop; None while there is none."""
        if self.left <= 0:
            return None
        rest = self._taken
        for start, stop in self._spans:
            if rest < stop - start:
                self._taken += 1
                return start + rest
            rest -= stop - start
        raise AssertionError("left says that there is one")

    def stepped(self) -> None:
        """An inner step ended: what was taken is in the parameters."""
        self._done = self._taken

    def included(self, number: int) -> None:
        """The first so many are in a commit."""
        gone = count(take(self._spans, number))
        self._taken, self._done = max(0, self._taken - gone), max(0, self._done - gone)

    def rewind(self) -> None:
        """The parameters were replaced: what was done, and is in no commit, is to be done again."""
        self._taken = self._done = 0

    def revoke(self) -> None:
        """All of them went to others."""
        self._spans, self._taken, self._done = [], 0, 0
