"""One peer as a user would write it: ``python peer_program.py host|join DIRECTORY NAME ROUNDS|INVITE [HUB]``.

Prints the invite (host), then a JSON line for each event, and at the end the state.
"""

from __future__ import annotations

import json
import sys
import threading

import torch

import potluck

PACE_S = 0.004


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1))
    layers[0].bias.requires_grad_(False)
    return layers


def recipe(rounds: int) -> potluck.Recipe:
    return potluck.Recipe(
        name="test",
        rounds=potluck.Rounds(tokens=8_000, grace_s=2.0, snapshot_every=2, parts=8),
        end=potluck.End(rounds=rounds),
    )


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main() -> None:
    what, directory, name, *rest = sys.argv[1:]
    trained = model()
    options = {"directory": directory, "name": name, "listen": "127.0.0.1", "watch": lambda t: say(event=t)}
    if what == "host":
        rounds, *hub = rest
        run = potluck.host(recipe(int(rounds)), trained, hub="".join(hub), **options)
        say(invite=run.invite)
    else:
        run = potluck.join(rest[0], trained, **options)
    say(joined=run.round)
    pace = threading.Event()
    with run:
        optimizer = run.optimizer(torch.optim.AdamW(trained.parameters(), lr=1e-3))
        target = torch.sin(torch.arange(64.0))
        while True:
            x = torch.randn(32, 64)
            loss = ((trained(x) - torch.sin(x @ target)[:, None]) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pace.wait(PACE_S)
    values = torch.cat([p.detach().reshape(-1) for p in trained.parameters() if p.requires_grad])
    say(round=run.round, over=run.over, digest=run.state.state, sum=values.double().sum().item())


if __name__ == "__main__":
    main()
