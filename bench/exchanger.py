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

STEP_TOKENS = 1000
"""What a step between two rounds counts as."""


class Still(torch.optim.Optimizer):
    """Changes nothing: what a round brings is added once, by the loop."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model.parameters(), {})

    def step(self, closure: Any = None) -> Any:
        """A boundary, and no more."""


class Values(torch.nn.Module):
    """One vector, at random of this scale. What goes through counts as work, and is not looked at."""

    def __init__(self, size: int, scale: float = 0.0) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.randn(size) * scale if scale else torch.zeros(size))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def exchange(
    run: potluck.Run,
    model: Values,
    pace_s: float,
    name: str,
    say: Callable[..., None],
    rest: Callable[[float], object] | None = None,
) -> None:
    """Take steps until the run is left or we are told to stop; each round moves all values at random. Between
    two steps we ``rest`` for ``pace_s`` seconds, or sleep.

    While a round is in flight a step counts as next to nothing: the next one opens when all have this one.
    """
    core = run._node.core
    inner = core.applied

    def applied(round_: int, state: str, loaded: bool) -> None:
        inner(round_, state, loaded)
        say(applied=round_, cpu_s=time.process_time())

    core.applied = applied  # type: ignore[method-assign]
    seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    change = torch.randn(model.values.numel(), generator=seed).mul_(CHANGE)
    optimizer = run.optimizer(Still(model))
    work = torch.zeros(STEP_TOKENS, dtype=torch.int64)
    rest, moved = rest or threading.Event().wait, -1
    while True:
        if run.round != moved:
            moved = run.round
            with torch.no_grad():
                model.values.add_(change)
        if core.exchange is None and core.view.round == moved:
            model(work)
        optimizer.step()
        rest(pace_s)
