"""A peer of ``bench.utilisation``: inner steps of a fixed time that cost no processor."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import zlib
from collections import Counter
from collections.abc import Callable

import torch
from bench.exchanger import STEP_TOKENS, Still, Values

import potluck

SPREAD = 32
"""After so many steps all of a vector's values have moved."""

CHANGE = 1e-3
"""How much a value moves then, about."""


def wait(run: potluck.Run, model: Values, pace_s: float, name: str, say: Callable[..., None]) -> None:
    """Take steps of ``pace_s`` seconds until the run is left or we are told to stop.

    A step moves some of the values, others each time, and sleeps for the rest of its time: the processor is
    the network's and the hand-over's. At the first boundary after each round it says how many steps there
    were since the beginning, and seconds lost: in boundaries (``boundary_s``, of which the processor had
    ``boundary_cpu_s``) and by steps that ended late (``late_s``); and how long, of both, no core was free for
    this thread, which was ready to run (``queued_s``).
    """
    _tell_rounds(run, say)
    seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    ranges = model.values.detach().tensor_split(SPREAD)
    change = torch.randn(len(ranges[0]), generator=seed).mul_(CHANGE)
    optimizer = run.optimizer(Still(model), tokens_per_step=STEP_TOKENS)
    late_s = boundary_s = boundary_cpu_s = queued_s = 0.0
    queue = Queue()
    marked = -1
    ended = time.monotonic()
    for steps, some in enumerate(itertools.cycle(ranges), start=1):
        began = ended
        some.add_(change[: len(some)])
        waited_s = queue.seconds()
        time.sleep(max(0.0, began + pace_s - time.monotonic()))
        stepped, cpu_s = time.monotonic(), time.thread_time()
        optimizer.step()
        ended = time.monotonic()
        late_s += stepped - began - pace_s
        boundary_s += ended - stepped
        boundary_cpu_s += time.thread_time() - cpu_s
        queued_s += queue.seconds() - waited_s
        if run.round != marked:
            marked = run.round
            lost = {"late_s": late_s, "boundary_s": boundary_s, "boundary_cpu_s": boundary_cpu_s}
            say(mark=marked, steps=steps, ended=ended, queued_s=queued_s, **lost)


class Queue:
    """How long the thread that makes it has been ready to run without a core, if the kernel counts it."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def seconds(self) -> float:
        """Since the thread began; 0 if nobody counts."""
        return int(os.pread(self._file, 100, 0).split()[1]) / 1e9 if hasattr(self, "_file") else 0.0


def _tell_rounds(run: potluck.Run, say: Callable[..., None]) -> None:
    """Whenever a round was applied, tell the bytes on the sockets so far, from the network's thread."""
    node = run._node
    inner = node.core.applied

    def applied(round_: int, state: str, loaded: bool) -> None:
        inner(round_, state, loaded)
        kinds: Counter[str] = Counter()
        for (_, kind), stream in node.links._streams.items():
            kinds[kind] += stream.bytes_sent
        client = node.hub.presence._client
        say(
            applied=round_,
            sent=node.links.bytes_sent + node.desk.bytes_sent,
            received=node.links.bytes_received + node.desk.bytes_received,
            kinds=dict(kinds),
            hub=dict(client.stats) if client is not None else {},
            cpu_s=time.process_time(),
        )

    node.core.applied = applied  # type: ignore[method-assign]
