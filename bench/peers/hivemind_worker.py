"""One hivemind peer: ``python hivemind_worker.py '{"name": …}'``, in an environment with hivemind.

Averages ``values`` fp32 numbers with the others for ever, and says on standard output what became of each
round, a JSON object a line; ``at`` is the machine's monotonic clock. Without ``values`` it is the DHT's
initial peer only, as ``hivemind-dht`` is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import hivemind
import torch
from hivemind.averaging.control import AveragingStage
from hivemind.p2p import P2P

out = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # the library's chatter goes elsewhere

LOOK_S = 0.005


def say(**fields: object) -> None:
    print(json.dumps({"at": time.monotonic(), **fields}), file=out, flush=True)


class Averager(hivemind.DecentralizedAverager):  # type: ignore[misc]
    """Beside what it averages it has a state, which joiners fetch."""

    def __init__(self, *args: Any, state: torch.Tensor, **options: Any) -> None:
        self.state = state
        super().__init__(*args, **options)

    def get_current_state(self) -> tuple[dict[str, str], list[torch.Tensor], None]:
        return {"of": "the faults"}, [self.state], None


def load(averager: Averager) -> None:
    """A joiner's state, from whom it may come."""
    while not (found := averager.load_state_from_peers()):
        say(failed="no state from any peer")
        time.sleep(LOOK_S)
    averager.state.copy_(found[1][0])
    say(loaded=bool(averager.state.all()))


def average(averager: Averager, options: dict[str, Any]) -> None:
    """One round: when its exchange begins is said as well."""
    began = time.monotonic()
    try:
        step = averager.step(gather=options["name"], timeout=options["step_s"], wait=False)
        while step.stage != AveragingStage.RUNNING_ALLREDUCE and not step.done():
            time.sleep(LOOK_S)
        if step.stage == AveragingStage.RUNNING_ALLREDUCE:
            say(exchanging=True)
        names = sorted(step.result().values())
    except Exception as error:  # what a kill does to a survivor's round is what is measured
        say(failed=repr(error)[:300])
        return
    at = time.monotonic()
    say(at=at, committed=True, members=len(names), names=names, took_s=at - began, **spread(averager))


def renew(averager: Averager, own: torch.Tensor) -> None:
    """Values of this peer's own, so that it can be seen whether they were averaged."""
    with averager.get_tensors() as (values,):
        values.copy_(own)


def spread(averager: Averager) -> dict[str, float]:
    """Standard deviation of the values: that of the means of all, if the round went well."""
    with averager.get_tensors() as (values,):
        return {"spread": float(values[:: max(1, values.numel() // 1_000_000)].std())}


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    # Sockets of its daemon lie with the logs, and go with them.
    P2P._UNIX_SOCKET_PREFIX = f"/unix{options['directory']}/"
    say(ready=True)
    dht = hivemind.DHT(
        initial_peers=options["initial_peers"],
        host_maddrs=[f"/ip4/{options['address']}/tcp/0"],
        start=True,
    )
    say(peers=[str(address) for address in dht.get_visible_maddrs()])
    if "values" not in options:
        dht.join()
        return
    compression = getattr(hivemind.compression, options.get("compression", "NoCompression"))
    state = torch.full((options["state_bytes"] // 4,), float(not options["joins"]))
    averager = Averager(
        [torch.ones(options["values"])],
        dht,
        state=state.share_memory_(),  # type: ignore[no-untyped-call]
        prefix="faults",
        compression=compression(),
        **options["averager"],
        start=True,
    )
    if options["joins"]:
        load(averager)
    own = torch.randn(options["values"]) if options.get("renewed") else None
    while True:
        if own is not None:
            renew(averager, own)
        average(averager, options)
        time.sleep(options["pause_s"])


if __name__ == "__main__":
    main()
