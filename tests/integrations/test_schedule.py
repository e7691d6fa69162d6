"""A Trainer's learning rate schedule goes by the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from potluck.recipe import End, Recipe

transformers = pytest.importorskip("transformers")
schedule = pytest.importorskip("potluck.integrations.schedule")


class Loop:
    """What a Trainer does with a schedule of 1,000 steps, 100 of them warm-up, in a run."""

    def __init__(self, end: End, done: float = 0.0, make: Any = None) -> None:
        self.run = SimpleNamespace(recipe=Recipe(end=end), done=done)
        weight = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([weight], lr=1.0)
        self.scheduler = make(self.optimizer) if make else self._linear()
        self.by_run = schedule.RunSchedule(self.run, self.scheduler, 1_000)
        self.by_run.begin()

    def _linear(self) -> Any:
        return transformers.get_scheduler("linear", self.optimizer, 100, 1_000)

    def step(self, done: float) -> float:
        self.run.done = done
        self.optimizer.step()
        self.by_run.before_next()
        self.scheduler.step()
        return self.rate

    @property
    def rate(self) -> float:
        [rate] = self.scheduler.get_last_lr()
        assert rate == self.optimizer.param_groups[0]["lr"]
        return rate


def test_the_rate_is_where_the_run_is_whatever_this_peers_steps() -> None:
    loop = Loop(End(rounds=10))
    assert loop.rate == 0.0
    assert loop.step(0.05) == pytest.approx(0.5)
    assert loop.step(0.05) == pytest.approx(0.5)
    assert loop.step(0.1) == pytest.approx(1.0)
    assert loop.step(0.55) == pytest.approx(0.5)
    assert loop.step(1.0) == 0.0


def test_a_joiner_begins_where_the_others_are() -> None:
    assert Loop(End(tokens=1_000), done=0.55).rate == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("end", "make"),
    [(End(), None), (End(rounds=10), lambda optimizer: StepLR(optimizer, 1, 0.5))],
    ids=["a run without an end", "another kind of schedule"],
)
def test_other_schedules_keep_to_local_steps(end: End, make: Any) -> None:
    loop = Loop(end, done=0.5, make=make)
    first = loop.rate
    loop.step(0.5)
    assert loop.rate == pytest.approx(first * 0.5 if make else first + 0.01)
