"""Python that never rests, as the training of ``bench.busy``: in a peer, or in a process of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from bench.exchanger import Values, exchange

import potluck

LOOPS = 1000
"""So many turns of a loop between two looks at the clock."""

TOLD_S = 0.1
"""How often it is told how many there were, in seconds."""


class Spinner:
    """Counts turns of a loop, and tells them."""

    def __init__(self, say: Callable[..., None]) -> None:
        self._say = say
        self._loops = 0
        self._told_at = 0.0

    def spin(self, seconds: float) -> None:
        """Hold the interpreter for so long, as far as other threads let us."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for _ in range(LOOPS):
                pass
            self._loops += LOOPS
            if now > self._told_at + TOLD_S:
                self._told_at = now
                self._say(loops=self._loops)


def spin(run: potluck.Run, model: Values, pace_s: float, name: str, say: Callable[..., None]) -> None:
    """As ``exchange``, and between two steps Python spins where it would sleep."""
    exchange(run, model, pace_s, name, say, Spinner(say).spin)


def main() -> None:
    """Spin until we are killed."""
    spinner = Spinner(lambda **said: print(json.dumps({"at": time.monotonic(), **said}), flush=True))
    while True:
        spinner.spin(1.0)


if __name__ == "__main__":
    main()
