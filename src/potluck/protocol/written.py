"""The snapshots that this peer wrote itself, by round: what it announces, and its steward may record."""

from __future__ import annotations

from collections.abc import Collection

from potluck.protocol.catchup import chunks
from potluck.protocol.view import KEEP_SNAPSHOTS
from potluck.wire.records import Snapshot, manifest


class Written(dict[int, tuple[str, Snapshot]]):
    """Manifest digest and snapshot by round."""

    def add(self, snapshot: Snapshot, recorded: Collection[int]) -> bool:
        """One more; whether an older one is given up for it. Of those that are not ``recorded`` (none may be
        while a joiner fetches an older one) the last few do.
        """
        self[snapshot.round] = manifest(snapshot), snapshot
        stale = sorted(self.keys() - set(recorded))[:-KEEP_SNAPSHOTS]
        for round_ in stale:
            del self[round_]
        return bool(stale)

    def only(self, rounds: Collection[int]) -> None:
        """Forget all others."""
        for round_ in self.keys() - set(rounds):
            del self[round_]

    def content(self) -> set[str]:
        """Digests of their chunks."""
        return {digest for _, snapshot in self.values() for digest, _ in chunks(snapshot.files)}
