"""Makes a failing scenario small: fewer faults, fewer peers, less time, and the same invariant still broken.

Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002) over the
faults, then simpler worlds, until nothing can be left out. Taking a fault away changes all chance after
it, so each candidate is tried with a few seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from potluck.testing.scenario import Fault, Scenario, World
from potluck.testing.simulator import InvariantBroken, Simulation

SEEDS = 3
"""Seeds that a candidate is tried with."""

EVENTS = 5_000_000
"""Simulated events to spend, or those of ``REPEATS`` times the failing run; a count, so that the same failure
shrinks the same way on any machine."""

REPEATS = 20


@dataclass(frozen=True)
class Shrunk:
    """The smallest scenario found, how it fails, and how many runs it took."""

    scenario: Scenario
    failure: InvariantBroken
    runs: int


def failure_of(scenario: Scenario) -> tuple[InvariantBroken | None, int]:
    """How a scenario fails, if it does, and how many events it took."""
    sim = Simulation(scenario.seed, scenario.world, scenario.faults)
    try:
        sim.run()
    except InvariantBroken as broken:
        return broken, sim.outcome.events
    return None, sim.outcome.events


def shrink(scenario: Scenario, tell: Callable[[str], None] = lambda _: None) -> Shrunk:
    """The smallest scenario to be found that breaks the invariant that ``scenario`` breaks.

    Args:
        scenario: one that fails.
        tell: is told how far it is, in words.

    Raises:
        ValueError: the scenario does not fail.
    """
    failure, events = failure_of(scenario)
    if failure is None:
        raise ValueError("this scenario breaks nothing: there is nothing to shrink")
    return _Shrinking(scenario, failure, max(EVENTS, REPEATS * events), tell).run()


class _Shrinking:
    def __init__(
        self, scenario: Scenario, failure: InvariantBroken, events: int, tell: Callable[[str], None]
    ) -> None:
        self.best, self.failure, self.runs = scenario, failure, 1
        self._events, self._tell = events, tell
        self._tried: set[str] = {str(scenario)}

    def run(self) -> Shrunk:
        """Round after round of simplifications, until one brings nothing or all is spent."""
        before = ""
        while str(self.best) != before and self._events > 0:
            before = str(self.best)
            self._end_sooner()
            self._without_faults()
            self._fewer_peers()
            for world in self._kinder():
                self._try(replace(self.best, world=world))
            self._rounder_times()
        return Shrunk(self.best, self.failure, self.runs)

    def _try(self, candidate: Scenario) -> bool:
        """Take a candidate over if it fails in the same way, with its seed or one of the next."""
        for offset in range(SEEDS):
            one = replace(candidate, seed=candidate.seed + offset)
            if str(one) in self._tried or self._events <= 0:
                continue
            self._tried.add(str(one))
            failure, events = failure_of(one)
            self.runs += 1
            self._events -= events
            if failure is not None and failure.broke == self.failure.broke:
                self.best, self.failure = one, failure
                self._tell(f"{len(one.faults)} faults, {one.world.peers} peers after {self.runs} runs")
                return True
        return False

    def _end_sooner(self) -> None:
        """What comes after the failure can't have caused it."""
        at_s, world = self.failure.at_s, self.best.world
        end_s = float(math.ceil(at_s) + 1)
        if end_s < world.duration_s:
            faults = tuple(fault for fault in self.best.faults if fault.at <= at_s)
            self._try(Scenario(self.best.seed, replace(world, duration_s=end_s, calm_s=0.0), faults))
        elif end_s < world.duration_s + world.calm_s:
            calm_s = end_s - world.duration_s
            self._try(replace(self.best, world=replace(world, calm_s=calm_s)))

    def _without_faults(self) -> None:
        """Halves, quarters and so on are left out, single faults last."""
        pieces = 2
        while self.best.faults:
            faults = self.best.faults
            if any(self._try(replace(self.best, faults=kept)) for kept in _less(faults, pieces)):
                pieces = max(2, pieces - 1)
            elif pieces >= len(faults):
                return
            else:
                pieces = min(len(faults), 2 * pieces)

    def _fewer_peers(self) -> None:
        for peers in range(1, self.best.world.peers):
            there = {f"peer{number + 1}" for number in range(peers)}
            there |= {
                name for fault in self.best.faults if fault.form.startswith("join") for name in fault.peers
            }
            faults = tuple(fault for fault in self.best.faults if there.issuperset(fault.peers))
            world = replace(self.best.world, peers=peers)
            if self._try(Scenario(self.best.seed, world, faults)):
                return

    def _kinder(self) -> Iterator[World]:
        """Simpler worlds, one after the other."""
        for name, value in (
            ("loss", 0.0),
            ("duplicate", 0.0),
            ("late", 0.0),
            ("keeps", 0),
            ("mix", 0.0),
            ("fragments", 1),
            ("codec", "fp32"),
            ("outer", "average"),
            ("delay_s", (0.05, 0.05)),
        ):
            if getattr(self.best.world, name) != value:
                yield replace(self.best.world, **{name: value})  # type: ignore[arg-type]

    def _rounder_times(self) -> None:
        """Times that are easy to read, as far as it makes no difference."""
        for index, fault in enumerate(self.best.faults):
            rounder = Fault(float(round(fault.at)), fault.form, tuple(map(_rounder, fault.values)))
            if rounder != fault:
                faults = list(self.best.faults)
                faults[index] = rounder
                self._try(replace(self.best, faults=tuple(sorted(faults, key=lambda f: f.at))))


def _less(faults: Sequence[Fault], pieces: int) -> Iterator[tuple[Fault, ...]]:
    """All faults but one of so many pieces, the last first: later faults are less often needed."""
    bounds = [len(faults) * piece // pieces for piece in range(pieces + 1)]
    for first, last in reversed(list(pairwise(bounds))):
        if first < last:
            yield (*faults[:first], *faults[last:])


def _rounder(value: str | float) -> str | float:
    return float(round(value)) if isinstance(value, float) and value > 1 else value
