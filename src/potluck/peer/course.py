"""How far a run is, as every peer can tell: what is committed, and what is said to be done since."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from potluck.protocol.leases import count
from potluck.protocol.view import RunView
from potluck.recipe import Recipe
from potluck.wire.messages import Progress

AHEAD_S = 2.0
"""Others are taken to go on at their speed for so long after they were heard, in seconds."""


@dataclass(frozen=True)
class Heard:
    """What was known at one moment: what is committed, what others did since, and their speed (tokens/s)."""

    at: float
    tokens: int
    round: int
    blocks: int
    pending: float
    speed: float


class Course:
    """``seen`` is for the network thread; the rest is for the one that trains, and never goes back.

    Peers' tokens since their cuts are what they announce once a second, so that all stand alike within that,
    and within what is in an exchange: between the cut and the commit it counts nowhere.

    Args:
        recipe: the run's.
        end: of the data, in blocks, if it has one.
        mine: tells what was done here since the last cut, in tokens.
        clock: in seconds.
    """

    def __init__(
        self,
        recipe: Recipe,
        end: int | None,
        mine: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recipe, self._blocks, self._mine, self._clock = recipe, end, mine, clock
        self._heard = Heard(clock(), 0, 0, 0, 0.0, 0.0)
        self._tokens = self._done = 0.0

    def seen(self, view: RunView, others: Iterable[Progress]) -> None:
        """The run as it is now."""
        training = [p for p in others if p.phase == "training"]
        blocks = count(view.leases.included) if view.leases is not None else 0
        pending, speed = sum(p.tokens for p in training), sum(p.tokens_per_s for p in training)
        self._heard = Heard(self._clock(), view.tokens, view.round, blocks, pending, speed)

    @property
    def tokens(self) -> float:
        """Tokens that the run has done."""
        heard = self._heard
        self._tokens = max(self._tokens, heard.tokens + self._pending(heard))
        return self._tokens

    @property
    def done(self) -> float:
        """The share of the run that is done, 0 to 1, by whichever end comes first; 0 if it has none."""
        heard, end = self._heard, self._recipe.end
        part = min(1.0, self._pending(heard) / self._recipe.rounds.tokens)
        shares = (
            self.tokens / end.tokens if end.tokens else 0.0,
            (heard.round + part) / end.rounds if end.rounds else 0.0,
            heard.blocks / self._blocks if self._blocks else 0.0,
        )
        self._done = max(self._done, min(1.0, max(shares)))
        return self._done

    def _pending(self, heard: Heard) -> float:
        others = heard.pending
        if others:
            others += heard.speed * min(AHEAD_S, self._clock() - heard.at)
        return others + self._mine()
