"""When it is our turn to act as steward: the longer the line before us, the later."""

from __future__ import annotations

RANK_S = 0.7
"""Each further peer in line waits so much longer before it acts as steward, in seconds."""

AGAIN_S = 1.0
"""How soon after an append that was not taken another may follow, if no record came since, in seconds."""

ANSWER_S = 5.0
"""An append not answered for so long is taken as lost, in seconds; the ledger arbitrates if it was not."""

LINE = 8
"""Who stands further back in the line of stewards looks at what is to be decided less often."""

LOOK_S = 0.3
"""Each place in line makes the pause between two looks so much longer, in seconds."""


class Turn:
    """What is due, since when, and whether an append of ours is on its way."""

    def __init__(self) -> None:
        self._due: tuple[object, float] = (None, 0.0)
        self._look_at = 0.0
        self._appending_until: float | None = None

    @property
    def due(self) -> bool:
        """Whether there is something to be decided."""
        return self._due[0] is not None

    def looks(self, rank: int | None, now: float) -> bool:
        """Whether it is time to look at what is to be decided."""
        if rank is not None and rank > LINE and now < self._look_at:
            return False
        self._look_at = now + LOOK_S * (rank or 0)
        return True

    def comes(self, key: object, rank: float | None, now: float) -> bool:
        """Whether to append now what is to be decided (``key`` says what; None: nothing)."""
        if key != self._due[0] or key is None:
            self._due = (key, now)
        if key is None or rank is None or now < self._due[1] + rank * RANK_S:
            return False
        if self._appending_until is not None and now < self._appending_until:
            return False
        self._appending_until = now + ANSWER_S
        return True

    def refused(self) -> None:
        """Our append was not taken."""
        if self._appending_until is not None:
            self._appending_until -= ANSWER_S - AGAIN_S

    def followed(self) -> None:
        """The ledger has a new record."""
        self._appending_until = None
