"""A peer of ``bench.allreduce``: rounds of one vector of values, and steps that cost nothing."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch

import potluck

CHANGE = 1e-3
"""How much each value moves in a round, about."""


class Still(torch.optim.Optimizer):
    """Changes nothing: what a round brings is added once, by the loop."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), {})

    def step(self, closure: Any = None) -> None:
        """A boundary, and no more."""


class Values(torch.nn.Module):
    """One vector, zero at first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.zeros(size))


def exchange(run: potluck.Run, model: Values, pace_s: float, name: str, say: Callable[..., None]) -> None:
    """Take steps until the run is left or we are told to stop; each round moves all values at random."""
    core = run._node.core
    inner = core.applied

    def applied(round_: int, state: str, loaded: bool) -> None:
        inner(round_, state, loaded)
        say(applied=round_, cpu_s=time.process_time())

    core.applied = applied  # type: ignore[method-assign]
    seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    change = torch.randn(model.values.numel(), generator=seed).mul_(CHANGE)
    optimizer = run.optimizer(Still(model), tokens_per_step=1)
    pace, moved = threading.Event(), -1
    while True:
        if run.round != moved:
            moved = run.round
            with torch.no_grad():
                model.values.add_(change)
        optimizer.step()
        pace.wait(pace_s)
