"""Learning rates by the run's own progress."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import RecipeError
from potluck.recipe import End, Inner, Recipe
from potluck.recipe.checks import SCHEDULES
from potluck.recipe.schedule import Schedule, follow

FOREVER = 10**12


def factors(schedule: Schedule, *shares: float) -> list[float]:
    """Long after the warm-up."""
    return [schedule.factor(share, FOREVER, FOREVER) for share in shares]


def test_how_each_kind_falls() -> None:
    quarters = (0.0, 0.25, 0.5, 0.75, 1.0)
    assert factors(Schedule("constant"), *quarters) == [1, 1, 1, 1, 1]
    assert factors(Schedule("linear"), *quarters) == [1, 0.75, 0.5, 0.25, 0]
    assert factors(Schedule("cosine"), *quarters) == pytest.approx([1, 0.8536, 0.5, 0.1464, 0], abs=1e-4)
    assert factors(Schedule("wsd", cooldown=0.5), *quarters) == [1, 1, 1, 0.5, 0]
    assert factors(Schedule("wsd", cooldown=0.0), *quarters) == [1, 1, 1, 1, 1]
    assert factors(Schedule("wsd", cooldown=1.0), *quarters) == factors(Schedule("linear"), *quarters)
    assert factors(Schedule("linear", floor=0.2), 0.5, 1.0, 1.5) == pytest.approx([0.6, 0.2, 0.2])


def test_the_run_warms_up_by_its_tokens_and_a_peer_by_its_own_steps() -> None:
    run = Schedule("constant", warmup=999)
    assert [run.factor(0, tokens, 1) for tokens in (0, 499, 999, 5000)] == [0.001, 0.5, 1, 1]
    own = Schedule("constant", warmup_steps=3)
    assert [own.factor(0, 0, step) for step in (1, 2, 3, 4, 9)] == [0.25, 0.5, 0.75, 1, 1]
    both = Schedule("constant", warmup=999, warmup_steps=3)
    assert both.factor(0, 499, 2) == 0.25, "a joiner in the middle of the warm-up"


@given(
    st.sampled_from(SCHEDULES),
    st.integers(0, 100),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 200),
    st.integers(1, 50),
)
def test_a_rate_is_between_nothing_and_the_optimizers_own(
    kind: str, warmup: int, cooldown: float, floor: float, done: float, tokens: float, step: int
) -> None:
    schedule = Schedule(kind, warmup, 7, cooldown, floor)
    schedule.validate(has_end=True)
    assert 0 <= schedule.factor(done, tokens, step) <= 1
    assert schedule.factor(done, tokens, step) <= schedule.factor(done, tokens + 1, step + 1)
    assert schedule.factor(done, tokens, step) >= schedule.factor(min(1.0, done + 0.1), tokens, step) - 1e-12


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Schedule("cosin"), "schedule.kind = 'cosin' should be one of .* did you mean 'cosine'"),
        (Schedule(warmup=-1), "schedule.warmup = -1 should be from 0"),
        (Schedule(warmup=1.5), "schedule.warmup = 1.5 should be a whole number"),  # type: ignore[arg-type]
        (Schedule(cooldown=2.0), "schedule.cooldown"),
        (Schedule(floor=float("nan")), "schedule.floor = nan should be a finite number"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_named(schedule: Schedule, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        schedule.validate(has_end=True)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_what_falls_needs_an_end(kind: str) -> None:
    falls = kind != "constant"
    if falls:
        with pytest.raises(RecipeError, match="needs the run's end"):
            Schedule(kind).validate(has_end=False)
        with pytest.raises(RecipeError, match="needs the run's end"):
            Recipe(inner=Inner(schedule=kind, cooldown=0.2)).validate()
    else:
        Schedule(kind).validate(has_end=False)
    for end in (End(tokens=9), End(rounds=9)):
        replace(Recipe(), inner=Inner(schedule=kind, cooldown=0.2), end=end).validate()


class Optimizer:
    """What a hook sees of one."""

    def __init__(self, *rates: float) -> None:
        self.param_groups = [{"lr": rate} for rate in rates]

    @property
    def rates(self) -> list[float]:
        return [group["lr"] for group in self.param_groups]


def test_each_group_has_its_own_rate_and_keeps_it() -> None:
    optimizer, shares = Optimizer(1.0, 0.1), iter([0.0, 0.5, 0.75])
    hook = follow(Schedule("linear"), lambda: next(shares), lambda: FOREVER)
    seen = []
    for _ in range(3):
        hook(optimizer, (), {})
        seen.append(optimizer.rates)
    assert seen == [[1.0, 0.1], [0.5, 0.05], [0.25, 0.025]]
    optimizer.param_groups.append({"lr": 4.0})
    follow(lambda done: 1 - done, lambda: 0.5, lambda: 0)(optimizer)
    assert optimizer.rates == [0.5, 0.05, 2.0], "a function of the share does as well, also for a new group"


def test_a_joiners_first_steps_are_its_own() -> None:
    rates = []
    first, later = Optimizer(1.0), Optimizer(1.0)
    schedule = Schedule("constant", warmup_steps=1)
    one, other = (follow(schedule, lambda: 0.5, lambda: 7) for _ in range(2))
    for _ in range(2):
        one(first)
    other(later)
    rates = first.rates + later.rates
    assert rates == [1.0, 0.5]
