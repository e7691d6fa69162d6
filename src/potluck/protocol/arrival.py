"""When what is being fetched will be here, by how fast it came lately."""

from __future__ import annotations

from collections import deque

WINDOW_S = 3.0
"""How far one looks back, in seconds."""


class Arrival:
    """Content that comes, and when."""

    def __init__(self) -> None:
        self._came: deque[tuple[float, int]] = deque()
        self._since = 0.0

    def began(self, now: float) -> None:
        """Something is being asked for now, and nothing was before."""
        self._came.clear()
        self._since = now

    def came(self, size: int, now: float) -> None:
        """So many bytes are here."""
        self._came.append((now, size))
        self._forget(now)

    def eta_s(self, left: int, now: float) -> float | None:
        """In how many seconds ``left`` more bytes will be here; None if nothing came lately."""
        self._forget(now)
        took_s = now - max(self._since, now - WINDOW_S)
        size = sum(size for _, size in self._came)
        return left * took_s / size if size and took_s > 0 else None

    def _forget(self, now: float) -> None:
        while self._came and self._came[0][0] < now - WINDOW_S:
            self._came.popleft()
