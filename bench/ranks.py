"""What it costs a peer that it has several ranks: the roll call at each step, and parameters that come to
rank 0, are carried over to a new shared state, and are set.

torchrun --nproc-per-node 2 -m bench.ranks

One JSON object a line: medians of several times, 25 million values in fp32 by FSDP2 on the CPU; and how much
the memory of the other ranks has grown in the end, at its most.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from potluck.peer.handover import Handover
from potluck.peer.layout import Carry
from potluck.peer.ranks import Ranks
from potluck.peer.told import Call, Doing
from potluck.peer.trainer import Trainer
from potluck.peer.values import signed

WIDTH, LAYERS = 2048, 6
TIMES = 7
ROLLS = 300


def timed(act: Callable[[], object]) -> float:
    took = []
    for _ in range(TIMES):
        dist.barrier()
        began = time.perf_counter()
        act()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    ranks = Ranks(signed(model))
    trainer = Trainer(model, Handover(lambda *_: None), ranks)
    theta = trainer.read()
    carry = Carry(theta, np.zeros_like(theta))

    def roll() -> None:
        for _ in range(ROLLS):
            ranks.roll(Call(Doing.STEP))

    def take() -> None:
        with torch.no_grad():
            trainer._take([carry], None)

    before = peak_mb()
    found = {
        "roll_call_ms": timed(roll) / ROLLS * 1e3,
        "read_s": timed(trainer.read),
        "carry_s": timed(take),
        "write_s": timed(lambda: trainer.write(theta)),
    }
    grew = torch.tensor([peak_mb() - before if ranks.rank else 0.0])
    dist.all_reduce(grew, dist.ReduceOp.MAX)
    if ranks.speaks:
        for name, value in (found | {"others_grew_mb": grew.item()}).items():
            print(json.dumps({"name": name, "value": round(value, 3), "ranks": ranks.world}), flush=True)
    ranks.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
