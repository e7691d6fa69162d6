"""One rank of a peer: trains a small model in fp32 or bf16, in DDP or given to FSDP2; talks in JSON lines.

python ranks_program.py host DIRECTORY NAME KIND RANK ROUNDS EPOCHS PEERS
python ranks_program.py join DIRECTORY NAME KIND RANK INVITE EPOCHS PEERS

KIND is fp32, bf16, ddp or fsdp; the last two have two ranks, 0 and 1. Training begins when so many PEERS are
there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

import potluck

SAMPLES = 603
PACE_S = 0.004


def say(**fields: object) -> None:
    print(json.dumps(fields) + "\n", end="", flush=True)


def built(kind: str, freezes: bool) -> torch.nn.Module:
    """Each rank and each peer begins with values of its own: those of the run count."""
    model = torch.nn.Sequential(torch.nn.Linear(16, 31), torch.nn.Tanh(), torch.nn.Linear(31, 1))
    model[0].bias.requires_grad_(not freezes)
    if kind == "bf16":
        model.to(torch.bfloat16)
    elif kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(torch.compile(model, backend="eager"))
    elif kind == "fsdp":
        fully_shard(model[0], shard_placement_fn=lambda p: Shard(1) if p.ndim == 2 else None)
        fully_shard(model)
    return model


def recipe(rounds: int, epochs: int) -> potluck.Recipe:
    return potluck.Recipe(
        name="ranks",
        data=potluck.Data(samples=SAMPLES, block=8) if epochs else potluck.Data(),
        rounds=potluck.Rounds(tokens=700, fragments=2 if epochs else 1, grace_s=2.0, parts=4),
        end=potluck.End(rounds=rounds, epochs=epochs),
    )


def inputs(run: potluck.Run, epochs: int) -> Iterator[torch.Tensor]:
    if epochs:
        yield from run.batches(torch.randn(SAMPLES, 16, generator=torch.Generator().manual_seed(1)))
    while True:
        yield torch.randn(8, 16)


def digest(model: torch.nn.Module) -> str:
    """Of the trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    values = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trained]
    flat = torch.cat([v.detach().reshape(-1) for v in values])
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def main() -> None:
    what, directory, name, kind, rank, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    if kind in ("ddp", "fsdp"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        dist.init_process_group("gloo", init_method=f"file://{directory}/ranks", rank=int(rank), world_size=2)
    epochs = int(rest[1])
    model = built(kind, freezes=epochs > 0)
    place = {"directory": directory, "name": name, "listen": "127.0.0.1"}
    if what == "host":
        run = potluck.host(recipe(int(rest[0]), epochs), model, **place)
        say(invite=run.invite)
    else:
        run = potluck.join(rest[0], model, **place)
    say(joined=run.round)
    pace, steps = threading.Event(), 0
    while rank == "0" and len(run.peers) < int(rest[2]):
        pace.wait(0.05)
    try:
        with run:
            optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=1e-3))
            for x in inputs(run, epochs):
                x = x.to(next(model.parameters()).dtype)
                loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                if steps == 20:
                    say(trains=steps)
                pace.wait(PACE_S)
    except potluck.PotluckError as error:
        say(error=f"{type(error).__name__}: {error}")
        sys.exit(1)
    end = {"over": run.over, "round": run.round, "parameters": digest(model)}
    if rank == "0":
        say(ended=steps, state=run.state.state, **end)
    else:
        try:
            say(state=run.state.state)
        except potluck.PotluckError as error:
            say(ended=steps, refused=str(error), **end)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
