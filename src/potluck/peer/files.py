"""The files of a run, from this peer's store or else from other peers."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from potluck.errors import PotluckError
from potluck.peer.actions import Actions
from potluck.peer.links import Links
from potluck.protocol.core import PeerCore
from potluck.store.blobs import missing, read_blob
from potluck.store.store import Store
from potluck.wire.messages import Fetch
from potluck.wire.records import Blob, chunk_sizes

log = logging.getLogger("potluck.peer")

LANES = 4
"""How many chunks of a file are fetched at a time."""

NOBODY_S = 0.5
AGAIN_S = 0.3
"""How long is waited where nobody, or none of those who are there, had a chunk, in seconds."""


@dataclass(frozen=True)
class Files:
    """What a peer gets the run's files with. ``check`` raises whatever ended the peer."""

    store: Store
    links: Links
    core: PeerCore
    actions: Actions
    check: Callable[[], None]
    note: Callable[[str], None]

    async def read(self, blob: Blob) -> bytes:
        """A whole file."""
        await self.fetch(blob)
        return bytes(await self.actions.work(read_blob, self.store, blob))

    async def fetch(self, blob: Blob, chunks: int | None = None) -> None:
        """Have a file's first so many chunks in the store, or all of them."""
        named = dict(zip(blob.chunks, chunk_sizes(blob), strict=True))
        wanted = itertools.islice(named.items(), chunks)

        told: set[str] = set()

        async def lane(number: int) -> None:
            for name, size in wanted:
                while not await self.actions.work(self.store.has, name):
                    self.check()
                    if not await self._fetch_anywhere(name, size, blob.name, number) and not told:
                        told.add(name)
                        self.note(f"nobody who is there has {blob.name} whole: waiting for a peer that has")

        await asyncio.gather(*map(lane, range(LANES)))

    async def bring(self, content: Iterable[tuple[str, int]], what: str, patience_s: float) -> bool:
        """Have content, digests with their bytes, in the store; whether all of it could be had in time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        for name, size in content:
            while not await self.actions.work(self.store.has, name):
                self.check()
                if loop.time() >= until:
                    return False
                await self._fetch_anywhere(name, size, what, 0)
            until = loop.time() + patience_s
        return True

    async def _fetch_anywhere(self, name: str, size: int, what: str, first: int) -> bool:
        """Ask everybody who may have a chunk once, each lane another peer first; whether it is here now."""
        alive = self.core.swarm.alive(asyncio.get_running_loop().time())
        others = [p for p in alive if p.peer != self.core.me.peer and p.phase != "joining"]
        first %= max(1, len(others))
        for peer in (*others[first:], *others[:first]):
            try:
                reply = await self.links.request(peer, Fetch(name, compressed=True), None, size)
            except PotluckError as error:
                log.info("%s of %s not from %s: %s", name[:12], what, peer.name, error)
                continue
            if reply.answer.ok and await self.actions.keep(name, reply.body):
                self.core.catchup.have.add(name)
                return True
        await asyncio.sleep(AGAIN_S if others else NOBODY_S)
        return False

    async def lacks(self, blob: Blob) -> bool:
        """Whether a chunk of it is not in the store."""
        return bool(await asyncio.to_thread(missing, self.store, blob))

    def has(self, blob: Blob) -> None:
        """The whole file was written into the store."""
        self.core.catchup.have.update(blob.chunks)
