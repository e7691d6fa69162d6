"""One of two ranks that do things wrong, one after the other; says in JSON lines what came of each.

python ranks_astray.py DIRECTORY - RANK
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

import potluck

WHERE, RANK = sys.argv[1], int(sys.argv[3])


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    said = ""
    try:
        yield
    except (potluck.PotluckError, ZeroDivisionError) as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps({what: said}) + "\n", end="", flush=True)


def train(name: str, stop: int | None = None, fail: int | None = None) -> None:
    """Nothing keeps the ranks' models in step; rank 1 stops or fails after so many steps."""
    model = torch.nn.Linear(4, 1)
    recipe = potluck.Recipe(name=name, rounds=potluck.Rounds(tokens=400))
    with potluck.host(recipe, model, directory=f"{WHERE}/{name}", listen="127.0.0.1") as run:
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.01))
        for step in itertools.count():
            if RANK == 1 and step == stop:
                break
            _ = 1 / (step - fail) if RANK == 1 and fail is not None else 0
            model(torch.full((8, 4), 1.0 + RANK)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{WHERE}/ranks", rank=RANK, world_size=2)
    with told("invite"):
        potluck.join("potluck:nonsense", torch.nn.Linear(4, 1))
    with told("model"):
        potluck.join("potluck:nonsense", torch.nn.Linear(4, 1 + RANK))
    with told("stops"):
        train("stops", stop=3)
    with told("fails"):
        train("fails", fail=3)
    with told("drifts"):
        train("drifts")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
