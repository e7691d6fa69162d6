"""torch.distributed's all-reduce over gloo, one process a host, for ``bench.allreduce --gloo``.

As a program it is one of them: ``python -m bench.peers.gloo RANK PEERS ADDRESS VALUES ROUNDS [INTERFACE]``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.loopback import Loopback
from bench.wan import Wan

PORT = 29500


def measure(wan: Wan | Loopback, peers: int, values: int, rounds: int) -> dict[str, Any]:
    """Median seconds until the last one has the sum, in fp32, and CPU seconds of one process; the first
    round, in which connections are made, is not counted.
    """
    interface = ["wan0"] if isinstance(wan, Wan) else []
    workers = []
    for rank in range(peers):
        where = [str(rank), str(peers), wan.address("h1"), str(values), str(rounds + 1), *interface]
        command = [sys.executable, "-m", "bench.peers.gloo", *where]
        workers.append(wan.start(f"h{rank + 1}", command, stdout=subprocess.PIPE, text=True))
    said = [[json.loads(line) for line in worker.communicate()[0].splitlines()] for worker in workers]
    took = [
        max(one[r]["end"] for one in said) - min(one[r]["start"] for one in said) for r in range(rounds + 1)
    ]
    cpu_s = statistics.mean(line["cpu_s"] for one in said for line in one[1:])
    all_s = [round(s, 3) for s in took[1:]]
    return {"applied_s": statistics.median(took[1:]), "cpu_s": cpu_s, "all_s": all_s}


def work(rank: int, peers: int, address: str, values: int, rounds: int) -> None:
    """Reduce again and again, and say when each began and ended."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{PORT}", rank=rank, world_size=peers)
    given = torch.randn(values)
    for _ in range(rounds):
        dist.barrier()
        start, cpu_s = time.monotonic(), time.process_time()
        dist.all_reduce(given)
        end = time.monotonic()
        print(json.dumps({"start": start, "end": end, "cpu_s": time.process_time() - cpu_s}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 6:
        os.environ["GLOO_SOCKET_IFNAME"] = sys.argv[6]
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
