"""Directories of peers: which key is free for a run, and which disk a person means."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from potluck.errors import UsageError
from potluck.identity import Claim, claim
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
    try:
        return _found(directory)
    except OSError as error:
        where = f"{directory!s:.200}"
        raise UsageError(f"{where} can't be looked into for a copy of a run: {error.strerror}") from error


def _found(directory: Path) -> Path:
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
    if disk.parent.parent.name != "runs" or not disk.name.startswith("peer-") or not _slot(disk):
        return None
    home = disk.parents[2]
    return Home(home, disk.parent.name, _slot(disk)) if (home / "keys" / disk.name).is_dir() else None


def _length(disk: Path) -> int:
    return sum(1 for _ in DiskCopy(disk).records())


def claim_for(home: Path, run: str) -> Claim:
    """A key of this machine that is free: that whose store has the newest of the run, or else the first."""
    stores = {_slot(path): _newest(path / "store") for path in (home / "runs" / run).glob("peer-*")}
    best = claim(home / "keys")
    seen, passed_over = _slot(best.directory), []
    try:
        while seen < max(stores, default=0):
            other = claim(home / "keys")
            seen = _slot(other.directory)
            if stores.get(seen, 0.0) > stores.get(_slot(best.directory), 0.0):
                best, other = other, best
            passed_over.append(other)
    except BaseException:
        best.release()
        raise
    finally:
        for other in passed_over:
            other.release()
    return best


def _slot(directory: Path) -> int:
    """The number of a key's directory, ``peer-N``."""
    number = directory.name.removeprefix("peer-")
    return int(number) if number.isdecimal() else 0


def _newest(store: Path) -> float:
    """When something was last kept there, in seconds since 1970; 0 if nothing was."""
    return max((path.stat().st_mtime for path in store.glob("[0-9a-f][0-9a-f]")), default=0.0)
