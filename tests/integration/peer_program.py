"""One peer as a user would write it: ``peer_program.py host|join DIRECTORY NAME ROUNDS|INVITE [KEY=VALUE]``,
or ``resume SOURCE NAME [DIRECTORY]``.

epochs=N: the data is shared out and the run ends with it; else every peer draws its own for ever.
pace=S: seconds between steps. clock=S: this machine's clock is so many seconds off. archive=URL: as ``Keep``.
hub=INVITE: of a hub that runs already. fragments=N: as in the recipe.

Prints the invite (host, resume), then a JSON line for each event, and at the end the state.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator

import torch

import potluck

PACE_S = 0.004
SAMPLES = 12_000


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1))
    layers[0].bias.requires_grad_(False)
    return layers


def recipe(rounds: int, epochs: int, fragments: int = 1) -> potluck.Recipe:
    return potluck.Recipe(
        name="test",
        data=potluck.Data(samples=SAMPLES, block=8) if epochs else potluck.Data(),
        rounds=potluck.Rounds(
            tokens=2_000 if epochs else 8_000, fragments=fragments, grace_s=2.0, snapshot_every=2, parts=8
        ),
        end=potluck.End(rounds=rounds, epochs=epochs),
    )


def drawn() -> Iterator[torch.Tensor]:
    while True:
        yield torch.randn(32, 64)


def dataset() -> torch.Tensor:
    return torch.randn(SAMPLES, 64, generator=torch.Generator().manual_seed(1))


def set_clock(off_s: float) -> None:
    """The time of day is wrong here; what measures durations is not."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + off_s
    time.time_ns = lambda: now_ns() + int(off_s * 1e9)


def say(**fields: object) -> None:
    # In one piece with its end: two threads say something.
    print(json.dumps(fields) + "\n", end="", flush=True)


def main() -> None:
    what, directory, name, *rest = sys.argv[1:]
    options = {"epochs": "0", "pace": str(PACE_S), "clock": "0", "archive": "", "hub": "", "fragments": "1"}
    options |= dict(o.split("=") for o in rest[1:])
    epochs, pace_s = int(options["epochs"]), float(options["pace"])
    set_clock(float(options["clock"]))
    trained = model()
    place = {"directory": directory, "name": name, "listen": "127.0.0.1", "watch": lambda t: say(event=t)}
    if what == "host":
        keep = potluck.Keep(archive=options["archive"])
        made = recipe(int(rest[0]), epochs, int(options["fragments"]))
        run = potluck.host(made, trained, keep=keep, hub=options["hub"], **place)
        say(invite=run.invite)
    elif what == "resume":
        place["directory"] = rest[0] if rest else None
        run = potluck.resume(directory, **place)
        say(invite=run.invite)
        run.adopt(trained)
    else:
        run = potluck.join(rest[0], trained, **place)
    say(joined=run.round)
    pace = threading.Event()
    with run:
        optimizer = run.optimizer(torch.optim.AdamW(trained.parameters(), lr=1e-3))
        target = torch.sin(torch.arange(64.0))
        for x in run.batches(dataset()) if epochs else drawn():
            loss = ((trained(x) - torch.sin(x @ target)[:, None]) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pace.wait(pace_s)
    values = torch.cat([p.detach().reshape(-1) for p in trained.parameters() if p.requires_grad])
    say(round=run.round, over=run.over, digest=run.state.state, sum=values.double().sum().item())


if __name__ == "__main__":
    main()
