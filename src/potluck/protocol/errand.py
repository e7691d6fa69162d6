"""Something asked for until it is done: in flight, or to be tried again at a time."""

from __future__ import annotations

from dataclasses import dataclass

RETRY_S = 0.5
"""Pause before a failed send or fetch is tried again, in seconds."""


@dataclass
class Errand:
    """Something sent or fetched: in flight, done, or to be tried again at a time."""

    flying: bool = False
    done: bool = False
    retry_at: float = 0.0
    tries: int = 0
    failures: int = 0

    def due(self, now: float) -> bool:
        """Whether it is to be begun now."""
        return not self.flying and not self.done and now >= self.retry_at

    def ended(self, done: bool, now: float) -> None:
        """It came to an end; if that is not the one that was wanted, it is tried again."""
        self.flying, self.done, self.retry_at = False, done, now + RETRY_S
        self.failures += not done
