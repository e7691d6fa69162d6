"""Archives: what is copied after a snapshot brings the run back; what goes wrong there stops nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec")

from potluck.errors import CorruptData, StoreError, UsageError
from potluck.peer.archiver import Archiver, Load
from potluck.peer.replay import Replay, survey
from potluck.peer.resume import open_copy, prepare
from potluck.protocol.core import PeerCore
from potluck.protocol.steward import Rules
from potluck.store import archive as archives
from potluck.store.archive import Archive, ArchiveCopy
from potluck.store.copies import DiskCopy
from potluck.store.journal import NAME, Journal, frame
from potluck.store.store import Store
from potluck.wire.records import Commit, Snapshot
from tests.peer.written import ME, write_run


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{request.param}://{tmp_path}/archive"


class Machine:
    """A peer whose disk was written by hand, its core up to the ledger's end."""

    def __init__(self, directory: Path, url: str, rounds: int = 7, **more: Any) -> None:
        if not directory.exists():
            write_run(directory, rounds, **more)
        self.directory = directory
        self.journal, self.store = Journal(directory / NAME), Store(directory / "store")
        rules = Rules(1, 1.0, 0, 0, 0)
        self.core = PeerCore(ME, rules, trains=True, have=self.store.digests(), snapshot_every=2)
        self.notes: list[str] = []
        self.archiver: Archiver | None = None
        self.url = url

    def follow(self) -> None:
        for entry, _ in DiskCopy(self.directory).records():
            self.core.followed(entry, 0.0)
        self.core.catchup.applied(self.core.view.round, "")

    def archived(self) -> str:
        async def copy() -> str:
            archive = Archive(self.url, "run")
            archiver = self.archiver = Archiver(archive, self.journal, self.store, self.notes.append)
            load = archiver.load(self.core)
            assert load is not None
            return archiver.copy(load)

        return asyncio.run(copy())


@pytest.fixture
def machine(tmp_path: Path, url: str) -> Iterator[Machine]:
    made = Machine(tmp_path / "peer", url)
    with closing(made.journal):
        made.follow()
        yield made


def test_an_archive_brings_the_run_back(machine: Machine, url: str, tmp_path: Path) -> None:
    assert machine.archived() == "archived up to record 19, with the snapshot of round 6"
    for where in (url, f"{url}/run", f"{url}/"):
        found = survey(ArchiveCopy(where))
        assert (found.view.round, set(found.whole), found.reach(6)) == (7, {6}, 7)
    copy = open_copy(url)
    [last] = Replay(copy, survey(copy), 6).rounds()
    prepared = prepare(url, tmp_path / "mine")
    prepared.claimed.release()
    assert prepared.warning == ""
    assert (prepared.directory / NAME).read_bytes() == machine.journal.path.read_bytes()
    disk = DiskCopy(prepared.directory)
    assert [each.state for each in Replay(disk, survey(disk), 6).rounds()] == [last.state]


