"""One torchft replica: ``python torchft_worker.py '{"name": …}'``, in an environment with torchft.

Takes steps for ever, each an average of ``values`` fp32 numbers over the replicas, and says on standard
output what became of each, a JSON object a line; ``at`` is the machine's monotonic clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torchft import Manager, ProcessGroupGloo

out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # the library's chatter goes elsewhere


def say(**fields: object) -> None:
    print(json.dumps({"at": time.monotonic(), **fields}), file=out, flush=True)


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    store = dist.TCPStore(options["address"], 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    state = torch.zeros(options["state_bytes"] // 4)

    def load(loaded: dict[str, torch.Tensor]) -> None:
        state.copy_(loaded["w"])
        say(loaded=True)

    say(ready=True)
    timeout = timedelta(seconds=options["timeout_s"])
    manager = Manager(
        pg=ProcessGroupGloo(timeout=timeout),
        timeout=timeout,
        load_state_dict=load,
        state_dict=lambda: {"w": state},
        min_replica_size=2,
        use_async_quorum=False,
        rank=0,
        world_size=1,
        store_addr=options["address"],
        store_port=store.port,
        lighthouse_addr=options["lighthouse"],
        replica_id=options["name"],
        hostname=options["address"],
        init_sync=False,
    )
    values = torch.ones(options["values"])
    while True:
        began = time.monotonic()
        try:
            manager.start_quorum()
            say(exchanging=manager.current_step(), members=manager.num_participants())
            manager.allreduce(values).wait()
            committed = manager.should_commit()
        except Exception as error:  # what a kill does to a survivor's step is what is measured
            say(failed=repr(error)[:300])
            continue
        say(committed=committed, members=manager.num_participants(), took_s=time.monotonic() - began)
        time.sleep(options["pause_s"])


if __name__ == "__main__":
    main()
