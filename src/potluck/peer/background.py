"""The network's thread: one asyncio loop, and a way for other threads to have it do something."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from potluck.errors import EnvironmentProblem, PotluckError

T = TypeVar("T")

JOIN_S = 15.0
"""How long the thread may take to end, in seconds."""


class Background:
    """A loop in a thread of its own, from the start until ``stop``."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="potluck-network", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can still be asked for something."""
        return self._thread.is_alive()

    @property
    def now(self) -> float:
        """The loop's clock, in seconds."""
        return self._loop.time()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        """Run a coroutine in the thread and wait for it; Ctrl-C gets through.

        Raises:
            EnvironmentProblem: it took longer than ``timeout_s``.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                return future.result(0.5)
            except TimeoutError:
                if future.done():
                    raise
                if deadline is not None and time.monotonic() > deadline:
                    future.cancel()
                    raise EnvironmentProblem(f"the network did not answer in {timeout_s:.0f} s") from None
            except BaseException:
                future.cancel()
                raise

    def read(self, read: Callable[[], T], timeout_s: float) -> T:
        """Something of the thread's, as it is at one moment."""
        return self.call(_of(read), timeout_s)

    def stop(self, last: Coroutine[Any, Any, None], timeout_s: float) -> None:
        """Run ``last``, cancel whatever still runs, and end the thread. Safe to call twice."""
        if self._thread.is_alive():
            with contextlib.suppress(PotluckError):
                self.call(_wind_up(last), timeout_s)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(JOIN_S)
        else:
            last.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        # Here, as the thread that ends us may have a loop of its own running (a notebook has).
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _wind_up(last: Coroutine[Any, Any, None]) -> None:
    await last
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _of(read: Callable[[], T]) -> T:
    return read()
