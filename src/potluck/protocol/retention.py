"""What a peer keeps on its disk: the last recorded snapshots, the parts of rounds since the oldest, and what
the best evaluated state follows from.
"""

from __future__ import annotations

from potluck.wire.records import Commit, Snapshot


class Retention:
    """Follows commits and recorded snapshots, and says which content is to be kept.

    If none of the last ``snapshots`` is here whole (this peer was too slow to write them), the newest one
    that is stays as well: from its own disk alone each peer can bring the run back.

    Args:
        snapshots: how many recorded snapshots are kept.
    """

    def __init__(self, snapshots: int) -> None:
        self._count = snapshots
        self._snapshots: dict[int, tuple[str, ...]] = {}
        self._parts: dict[int, tuple[str, ...]] = {}
        self._named: set[str] = set()
        self._best = frozenset[str]()
        self.at_head = False
        """An open has named this life: all that is here has a record, or is the open round's."""

    def committed(self, commit: Commit) -> None:
        """A round is done."""
        self._parts[commit.round] = tuple(info.digest for info in commit.parts)
        self._named.update(self._parts[commit.round])

    def recorded(self, snapshot: Snapshot, have: set[str]) -> None:
        """A snapshot is recorded; ``have`` is the content that is here. What is too old is forgotten."""
        self._snapshots[snapshot.round] = tuple(d for blob in snapshot.files for d in blob.chunks)
        self._named.update(self._snapshots[snapshot.round])
        rounds = sorted(self._snapshots)
        last = rounds[-self._count :]
        whole = [r for r in rounds if have.issuperset(self._snapshots[r])]
        if whole:
            last = [r for r in rounds if r >= min(last[0], whole[-1])]
        for old in rounds[: -len(last)]:
            del self._snapshots[old]
        for round_ in [r for r in self._parts if r <= last[0]]:
            del self._parts[round_]

    def best(self, content: frozenset[str]) -> None:
        """This content stays besides: the best evaluated state follows from it."""
        self._best = content

    def drop(self, have: set[str], keep: set[str]) -> frozenset[str]:
        """Take from ``have`` what nobody will ask for any more; returns that. ``keep`` is kept as well.

        A peer that comes back reads history first, and its disk has content that only later records name. So
        until it is at the head, only what the records so far named and were done with is dropped.
        """
        keep = keep | self.keep()
        dropped = frozenset((have if self.at_head else have & self._named) - keep)
        have -= dropped
        self._named &= keep
        return dropped

    def keep(self) -> set[str]:
        """Digests of what is kept."""
        kept = {
            digest for some in (self._snapshots, self._parts) for names in some.values() for digest in names
        }
        return kept | self._best
