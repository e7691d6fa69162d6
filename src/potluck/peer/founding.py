"""How a run comes into its ledger."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from potluck.errors import UsageError
from potluck.hub.ledger import Ledger
from potluck.peer.place import Founding
from potluck.peer.state import first_snapshot, genesis_of
from potluck.store.blobs import write_blob
from potluck.store.store import Store
from potluck.wire.codec import WIRE
from potluck.wire.records import Chain


async def found_run(ledger: Ledger, store: Store, run: str, author: str, founding: Founding) -> None:
    """Write the genesis and the first state.

    Raises:
        UsageError: the run has them already (a host that starts again on its own hub).
        PotluckError: the disk or the ledger refuses.
    """
    if await ledger.read(1, 1):
        raise UsageError("this hub's run has begun already: join it with its invite instead of hosting")
    theta = founding.theta
    genesis = genesis_of(run, founding.recipe, founding.tensors, theta, WIRE, founding.blocks)
    blobs = [write_blob(store, name, raw) for name, raw in sorted(founding.assets.items())]
    if (frozen := founding.frozen) is not None:
        if frozen.handed_out:
            blobs.append(await asyncio.to_thread(frozen.write, store))
        genesis = replace(genesis, base=await asyncio.to_thread(frozen.digest))
    genesis = replace(genesis, assets=tuple(blobs))
    # The first state is recorded at once: should we die in the next moment, our disk has the run.
    first = first_snapshot(store, genesis, theta)
    chain = Chain()
    for body in (genesis, first):
        raw = chain.next(author, body)
        await ledger.append(raw, chain.sequence)
        chain.follow(chain.sequence + 1, raw)
