"""Signals that ask a command to end: the first in good order, the second at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Self

from potluck.app.output import Output

ENDING = (signal.SIGINT, signal.SIGTERM)


class Leaving(BaseException):
    """Somebody asked this process to end; ``code`` is the exit code that says so.

    Like ``KeyboardInterrupt`` it is no error, and nothing on its way swallows it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Interrupts:
    """Inside, the first SIGINT or SIGTERM raises ``Leaving`` in the main thread, a second ends all."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in ENDING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._out.restore()
            with contextlib.suppress(RuntimeError):  # the signal met the main thread in the middle of a line
                sys.stdout.flush()
            os._exit(128 + number)
        self._asked = True
        raise Leaving(number)
