"""One process of a benchmark's swarm: ``python -m bench.peer host|join|watch|exchange|spin|wait '{…}'``.

Says on standard output, a JSON object a line, what happens to it; ``at`` is the machine's monotonic clock.
``host`` and ``join`` train a model of a chosen size at a chosen pace. ``watch`` only follows, and tells what
the ledger says. ``exchange`` takes steps that cost nothing, and tells when each round is where; those of
``wait`` take their time, and it tells how much of it was lost; those of ``spin`` hold the interpreter.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo  # what the first optimizer would import later
from bench.exchanger import Still, Values

import potluck

SPREAD = 8
"""After so many steps all of a vector's values have moved."""


@dataclass(frozen=True)
class Options:
    """``invite`` is the hub's. Two layers of ``width`` × ``inner``, or ``values`` in one vector. ``pace_s``
    is the time of a step.
    """

    invite: str
    name: str
    directory: str
    listen: str
    recipe: str = ""
    width: int = 256
    inner: int = 1024
    batch: int = 16
    pace_s: float = 0.15
    values: int = 0


def say(**fields: object) -> None:
    # In one piece with its end: two threads say something.
    print(json.dumps({"at": time.monotonic(), **fields}) + "\n", end="", flush=True)


def model(options: Options) -> torch.nn.Module:
    """The same on every peer."""
    torch.manual_seed(0)
    if options.values:
        return Values(options.values, scale=0.02)
    return torch.nn.Sequential(
        torch.nn.Linear(options.width, options.inner),
        torch.nn.Tanh(),
        torch.nn.Linear(options.inner, options.width),
    )


def train(options: Options, *, host: bool) -> None:
    """Learn a rotation of random vectors until we are told to stop, a step every ``pace_s``."""
    trained = model(options)
    where: dict[str, Any] = {"name": options.name, "directory": options.directory, "listen": options.listen}
    where["watch"] = lambda text: say(event=text)
    say(ready=True)
    if host:
        recipe = potluck.Recipe.from_toml(options.recipe)
        run = potluck.host(recipe, trained, hub=options.invite, **where)
    else:
        run = potluck.join(options.invite, trained, **where)
    here = run.state
    say(joined=run.round, peer=here.peer, session=here.session, received=here.bytes_received)
    with run:
        if isinstance(trained, Values):
            _train_values(run, trained, options)
        else:
            _loop(run, trained, options)
    say(left=run.round)


class Numbered:
    """Samples of a dataset, each with its number; the same on every peer."""

    def __init__(self, samples: int, width: int) -> None:
        self._rows = torch.randn(samples, width, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self._rows[number], number


def _train_values(run: potluck.Run, trained: Values, options: Options) -> None:
    """Steps that move some of the values a little, others each time, and take next to no time."""
    optimizer = run.optimizer(Still(trained))
    own = torch.Generator().manual_seed(zlib.crc32(options.name.encode()))
    ranges = trained.values.detach().tensor_split(SPREAD)
    change = torch.randn(len(ranges[0]), generator=own) * 1e-3
    pace, due = threading.Event(), time.monotonic()
    batch = torch.zeros(options.batch, dtype=torch.int64)
    for some in itertools.cycle(ranges):
        trained(batch)
        some.add_(change[: len(some)])
        optimizer.step()
        due = max(due + options.pace_s, time.monotonic())
        pace.wait(due - time.monotonic())


def _batches(run: potluck.Run, options: Options) -> Iterator[torch.Tensor]:
    """The run's data if it shares some out, and says which samples before they are trained on; else noise."""
    samples = run.recipe.data.samples
    if not samples:
        while True:
            yield torch.randn(options.batch, options.width)
    for rows, numbers in run.batches(Numbered(samples, options.width)):
        say(samples=numbers.tolist())
        yield rows


def _loop(run: potluck.Run, trained: torch.nn.Module, options: Options) -> None:
    optimizer = run.optimizer(torch.optim.AdamW(trained.parameters(), lr=1e-4))
    pace, due = threading.Event(), time.monotonic()
    tokens, told_round, told_at = 0, -1, 0.0
    for x in _batches(run, options):
        loss = ((trained(x) - x.roll(1, 1)) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tokens += len(x)
        if run.round != told_round:
            state = run.state
            told_round = state.round
            say(round=state.round, state=state.state, trained=tokens)
        elif time.monotonic() - told_at > 0.5:
            told_at = time.monotonic()
            say(trained=tokens)
        # Late is late: a step that took longer is not made up for.
        due = max(due + options.pace_s, time.monotonic())
        pace.wait(due - time.monotonic())


def exchange(options: Options, loop: Callable[..., None]) -> None:
    """Take part in rounds of one vector; who has a recipe is the host."""
    watcher, model = Watcher(), Values(options.values)
    where: dict[str, Any] = {"name": options.name, "directory": options.directory, "listen": options.listen}
    where["watch"] = watcher.event
    if options.recipe:
        recipe = potluck.Recipe.from_toml(options.recipe)
        run = potluck.host(recipe, model, hub=options.invite, **where)
    else:
        run = potluck.join(options.invite, model, **where)
    watcher.run = run
    say(joined=run.round)
    with run:
        loop(run, model, options.pace_s, options.name, say)


class Watcher:
    """Tells each record of the ledger once, from the network thread."""

    def __init__(self) -> None:
        self.run: potluck.Run | None = None
        self.opened: tuple[int, int] = (0, 0)
        self.committed = 0

    def event(self, text: str) -> None:
        say(event=text)
        if self.run is None:
            return
        view, swarm = self.run.view, self.run._node.core.swarm
        for round_ in sorted(r for r in view.commits if r > self.committed):
            commit, members = view.commits[round_], view.members[round_]
            self.committed = round_
            inside = sorted({index for part in commit.parts for index, _ in part.contributors})
            say(
                commit=round_,
                attempt=commit.attempt,
                tokens=commit.tokens,
                members=[swarm.name(m) for m in members],
                contributors=[swarm.name(members[i]) for i in inside],
                reason=commit.reason,
            )
        open_ = view.open
        if open_ is not None and (open_.round, open_.attempt) != self.opened:
            self.opened = open_.round, open_.attempt
            say(
                opened=open_.round,
                attempt=open_.attempt,
                members=[swarm.name(m) for m in open_.members],
                cpu_s=time.process_time(),
            )


def watch(options: Options) -> None:
    """Follow the run until we are told to stop."""
    watcher = Watcher()
    say(ready=True)
    watcher.run = run = potluck.join(
        options.invite,
        name=options.name,
        directory=options.directory,
        listen=options.listen,
        trains=False,
        watch=watcher.event,
    )
    with run:
        run.wait_ready()
        say(joined=run.round)
        told, tick = -1, threading.Event()
        while not tick.wait(0.2):
            state = run.state
            if state.round != told:
                told = state.round
                say(round=told, state=state.state)
            say(peers={p.name: p.phase for p in run.peers}, reopened=run.view.reopened)


def main() -> int:
    what, options = sys.argv[1], Options(**json.loads(sys.argv[2]))
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        if what == "watch":
            watch(options)
        elif what == "exchange":
            from bench.exchanger import exchange as loop

            exchange(options, loop)
        elif what == "spin":
            from bench.spinner import spin

            exchange(options, spin)
        elif what == "wait":
            from bench.waiter import wait

            exchange(options, wait)
        else:
            train(options, host=what == "host")
    return 0


if __name__ == "__main__":
    sys.exit(main())
