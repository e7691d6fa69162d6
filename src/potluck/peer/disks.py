"""Finds the directory of the peer that a person means, among those that this machine or a backup has."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from potluck.errors import UsageError
from potluck.store.copies import DiskCopy
from potluck.store.journal import NAME


@dataclass(frozen=True)
class Home:
    """Where a peer's directory stands in a data directory: ``HOME/runs/RUN/peer-SLOT``."""

    directory: Path
    run: str
    slot: int


def find_disk(directory: Path) -> Path:
    """The peer's directory that ``directory`` is or holds; of several that with the longest journal.

    Raises:
        UsageError: there is none, or there are several runs.
        CorruptData, StoreError: journals have to be compared, and one can't be read.
    """
    if (directory / NAME).is_file():
        return directory
    runs: defaultdict[Path, list[Path]] = defaultdict(list)
    for pattern in (f"peer-*/{NAME}", f"runs/*/peer-*/{NAME}"):
        for journal in sorted(directory.glob(pattern)):
            runs[journal.parent.parent].append(journal.parent)
    if not runs:
        raise UsageError(
            f"{directory} holds no peer's copy of a run: give what was --directory on that machine, or one "
            "peer's directory in it (runs/RUN/peer-N)"
        )
    if len(runs) > 1:
        names = ", ".join(str(run) for run in sorted(runs))
        raise UsageError(f"{directory} holds several runs, say which: {names}")
    [peers] = runs.values()
    return max(peers, key=_length) if len(peers) > 1 else peers[0]


def home_of(disk: Path) -> Home | None:
    """The place of a peer's directory in a data directory; None if it is a copy that stands elsewhere."""
    disk = disk.absolute()
    slot = disk.name.removeprefix("peer-")
    if disk.parent.parent.name != "runs" or disk.name == slot or not slot.isdecimal():
        return None
    home = disk.parents[2]
    return Home(home, disk.parent.name, int(slot)) if (home / "keys" / disk.name).is_dir() else None


def _length(disk: Path) -> int:
    return sum(1 for _ in DiskCopy(disk).records())
