"""What is on its way to us, by who pushes it: results that come by themselves need not be fetched.

What one member pushes to another comes in order, its contributions before its results, unless it is small and
soon here.
"""

from __future__ import annotations

import math
from collections import defaultdict

PUSH_S = 1.0
"""How long a member waits for a result's push once another holds it, or since the last push of its reducer
began or ended, before it fetches it, in seconds.
"""


class Incoming:
    """Pushes to us by each member of a round: the next may begin before what came is kept."""

    def __init__(self) -> None:
        self._coming: defaultdict[int, list[str]] = defaultdict(list)
        self._at: dict[int, float] = {}

    def heard(self, index: int, digest: str, begins: bool, now: float) -> None:
        """A push by a member begins, or has ended, well or not; ``digest`` is a result's, or empty."""
        self._at[index] = now
        if begins:
            self._coming[index].append(digest)
        elif digest in self._coming[index]:
            self._coming[index].remove(digest)

    def expects(self, digest: str, reducer: int, now: float) -> bool:
        """Whether a result comes now, or its reducer is pushing what comes first."""
        if now < self._at.get(reducer, -math.inf) + PUSH_S or self._coming[reducer]:
            return True
        return any(digest in some for some in self._coming.values())
