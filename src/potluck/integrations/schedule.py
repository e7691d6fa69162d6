"""A library's learning rate schedule, spread over the run instead of this peer's own steps."""

from __future__ import annotations

import warnings
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from potluck.run import Run


class RunSchedule:
    """Puts a schedule where the run is, so that a joiner stands where the others stand: of its ``steps`` as
    many are behind it as is the share of the run that is done (``Run.done``), whoever did it.

    Only of schedules that are a function of the step number (``LambdaLR``, as all of transformers but those
    that wait for a plateau), in runs with an end; others keep to this peer's own steps.
    """

    def __init__(self, run: Run, scheduler: Any, steps: int) -> None:
        self._run, self._steps = run, steps
        inner = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
        follows = run.recipe.end.exists and isinstance(inner, LambdaLR) and steps > 0
        self._scheduler = inner if follows else None

    def begin(self) -> None:
        """Before the first step: this peer may have come late."""
        if self._scheduler is not None:
            self.before_next()
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of no step so far
                self._scheduler.step()

    def before_next(self) -> None:
        """Before the library takes the schedule one step on: see to it that this leads to the right place."""
        if self._scheduler is not None:
            self._scheduler.last_epoch = round(self._run.done * self._steps) - 1
