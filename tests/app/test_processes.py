"""Who is asked to leave: the very process that wrote its file, and nobody that has its number now."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from potluck.app import processes as subject
from potluck.app.processes import Process, leave_all, processes, registered
from potluck.peer.disks import claim_for

from . import shells as command
from .shells import summary

PEER = """
import sys, threading
from pathlib import Path
from potluck.app.interrupts import Interrupts, Leaving
from potluck.app.output import Output
from potluck.app.processes import registered

with Interrupts(Output()):
    try:
        with registered(Path(sys.argv[1]), sys.argv[2], "anna"):
            print("here", flush=True)
            threading.Event().wait()
    except Leaving as leaving:
        print("leaving", flush=True)
        if sys.argv[3:]:
            threading.Event().wait()
        sys.exit(leaving.code)
"""


class Peer:
    """A process that can be asked to leave."""

    def __init__(self, home: Path, *arguments: str, before: Sequence[str] = ()) -> None:
        command = [*before, sys.executable, "-c", PEER, str(home), *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.hear("here")

    def hear(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    started: list[Peer] = []
    yield started
    for peer in started:
        peer.end()


def write(home: Path, process: Process) -> Path:
    path = home / "processes" / f"{process.pid}-x.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.encode(process))
    return path


def test_leave_ends_the_peers_of_a_run_and_no_others(tmp_path: Path, peers: list[Peer]):
    peers += [Peer(tmp_path, run) for run in ("one", "one", "two")]
    result = command.potluck("leave", "--run", "one", "--directory", str(tmp_path), "--json")
    assert result.exit_code == 0
    assert (summary(result)["left"], summary(result)["staying"]) == (2, 0)
    assert [peer.process.wait(10) for peer in peers[:2]] == [143, 143]
    assert peers[2].process.poll() is None
    assert [process.pid for process in processes(tmp_path)] == [peers[2].process.pid]


def test_who_does_not_leave_in_time_is_named(tmp_path: Path, peers: list[Peer]):
    peers.append(Peer(tmp_path, "one", "stubborn"))
    [(process, ended, _)] = leave_all(processes(tmp_path), 0.2)
    assert not ended
    assert process.pid == peers[0].process.pid
    peers[0].hear("leaving")
    # The second time it goes at once, whatever it is doing.
    [(_, ended, _)] = leave_all([process], 10.0)
    assert ended
    assert peers[0].process.wait(10) == 143


def test_a_number_that_was_used_again_is_never_signalled(tmp_path: Path, peers: list[Peer]):
    peers.append(Peer(tmp_path / "elsewhere", "one"))
    [real] = processes(tmp_path / "elsewhere")
    earlier = msgspec.structs.replace(real, started="a-boot/1")
    path = write(tmp_path, earlier)
    [(_, ended, _)] = leave_all([earlier], 0.0)
    assert ended
    assert processes(tmp_path) == []
    assert not path.exists()
    assert peers[0].process.poll() is None


def test_files_of_the_dead_go_and_those_of_other_machines_stay(tmp_path: Path, peers: list[Peer]):
    peers.append(Peer(tmp_path, "one"))
    peers[0].end()
    assert len(list(tmp_path.glob("processes/*.json"))) == 1
    there = write(tmp_path, Process(1, "a-boot/1", "another machine", "one", "zoe"))
    (tmp_path / "processes" / "junk.json").write_bytes(b"{")
    assert processes(tmp_path) == []
    assert sorted(p.name for p in tmp_path.glob("processes/*.json")) == sorted([there.name, "junk.json"])


def test_what_was_there_before_the_machine_started_again_goes(tmp_path: Path):
    old = write(tmp_path, Process(os.getpid(), "another boot/1", subject._numbering(), "one", "zoe"))
    assert processes(tmp_path) == []
    assert not old.exists()


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_one_in_a_container_that_shares_our_directory_is_left_alone(tmp_path: Path, peers: list[Peer]):
    """Its numbers are its own: here they may be anybody's, or nobody's."""
    peers.append(Peer(tmp_path, "one", before=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]))
    [file] = tmp_path.glob("processes/*.json")
    assert processes(tmp_path) == []
    assert file.exists()


def test_a_process_is_registered_while_it_takes_part(tmp_path: Path):
    with registered(tmp_path, "one", "anna"):
        [mine] = processes(tmp_path)
        assert (mine.run, mine.name, mine.started) == ("one", "anna", subject._started(mine.pid))
    assert processes(tmp_path) == []


def test_the_second_signal_ends_a_process_at_once(tmp_path: Path, peers: list[Peer]):
    peers.append(Peer(tmp_path, "one", "stubborn"))
    peers[0].process.send_signal(signal.SIGINT)
    peers[0].hear("leaving")
    peers[0].process.send_signal(signal.SIGTERM)
    assert peers[0].process.wait(10) == 143


def test_the_key_whose_store_has_the_newest_of_the_run_is_claimed(tmp_path: Path):
    def claimed(run: str) -> str:
        with claim_for(tmp_path, run) as claim:
            return claim.directory.name

    assert claimed("a") == "peer-1"
    for number, age in ((1, 500), (2, 100), (3, 300)):
        store = tmp_path / "runs" / "a" / f"peer-{number}" / "store" / "ab"
        store.mkdir(parents=True)
        os.utime(store, (10_000 - age, 10_000 - age))
    assert claimed("a") == "peer-2"
    assert claimed("b") == "peer-1"
    with claim_for(tmp_path, "a"):
        assert claimed("a") == "peer-3"
        with claim_for(tmp_path, "a"):
            assert claimed("a") == "peer-1"
            assert claimed("b") == "peer-1"
            with claim_for(tmp_path, "a"):
                assert claimed("a") == "peer-4"
