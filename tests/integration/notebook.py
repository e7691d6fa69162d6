"""Cells of a notebook, one after the other, as Jupyter runs them: in the main thread of a process in which an
asyncio loop is running. ``notebook.py DIRECTORY``; prints what the cells said, as a line of JSON each.

What has been run is run again, as people do: after an interruption, or because they changed a line.
"""

from __future__ import annotations

import asyncio
import code
import json
import sys
import threading

SETUP = """
import asyncio, os, signal, threading, torch, potluck
assert asyncio.get_running_loop().is_running()
here = {"directory": DIRECTORY, "listen": "127.0.0.1"}
before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), os.getpid()
"""

MODEL = """
torch.manual_seed(0)
model = torch.nn.Linear(8, 8)
"""

HOST = """
recipe = potluck.Recipe(rounds=potluck.Rounds(tokens=1_000, parts=2), end=potluck.End(rounds=ROUNDS))
run = potluck.host(recipe, model, name="anna", **here)
say(invite=run.invite, run=run.invite[:20], round=run.round, peers=len(run.peers))
"""

JOIN = """
run = potluck.join(run.invite, model, **here)
say(round=run.round, peers=len(run.peers))
"""

OPTIMIZER = """
optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
"""

LOOP = """
x, reached = torch.arange(24.0).reshape(3, 8) / 24, run.round + 1
while run.round < reached:
    optimizer.zero_grad()
    (model(x) - x.flip(1)).square().mean().backward()
    optimizer.step()
say(round=run.round)
"""

INTERRUPTED = """
with run:
    raise KeyboardInterrupt
"""

TO_THE_END = """
with run:
    while True:
        optimizer.zero_grad()
        (model(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
say(over=run.over)
"""

LAST = """
run.leave()
say(same=before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), os.getpid()),
    threads=[t.name for t in threading.enumerate() if t.name.startswith("potluck")])
"""


class Cells(code.InteractiveInterpreter):
    """Runs cells in one namespace, and keeps what went wrong in the last one."""

    def __init__(self, directory: str, rounds: int) -> None:
        self.wrong = ""
        super().__init__({"DIRECTORY": directory, "ROUNDS": rounds, "say": say})

    def showtraceback(self) -> None:
        self.wrong = f"{sys.exc_info()[0].__name__}: {sys.exc_info()[1]}"  # type: ignore[union-attr]

    def runcode(self, code: object) -> None:
        try:
            super().runcode(code)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            self.wrong = "KeyboardInterrupt"

    def run(self, cell: str, wrong: str = "") -> None:
        self.wrong = ""
        self.runsource(cell.strip() + "\n", "<cell>", "exec")
        assert (wrong in self.wrong) if wrong else not self.wrong, f"{self.wrong} in:\n{cell}"


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def notebook(cells: Cells) -> None:
    assert threading.current_thread() is threading.main_thread()
    cells.run(SETUP)
    cells.run(MODEL)
    cells.run(HOST)
    cells.run(OPTIMIZER)
    cells.run(LOOP)
    cells.run(OPTIMIZER)
    cells.run(LOOP)
    turned = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turned.set_result, None)
    await turned  # the notebook's own loop goes on between cells
    cells.run(MODEL)
    cells.run(HOST)  # the same run, with the new model
    cells.run(OPTIMIZER)
    cells.run(LOOP)
    cells.run(INTERRUPTED, "KeyboardInterrupt")
    cells.run(OPTIMIZER, "this run was left: come back with potluck.join(run.invite, model)")
    cells.run(JOIN)
    cells.run(JOIN)
    cells.run(OPTIMIZER)
    cells.run(TO_THE_END)
    cells.run(OPTIMIZER, "this run is over (round 6 committed, the last one asked for): host another")
    cells.run(HOST)  # another run
    cells.run(LAST)


if __name__ == "__main__":
    asyncio.run(notebook(Cells(sys.argv[1], 6)))
