"""Virtual time: an asyncio loop whose clock jumps to the next timer whenever nothing is ready.

An hour of a simulated swarm takes as long as its computing does, and the same program runs the same way each
time. It has no threads (work for an executor runs in place) and no sockets to wait for: use it with
``potluck.net.memory``.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ENDING_S = 3600.0
"""Virtual time for tasks to end in, once the limit has been reached."""


class Stuck(AssertionError):
    """The simulation can't go on, or did not end within its limit of virtual time."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that starts at 0 s and never sleeps.

    Args:
        limit_s: virtual time after which ``Stuck`` is raised.
    """

    def __init__(self, limit_s: float = 1e6) -> None:
        self._now_s = 0.0
        self._limit_s = limit_s
        super().__init__(_Jump(self._advance))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Call ``func`` in this thread, in its turn."""

        async def call() -> T:
            return func(*args)

        return self.create_task(call())

    def _advance(self, seconds: float | None) -> None:
        if seconds is None:
            names = sorted(task.get_name() for task in asyncio.all_tasks(self))
            waiting = f"{len(names)} tasks wait: {', '.join(names[:20])}"
            raise Stuck(f"nothing can happen any more at {self._now_s:.3f} s, and {waiting}")
        self._now_s += seconds
        if self._now_s > self._limit_s:
            self._limit_s += _ENDING_S
            raise Stuck(f"not done after {self._now_s:.0f} s of virtual time")


class _Jump(selectors.DefaultSelector):
    """Instead of waiting for files, moves the clock. The loop's own wake-up pipe is still looked at."""

    def __init__(self, advance: Callable[[float | None], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout != 0:
            self._advance(timeout)
        return events


def run_virtual(main: Coroutine[Any, Any, T], *, limit_s: float = 1e6) -> T:
    """Run ``main`` as ``asyncio.run`` does, in virtual time.

    Raises:
        Stuck: every task waits for another, or ``limit_s`` of virtual time went by.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(limit_s)) as runner:
        return runner.run(main)
