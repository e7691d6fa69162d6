"""Makes a copy of a run fit to go on from: checked, completed, brought to another disk, or forked."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from potluck.errors import CorruptData, StoreError, UsageError
from potluck.identity import claim
from potluck.optim.state import state_digest
from potluck.peer.replay import NAMED, Survey, oldest_start, state_after
from potluck.peer.state import PeerState
from potluck.store.blobs import write_blob
from potluck.store.copies import STORE, Copy
from potluck.store.journal import NAME, Journal
from potluck.store.snapshots import snapshot_files
from potluck.store.store import Store
from potluck.wire.codec import WIRE
from potluck.wire.records import Blob, Chain, Commit, Snapshot

BATCH = 256
"""Records written at a time when a journal is brought over."""


@dataclass(frozen=True)
class Outlook:
    """From which of its snapshots a copy goes on, how far its content reaches, and why no further."""

    start: int
    reach: int
    warning: str = ""


@dataclass(frozen=True)
class Forked:
    """A new run on a new data directory: its name, and where its first peer's directory is."""

    run: str
    directory: Path
    state: str


def outlook(copy: Copy, found: Survey) -> Outlook:
    """Whether the run can go on from this copy.

    Raises:
        StoreError: no state is here, or the run's files are not, and what is missing.
    """
    oldest_start(copy, found)
    if lacking := copy.lacking_of(found.genesis.assets):
        names = ", ".join(blob.name for blob in found.genesis.assets if copy.lacking_of([blob]))
        raise StoreError(
            f"{copy.where} lacks {len(lacking)} pieces of the run's files ({names}), as those who only "
            "followed a run do: go on from the disk of a peer that trained"
        )
    start = max(found.whole, key=lambda r: (found.reach(r), r))
    reach, head = found.reach(start), found.view.round
    if reach == head:
        return Outlook(start, reach)
    lost = found.lacking[reach + 1]
    names = ", ".join(name[:12] for name in lost) + (", …" if len(lost) == NAMED else "")
    return Outlook(
        start,
        reach,
        f"the disk holds the run up to round {reach}, and rounds up to {head} are committed: parts of round "
        f"{reach + 1} are not here ({names}), so the run waits until a peer that has them joins. If nobody "
        f"has: potluck fork --round {reach} {copy.where} NEWDIR",
    )


def complete(copy: Copy, found: Survey, seen: Outlook, directory: Path) -> None:
    """Write a snapshot that peers go on from, if only an older one than they look for is here.

    Raises:
        CorruptData, StoreError: what it is made of is damaged or missing, or the disk refuses.
    """
    if seen.start in found.view.snapshots:
        return
    wanted = [r for r in found.view.snapshots if r <= seen.reach]
    if not wanted:
        raise StoreError(
            f"{copy.where} holds the run up to round {seen.reach}, which is before the snapshots of rounds "
            f"{sorted(found.view.snapshots)} that all peers go on from: use another peer's disk, or "
            f"potluck fork --round {seen.reach} {copy.where} NEWDIR"
        )
    snapshot = found.view.snapshots[max(wanted)]
    if _write(state_after(copy, found, snapshot.round), Store(directory / STORE)) != snapshot.files:
        raise CorruptData(f"the snapshot of round {snapshot.round} has other chunks than its record says")


def bring(copy: Copy, found: Survey, seen: Outlook, directory: Path) -> None:
    """Bring what the run goes on from into a peer's directory on this machine. The journal comes last, whole.

    Raises:
        UsageError: there is a copy already.
        CorruptData, StoreError: something is damaged or missing, or the disk refuses.
    """
    journal = directory / NAME
    if journal.exists():
        raise UsageError(
            f"{directory} has a copy of that run already: resume that one, or move it away to take this one"
        )
    store = Store(directory / STORE)
    files = [*found.genesis.assets, *found.whole[seen.start].files]
    _copy(copy, store, [chunk for blob in files for chunk in blob.chunks])
    batch: list[tuple[int, bytes]] = []
    (directory / f".{NAME}").unlink(missing_ok=True)  # of an attempt that was broken off
    draft = Journal(directory / f".{NAME}")
    try:
        for entry, raw in copy.records():
            body = entry.record.body
            if isinstance(body, Commit) and body.round > seen.start:
                _copy(copy, store, copy.present(info.digest for info in body.parts))
            batch.append((entry.sequence, raw))
            if len(batch) == BATCH:
                draft.append(batch)
                batch.clear()
        draft.append(batch)
        draft.sync()
    finally:
        draft.close()
    draft.path.replace(journal)


def fork(copy: Copy, found: Survey, round_: int, home: Path) -> Forked:
    """A new run, in a data directory of its own, that starts from the state after a round of this one.

    Raises:
        UsageError: the directory is not empty, or the copy does not reach so far back or ahead.
        CorruptData, StoreError: something is damaged or missing, or the disk refuses.
    """
    if home.exists() and any(home.iterdir()):
        raise UsageError(f"{home} is not empty: give a new directory")
    if lacking := copy.lacking_of(found.genesis.assets):
        raise StoreError(
            f"{copy.where} lacks {len(lacking)} pieces of the run's files: use another peer's disk"
        )
    state = state_after(copy, found, round_)
    assert state.plane is not None
    plane, run = state.plane, secrets.token_hex(6)
    with claim(home / "keys") as claimed:
        directory = home / "runs" / run / claimed.directory.name
        store = Store(directory / STORE)
        _copy(copy, store, [chunk for blob in found.genesis.assets for chunk in blob.chunks])
        digest = state_digest(0, plane.theta, plane.momentum)
        reason = f"forked from run {found.genesis.run} after its round {round_}, state {plane.digest[:12]}"
        bodies = (
            replace(found.genesis, run=run, wire=WIRE, state=digest),
            Snapshot(0, digest, _write(state, store), reason),
        )
        journal, chain = Journal(directory / NAME), Chain()
        try:
            for body in bodies:
                raw = chain.next(claimed.identity.peer, body)
                entry = chain.follow(chain.sequence + 1, raw)
                journal.append([(entry.sequence, raw)])
            journal.sync()
        finally:
            journal.close()
    return Forked(run, directory, digest)


def _write(state: PeerState, store: Store) -> tuple[Blob, ...]:
    assert state.plane is not None
    files = snapshot_files(state.tensors, state.plane.theta, state.plane.momentum)
    return tuple(write_blob(store, name, raw) for name, raw in sorted(files.items()))


def _copy(copy: Copy, store: Store, digests: list[str]) -> None:
    for name in digests:
        if store.has(name):
            continue
        raw = copy.get(name)
        if raw is None:
            how = "damaged" if name in copy.damaged else "missing"
            raise StoreError(f"content {name[:12]} is {how} in {copy.where}: use another peer's disk")
        store.put(raw)
