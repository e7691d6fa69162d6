"""Measures shared states: a copy of the model in a thread of its own, beside the training.

On the training thread the peer would stand still meanwhile, and a round that opens would wait for its cut
until the grace period ends. So it costs memory for the parameters once more while it lasts, and what both
threads take from each other of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from potluck.errors import UsageError
from potluck.peer.layout import Vector
from potluck.peer.trainer import Trainer

Measure = Callable[[Any], Any]
Metrics = tuple[tuple[str, float], ...]

NICE = 10
"""So much the thread lets others go first, as ``nice`` counts it."""

END_S = 2.0
"""How long an evaluation that is broken off may take to end, in seconds: until its next call of the model."""

MOST = 64
"""Metrics of an evaluation, at most."""

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9 _./@%()-]{0,63}")


class EvaluationFailed(Exception):
    """No figures came of it, and why."""


class _BrokenOff(BaseException):
    """Ends a measuring function at its next call of the model."""


class Evaluator:
    """Calls ``measure`` with the model.

    Args:
        measure: takes the model, in evaluation mode and without gradients, and returns a number, or numbers
            by name, the first of which is what states are compared by.
        every: rounds between two evaluations.
        rises: more of the first number is better.
    """

    def __init__(self, trainer: Trainer, measure: Measure, every: int, rises: bool) -> None:
        self.every, self.rises = every, rises
        self._trainer, self._measure = trainer, measure
        self._broken_off = threading.Event()
        self._thread: threading.Thread | None = None

    async def evaluate(self, theta: Vector) -> tuple[Metrics, float]:
        """Figures of the shared parameters [n], and how long they took, in seconds.

        Raises:
            EvaluationFailed: there are none, and why.
        """
        loop, began = asyncio.get_running_loop(), time.monotonic()
        ended: asyncio.Future[Metrics | EvaluationFailed] = loop.create_future()

        def settle(outcome: Metrics | EvaluationFailed) -> None:
            if not ended.done():
                ended.set_result(outcome)

        def work() -> None:
            outcome = self._outcome(theta)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, outcome)

        self._thread = threading.Thread(target=work, name="potluck-evaluation", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the machine has no more threads
            self._thread = None
            raise EvaluationFailed(f"no thread could be started: {error}") from error
        outcome = await ended
        if isinstance(outcome, EvaluationFailed):
            raise outcome
        return outcome, time.monotonic() - began

    def close(self) -> None:
        """Break off what is going on, and wait a little until it has ended."""
        self._broken_off.set()
        if self._thread is not None:
            self._thread.join(END_S)

    # -- the thread ------------------------------------------------------------------------------

    def _outcome(self, theta: Vector) -> Metrics | EvaluationFailed:
        if sys.platform == "linux":  # elsewhere threads have no niceness of their own, and this is no process
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            return figures(self._measured(theta), self.rises)
        except BaseException as error:  # also SystemExit: whatever ends the thread is awaited
            told = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            return EvaluationFailed(told)

    def _measured(self, theta: Vector) -> Any:
        copy = self._trainer.copied()
        copy.write(theta)
        copy.model.register_forward_pre_hook(self._go_on)
        with torch.no_grad():
            return self._measure(copy.model)

    def _go_on(self, *_: object) -> None:
        if self._broken_off.is_set():
            raise _BrokenOff("the peer leaves")


def figures(said: Any, rises: bool) -> Metrics:
    """What a measuring function returned, as named numbers; one alone is the ``loss``, or the ``score``.

    Raises:
        UsageError: it is no number, nor finite numbers by name.
    """
    named = said if isinstance(said, Mapping) else {"score" if rises else "loss": said}
    if not 0 < len(named) <= MOST:
        raise UsageError(f"run.evaluate got {len(named)} numbers; return one, or up to {MOST} by name")
    found = []
    for name, value in named.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"run.evaluate got a number named {name!r}: names are up to 64 letters, digits, spaces and "
                "any of _./@%()-"
            )
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"run.evaluate got {name} = {value!r:.80}, which is no number") from error
        if not math.isfinite(number):
            raise UsageError(f"run.evaluate got {name} = {number}: only finite numbers are recorded")
        found.append((name, number))
    return tuple(found)
