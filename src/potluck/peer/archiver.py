"""Copies a run to an archive after each recorded snapshot, beside training and never in its way."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from potluck.errors import CorruptData, PotluckError, StoreError
from potluck.protocol.core import PeerCore
from potluck.store.archive import Archive
from potluck.store.contents import Contents
from potluck.store.journal import Journal
from potluck.wire.records import Snapshot

SETTLE_S = 0.5
"""How soon it is looked again whether all that is to be copied is here, in seconds."""

CLOSE_S = 1.0
"""How long a copy in progress may hold up who leaves, in seconds."""

log = logging.getLogger("potluck.peer")


@dataclass(frozen=True)
class Load:
    """What one copy takes: content by digest, and the journal up to a record."""

    round: int
    digests: tuple[str, ...]
    sequence: int


class Archiver:
    """One peer's archive.

    A thread of its own does the copying, so that neither the loop nor training waits for the other side, and
    nobody who leaves does for more than ``CLOSE_S``.

    Args:
        note: words for the log and whoever watches.
    """

    def __init__(
        self, archive: Archive, journal: Journal, store: Contents, note: Callable[[str], None]
    ) -> None:
        self._archive, self._journal, self._store, self._note = archive, journal, store, note
        self._due = asyncio.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._kept: set[str] = set()

    def followed(self, body: object) -> None:
        """A record of the ledger."""
        if isinstance(body, Snapshot):
            self._due.set()

    async def run(self, core: PeerCore) -> None:
        """Copy after each snapshot, for ever; of several recorded meanwhile the newest."""
        while True:
            await self._due.wait()
            self._due.clear()
            load = self.load(core)
            if load is None:
                await asyncio.sleep(SETTLE_S)
                self._due.set()
            else:
                self._note(await self._in_thread(load))

    def load(self, core: PeerCore) -> Load | None:
        """The newest snapshot, the rounds since, the run's files; None while not all of it is here."""
        view = core.view
        if view.genesis is None or not view.snapshots or self._journal.sequence != view.sequence:
            return None
        snapshot = view.snapshots[max(view.snapshots)]
        if core.catchup.round < view.round:
            return None
        wanted = [chunk for blob in (*view.genesis.assets, *snapshot.files) for chunk in blob.chunks]
        for round_ in range(snapshot.round + 1, view.round + 1):
            wanted += [info.digest for info in view.commits[round_].parts]
        if not core.catchup.have.issuperset(wanted):
            return None
        wanted += core.keeping.best & core.catchup.have
        return Load(snapshot.round, tuple(dict.fromkeys(wanted)), view.sequence)

    async def _in_thread(self, load: Load) -> str:
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def finish(text: str) -> None:
            if not done.done():
                done.set_result(text)

        def copy() -> None:
            text = self.copy(load)
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, text)

        self._thread = threading.Thread(target=copy, name="potluck-archive", daemon=True)
        self._thread.start()
        text: str = await done
        return text

    def copy(self, load: Load) -> str:
        """Copy, and say in words how that went: whatever the other side does, training goes on."""
        try:
            for name in load.digests:
                if self._stopping.is_set():
                    return "archiving was broken off"
                self._put(name)
            self._kept.intersection_update(load.digests)
            self._append(load.sequence)
        except PotluckError as error:
            return f"not archived: {error}; it is tried again after the next snapshot"
        except Exception as error:  # each kind of storage has its own
            log.info("archiving failed", exc_info=error)
            return f"not archived: {error!r:.300}; it is tried again after the next snapshot"
        return f"archived up to record {load.sequence}, with the snapshot of round {load.round}"

    def _put(self, name: str) -> None:
        if name in self._kept:
            return
        raw = self._store.get(name)
        if raw is None:
            raise StoreError(
                f"content {name[:12]} is not needed here any more, the archive is slower than the run"
            )
        self._archive.put(name, raw)
        self._kept.add(name)

    def _append(self, end: int) -> None:
        last, theirs = self._archive.last()
        records = self._journal.read(max(1, last))
        if last:
            ours = next(records, None)
            if ours is not None and ours[1] != theirs:
                raise CorruptData(
                    f"the archive {self._archive.where} goes another way than this run from record {last} or "
                    "before: give another URL with --archive"
                )
        self._archive.append(takewhile(lambda record: record[0] <= end, records))

    async def close(self) -> None:
        """Break off what is being copied. Safe to call twice."""
        self._stopping.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, CLOSE_S)
