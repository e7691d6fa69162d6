"""How a learning rate goes by the run's own progress, so that a joiner stands where the others stand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from potluck.errors import RecipeError
from potluck.recipe.checks import check_section


@dataclass(frozen=True)
class Schedule:
    """A learning rate over a run: ``"constant"``; ``"linear"`` or ``"cosine"``, which fall from the start to
    the end; or ``"wsd"`` (warm-up, stable, decay), which falls linearly in the last share ``cooldown`` of it.

    It rises linearly while the *run* does its first ``warmup`` tokens, and falls to ``floor`` times the
    optimizer's own rate. A joiner comes into the middle of that. ``warmup_steps`` are its own: the first
    steps of each process, in which the rate rises too, as its optimizer knows nothing yet.
    """

    kind: str = "cosine"
    warmup: int = 0
    warmup_steps: int = 0
    cooldown: float = 0.2
    floor: float = 0.0

    def factor(self, done: float, tokens: float, step: int) -> float:
        """What the optimizer's own rate is multiplied by.

        Args:
            done: the share of the run that is done, 0 to 1.
            tokens: that the run has done.
            step: the process's own next step, from 1.
        """
        rise = min(1.0, (tokens + 1) / (self.warmup + 1)) * min(1.0, step / (self.warmup_steps + 1))
        return rise * (self.floor + (1 - self.floor) * self._left(min(1.0, max(0.0, done))))

    def _left(self, done: float) -> float:
        if self.kind == "linear":
            return 1 - done
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        if self.kind == "wsd" and self.cooldown:
            return min(1.0, (1 - done) / self.cooldown)
        return 1.0

    def validate(self, has_end: bool) -> None:
        """Checks its values, and that the run has an end if the rate falls towards one.

        Raises:
            RecipeError: naming the key, its value and what is allowed.
        """
        check_section(self, "schedule")
        if not has_end and (self.kind in ("linear", "cosine") or (self.kind == "wsd" and self.cooldown)):
            raise RecipeError(
                f"a learning rate that falls (schedule {self.kind!r}) needs the run's end: set end.tokens, "
                "end.rounds or end.epochs in the host's recipe"
            )


def follow(
    schedule: Schedule | Callable[[float], float],
    done: Callable[[], float],
    tokens: Callable[[], float],
) -> Callable[..., None]:
    """A hook before each step of an optimizer (``register_step_pre_hook``), which sets its learning rates:
    each group's own, ``initial_lr`` or else what it has now, times the schedule's factor.

    Args:
        schedule: or any function of the share of the run that is done.
        done: tells that share.
        tokens: tells the run's tokens.
    """
    step = 0

    def hook(optimizer: Any, *_: object) -> None:
        nonlocal step
        step += 1
        share = done()
        factor = schedule.factor(share, tokens(), step) if isinstance(schedule, Schedule) else schedule(share)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    return hook
