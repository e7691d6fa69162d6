"""What a run's ledger says of the data, counted anew: which block is in the model how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from potluck.data.blocks import samples_of
from potluck.peer.disks import find_disk
from potluck.protocol.leases import Leases, Span, count
from potluck.protocol.view import RunView
from potluck.recipe import Data, Recipe
from potluck.store.journal import NAME, read_journal
from potluck.wire.records import Commit, Entry, Member

Samples = tuple[int, ...]


@dataclass
class Account:
    """Of the data of a run, from its ledger alone but for ``untrained``.

    Args:
        blocks: in an epoch.
        included: how often each position is in the model.
        waiting: positions below the highest included one that are in no commit yet.
        passed: epochs before the first position that is in no commit.
        balanced: what is included, leased and free makes up all the data.
        untrained: positions that a commit counts for a peer that did not say it trained on them.
    """

    blocks: int = 0
    included: Counter[int] = field(default_factory=Counter)
    waiting: int = 0
    passed: int = 0
    balanced: bool = False
    untrained: list[int] = field(default_factory=list)

    @property
    def twice(self) -> list[int]:
        """Positions that are in the model more than once."""
        return sorted(p for p, times in self.included.items() if times > 1)

    @property
    def whole(self) -> bool:
        """Each block of each passed epoch is in the model exactly once, and there is such an epoch."""
        times = [self.included[p] for p in range(self.passed * self.blocks)]
        return bool(times) and set(times) == {1}

    @property
    def sound(self) -> bool:
        """All is as it must be."""
        return self.whole and self.balanced and not self.twice and not self.untrained


def account(entries: Iterable[Entry], said: Mapping[Member, Set[Samples]]) -> Account:
    """Fold a ledger and count.

    Args:
        said: the batches that each life of a peer said it trains on, as numbers of samples.
    """
    view, found = RunView(), Account()
    for entry in entries:
        if view.follow(entry) is None and isinstance(entry.record.body, Commit):
            for member, spans in view.moved.items():
                _count(found, _data(view), member, spans, said)
    if view.leases is not None and view.genesis is not None:
        found.blocks = view.genesis.blocks
        found.balanced = _balanced(view.leases, sum(found.included.values()))
        _gaps(found)
    return found


def _count(
    found: Account, data: Data, member: Member, spans: list[Span], said: Mapping[Member, Set[Samples]]
) -> None:
    for position in (p for span in spans for p in range(*span)):
        found.included[position] += 1
        samples = tuple(samples_of(position, data.samples, data.block, data.seed))
        if samples not in said.get(member, ()):
            found.untrained.append(position)


def _data(view: RunView) -> Data:
    assert view.genesis is not None
    return Recipe.from_toml(view.genesis.recipe).data


def _balanced(leases: Leases, included: int) -> bool:
    """Nothing is lost; of data without an end that can't be told."""
    held = sum(count(leases.held(member)) for member in leases.holders())
    return leases.free is not None and leases.end == included + held + leases.free


def _gaps(found: Account) -> None:
    highest = max(found.included, default=-1)
    missing = [p for p in range(highest + 1) if not found.included[p]]
    found.waiting = len(missing)
    found.passed = min(missing, default=highest + 1) // found.blocks


def journal(directory: Path) -> list[Entry]:
    """The ledger as a peer with this data directory kept it, each record checked to follow the one before."""
    return [entry for entry, _ in read_journal(find_disk(directory) / NAME)]


def same(one: list[Entry], other: list[Entry]) -> bool:
    """Neither ledger contradicts the other: as far as both go they are one."""
    last = min(len(one), len(other)) - 1
    return last >= 0 and one[last].hash == other[last].hash
