"""Which results are on their way to us, by who pushes them: what comes by itself need not be fetched."""

from __future__ import annotations

import math

PUSH_S = 1.0
"""How long a member waits for a result's push once another holds it, or since the last push of its reducer
began or ended, before it fetches it, in seconds.
"""


class Incoming:
    """Pushes to us, at most one by each member of a round."""

    def __init__(self) -> None:
        self._coming: dict[int, str] = {}
        self._at: dict[int, float] = {}

    def heard(self, index: int, digest: str, begins: bool, now: float) -> None:
        """A push by a member begins, or has ended, well or not."""
        self._at[index] = now
        self._coming.pop(index, None)
        if begins:
            self._coming[index] = digest

    def expects(self, digest: str, reducer: int, now: float) -> bool:
        """Whether a result comes now, or its reducer is pushing others, which come first."""
        recently = now < self._at.get(reducer, -math.inf) + PUSH_S
        return recently or reducer in self._coming or digest in self._coming.values()
