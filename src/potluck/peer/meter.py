"""How fast a link is, seen in passing: by what all of its streams carried together while they were busy.

One stream among several has a share of the link only, and a mean over an exchange has the time in which
others kept us waiting. So the bytes of each large body are spread over the time it was under way, and the
most that came together in half a second is what the link can carry, if it was ever full. A link that never
was is faster than that. (The least that was sent in one go can look faster than it is: half a second of
buffers.)
"""

from __future__ import annotations

from collections import deque

from potluck.wire.messages import MAX_RATE

BIN_S = 0.1
BINS = 5
"""The busiest ``BINS`` times ``BIN_S`` seconds tell."""

QUIET_S = 2.0
LONGEST_S = 60.0
"""After so many seconds without a body, or this many in all, another burst begins."""

BURSTS = 4
"""The fastest of so many bursts counts: in some a link is not full."""

LEAST_BYTES = 1 << 20
"""A burst of fewer bytes tells nothing."""


class Meter:
    """One direction of a link. Times are in seconds, by any clock that runs on."""

    def __init__(self) -> None:
        self._bins: dict[int, float] = {}
        self._past: deque[float] = deque(maxlen=BURSTS - 1)
        self._since = self._ended = float("-inf")

    def moved(self, size: int, began: float, ended: float) -> None:
        """A body of so many bytes was under way from one time to another."""
        if began > self._ended + QUIET_S or ended > self._since + LONGEST_S:
            if sum(self._bins.values()) >= LEAST_BYTES:
                self._past.append(self._fastest())
            self._bins, self._since = {}, began
        self._ended = max(self._ended, ended)
        began = max(began, ended - LONGEST_S)
        first, last = int(began // BIN_S), int(ended // BIN_S)
        for number in range(first, last + 1):
            share = 1.0
            if last > first:
                inside = min(ended, (number + 1) * BIN_S) - max(began, number * BIN_S)
                share = max(0.0, inside) / (ended - began)
            self._bins[number] = self._bins.get(number, 0.0) + size * share

    @property
    def rate(self) -> float:
        """The most that the link was seen to carry lately, in bytes/s; 0 while unknown."""
        enough = sum(self._bins.values()) >= LEAST_BYTES
        return min(MAX_RATE, max([*self._past, *([self._fastest()] if enough else [])], default=0.0))

    def _fastest(self) -> float:
        sums = (sum(self._bins.get(n + i, 0.0) for i in range(BINS)) for n in self._bins)
        return max(sums, default=0.0) / (BINS * BIN_S)