def test_only_what_is_new_is_written(machine: Machine, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.archived()
    written: list[str] = []
    write = Archive._write
    monkeypatch.setattr(
        Archive, "_write", lambda self, path, raw: (written.append(path), write(self, path, raw))
    )
    machine.archived()
    assert written == []
    assert Archive(url, "run").last()[0] == 19


def test_journals_grow_and_several_peers_share_them(tmp_path: Path, url: str) -> None:
    """Each is of the same run, and further on."""
    for rounds, name in ((3, "one"), (7, "two"), (5, "late"), (9, "three")):
        machine = Machine(tmp_path / name, url, rounds)
        with closing(machine.journal):
            machine.follow()
            assert "archived up to" in machine.archived()
    found = survey(ArchiveCopy(url))
    assert found.view.round == 9
    assert found.reach(max(found.whole)) == 9
    records = [(entry.sequence, raw) for entry, raw in ArchiveCopy(url).records()]
    assert records == [(entry.sequence, raw) for entry, raw in DiskCopy(tmp_path / "three").records()]


def test_stretches_that_overlap_or_were_torn_are_read_as_one_journal(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "peer", 7)
    records = [(entry.sequence, raw) for entry, raw in DiskCopy(tmp_path / "peer").records()]
    archive = Archive(url, "run")
    monkeypatch.setattr(archives, "STRETCH_BYTES", 1)
    archive.append(records[:3])
    monkeypatch.undo()
    archive.append(records[1:8])
    archive.append(records[5:10])
    torn = b"".join(frame(*record) for record in records[10:14])[:-9]
    archive._write(f"{archive._root}/{NAME}/{11:012d}-{14:012d}", torn)
    assert archive.last() == records[12]
    assert list(archive.frames()) == records[:13]
    archive.append(records[13:])
    assert list(archive.frames()) == records
    assert archive.last() == records[-1]
    archive._write(f"{archive._root}/{NAME}/{12:012d}-{20:012d}", frame(12, records[3][1]))
    with pytest.raises(CorruptData, match="has another record 12"):
        list(archive.frames())


def test_another_history_at_the_url_is_left_alone(tmp_path: Path, url: str) -> None:
    write_run(tmp_path / "other", 4, run="other")
    archive = Archive(url, "run")
    archive.append((entry.sequence, raw) for entry, raw in DiskCopy(tmp_path / "other").records())
    before = list(archive.frames())
    machine = Machine(tmp_path / "peer", url)
    with closing(machine.journal):
        machine.follow()
        assert "goes another way than this run" in machine.archived()
    assert list(archive.frames()) == before


def test_nothing_is_due_before_all_of_it_is_here(tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path / "peer", url)

    def load() -> Load | None:
        async def ask() -> Load | None:
            archiver = Archiver(Archive(url, "run"), machine.journal, machine.store, print)
            return archiver.load(machine.core)

        return asyncio.run(ask())

    with closing(machine.journal):
        assert load() is None
        for entry, _ in DiskCopy(machine.directory).records():
            machine.core.followed(entry, 0.0)
        assert load() is None, "round 7 is committed and not applied here"
        machine.core.catchup.applied(7, "")
        due = load()
        assert due is not None
        bodies = [entry.record.body for entry, _ in DiskCopy(machine.directory).records()]
        [snapshot] = [b for b in bodies if isinstance(b, Snapshot) and b.round == 6]
        [commit] = [b for b in bodies if isinstance(b, Commit) and b.round == 7]
        content = {c for blob in snapshot.files for c in blob.chunks} | {info.digest for info in commit.parts}
        assert content < set(due.digests)
        machine.core.catchup.have.discard(commit.parts[0].digest)
        assert load() is None


def test_what_was_dropped_meanwhile_or_can_not_be_written_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("each kind of storage has its own errors")

    with monkeypatch.context() as broken:
        broken.setattr(Archive, "put", refuse)
        assert "not archived: RuntimeError(" in machine.archived()
    with monkeypatch.context() as broken:
        broken.setattr(machine.store, "get", lambda _: None)
        assert "is not needed here any more, the archive is slower than the run" in machine.archived()
    assert "archived up to record 19" in machine.archived()


def test_it_never_holds_up_the_loop_nor_who_leaves(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other side takes for ever; the loop goes on, and leaving takes no longer than it may."""
    asked, answer = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        asked.set()
        answer.wait(60)

    async def check() -> None:
        archiver = Archiver(Archive(machine.url, "run"), machine.journal, machine.store, machine.notes.append)
        monkeypatch.setattr(Archive, "put", slow)
        monkeypatch.setattr("potluck.peer.archiver.CLOSE_S", 0.05)
        archiver.followed(machine.core.view.snapshots[6])
        work = asyncio.create_task(archiver.run(machine.core))
        await asyncio.to_thread(asked.wait, 20)
        work.cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(work, return_exceptions=True)
            await archiver.close()
        thread = archiver._thread
        assert thread is not None
        assert thread.is_alive()
        assert thread.daemon
        answer.set()
        thread.join(20)

    asyncio.run(check())


def test_after_each_snapshot_it_is_copied_and_told(machine: Machine) -> None:
    async def check() -> None:
        archiver = Archiver(Archive(machine.url, "run"), machine.journal, machine.store, machine.notes.append)
        told = asyncio.Event()
        archiver._note = lambda text: (machine.notes.append(text), told.set())  # type: ignore[assignment]
        archiver.followed(machine.core.view.commits[7])
        assert not archiver._due.is_set()
        archiver.followed(machine.core.view.snapshots[6])
        work = asyncio.create_task(archiver.run(machine.core))
        async with asyncio.timeout(20):
            await told.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await archiver.close()

    asyncio.run(check())
    assert machine.notes == ["archived up to record 19, with the snapshot of round 6"]


def test_urls_that_lead_nowhere_are_said_so(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="holds no archive of a run"):
        ArchiveCopy(url)
    with pytest.raises(UsageError, match="no URL that fsspec knows"):
        Archive("nonsense://there", "run")
    for run in ("one", "two"):
        write_run(tmp_path / run, 2, run=run)
        Archive(url, run).append((e.sequence, raw) for e, raw in DiskCopy(tmp_path / run).records())
    with pytest.raises(UsageError, match=r"holds several runs, say which: .*/one, .*/two"):
        ArchiveCopy(url)
    with pytest.raises(StoreError, match="holds no state to go on from"):
        prepare(f"{url}/one", tmp_path / "mine")


def test_without_fsspec_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError("No module named 'fsspec'", name="fsspec")

    monkeypatch.setattr(archives.importlib, "import_module", absent)
    with pytest.raises(UsageError, match=r"pip install 'potluck\[archive\]'"):
        Archive("file:///tmp", "run")


def test_the_best_evaluated_state_is_archived_too(tmp_path: Path, url: str) -> None:
    machine = Machine(tmp_path / "peer", url, rounds=9, losses={3: 1.0, 7: 2.0})
    with closing(machine.journal):
        machine.follow()
        machine.archived()
    found = survey(ArchiveCopy(url))
    assert found.stretches() == [(2, 3), (8, 9)]
    assert [each.round for each in Replay(open_copy(url), found, 2).rounds(3)] == [3]
