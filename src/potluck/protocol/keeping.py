"""The snapshots of one peer: those that it wrote, those that it keeps, and what it need not keep any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from potluck.protocol.catchup import chunks
from potluck.protocol.effects import Drop
from potluck.protocol.evaluations import Grounds
from potluck.protocol.retention import Retention
from potluck.protocol.written import Written
from potluck.wire.records import Snapshot, manifest

Recorded = Mapping[int, Snapshot]


class Keeping:
    """What is here, by the digests in ``have``.

    Args:
        snapshots: how many recorded snapshots stay.
        best: whether what the best evaluated state follows from stays as well.
    """

    def __init__(self, have: set[str], snapshots: int, best: bool) -> None:
        self.retention = Retention(snapshots)
        self.written = Written()
        self._have, self._keeps_best, self._sweeps = have, best, False
        self._grounds: Grounds | None = None

    def recorded(self, body: Snapshot, oldest: int) -> None:
        """A snapshot is in the ledger, and ``oldest`` is the first that others may still ask for."""
        self.written.only([r for r in self.written if r >= oldest])
        self.retention.recorded(body, self._have)
        self._sweeps = True

    def wrote(self, snapshot: Snapshot, recorded: Recorded) -> None:
        """A snapshot of our state is in our store."""
        self._sweeps |= self.written.add(snapshot, recorded)
        self._have.update(digest for digest, _ in chunks(snapshot.files))

    @property
    def best(self) -> set[str]:
        """Content that stays because the best evaluated state follows from it."""
        return {digest for digest, _ in self._grounds.content()} if self._grounds is not None else set()

    def judged(self, grounds: Grounds | None) -> None:
        """The best evaluated state follows from this; it stays if it is here (parts may be to come)."""
        if not self._keeps_best or grounds is self._grounds:
            return
        self._grounds = None
        if grounds is not None and self._have.issuperset(d for d, _ in chunks(grounds.snapshot.files)):
            self._grounds = grounds
        self.retention.best(frozenset(self.best))

    def sweep(self, also: Callable[[], set[str]]) -> Drop | None:
        """What nobody will ask for any more, if that may have changed; ``also`` is kept besides."""
        if not self._sweeps:
            return None
        self._sweeps = False
        return Drop(self.retention.drop(self._have, self.written.content() | also()))

    def has(self, round_: int, recorded: Recorded) -> bool:
        """Whether a recorded snapshot is here whole."""
        snapshot = recorded.get(round_)
        return snapshot is not None and all(digest in self._have for digest, _ in chunks(snapshot.files))

    def manifests(self, recorded: Recorded) -> dict[int, str]:
        """What is announced of snapshots: the digest of each one's manifest by round."""
        own = {round_: digest for round_, (digest, _) in self.written.items()}
        return own | {r: manifest(s) for r, s in recorded.items() if self.has(r, recorded)}
