"""Prepares a machine to go on with a run from one peer's disk, or an archive, when all else is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potluck.errors import UsageError
from potluck.hub.launch import running_hub
from potluck.identity import Claim, claim, data_directory
from potluck.peer.disks import find_disk, home_of
from potluck.peer.replay import survey
from potluck.peer.revive import bring, complete, outlook
from potluck.store.archive import ArchiveCopy, is_url
from potluck.store.copies import Copy, DiskCopy
from potluck.wire.records import Genesis


@dataclass(frozen=True)
class Prepared:
    """A peer's directory from which the run goes on, its key claimed; ``warning`` says what it lacks."""

    home: Path
    directory: Path
    claimed: Claim
    genesis: Genesis
    warning: str


def open_copy(source: Path | str) -> Copy:
    """The copy of a run in a directory (as ``find_disk`` finds it), or at an fsspec URL.

    Raises:
        UsageError: there is none.
    """
    if is_url(str(source)):
        return ArchiveCopy(str(source))
    return DiskCopy(find_disk(Path(source)))


def home_for(source: Path | str, home: Path | None) -> Path:
    """The data directory that ``prepare`` uses.

    Raises:
        UsageError: there is no copy of a run in ``source``.
    """
    return _where(open_copy(source), home)[0]


def _where(copy: Copy, home: Path | None) -> tuple[Path, int]:
    """The data directory, and the number of the peer's key if its directory stands there already, else 0."""
    stands = home_of(copy.directory) if isinstance(copy, DiskCopy) else None
    if stands is not None and (home is None or home.absolute() == stands.directory):
        return stands.directory, stands.slot
    return home or data_directory(), 0


def prepare(source: Path | str, home: Path | None) -> Prepared:
    """Check what is in ``source``, and have it in a data directory of this machine.

    A peer's directory that stands in a data directory is used where it is, unless ``home`` is another one;
    else what is needed of it is copied into ``home``.

    Raises:
        UsageError: there is no copy, its peer is running, or the run's hub is.
        CorruptData: its journal is damaged or altered, and where.
        StoreError: it does not hold enough, and what is missing.
    """
    copy = open_copy(source)
    found = survey(copy)
    seen = outlook(copy, found)
    where, slot = _where(copy, home)
    run = found.genesis.run
    if (hub := running_hub(where / "hubs", run)) is not None:
        raise UsageError(f"the hub of run {run} is up on this machine ({hub}): join the run with its invite")
    claimed = claim(where / "keys", slot)
    try:
        directory = where / "runs" / run / claimed.directory.name
        if not slot:
            bring(copy, found, seen, directory)
        complete(copy, found, seen, directory)
    except BaseException:
        claimed.release()
        raise
    return Prepared(where, directory, claimed, found.genesis, seen.warning)
