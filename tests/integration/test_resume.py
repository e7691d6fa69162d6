"""Everything dies, the hub's disk too: one peer's disk brings the run back, and nothing committed is lost."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from potluck.peer.disks import find_disk
from potluck.peer.replay import Replay, check_content, survey
from potluck.store.archive import ArchiveCopy
from potluck.store.copies import DiskCopy
from tests.app.shells import end_hubs, kill_hub
from tests.integration.swarm import Peer, Swarm

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PATIENCE_S = 180.0
"""For whatever is waited for here; with two cores shared by many, a round takes half a minute."""


def records(directory: Path) -> list[tuple[int, str]]:
    return [(entry.sequence, entry.hash) for entry, _ in DiskCopy(find_disk(directory)).records()]


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    started: list[Peer] = []
    yield started
    for peer in started:
        peer.end()
    end_hubs(tmp_path)


def test_an_archive_brings_a_run_back_whose_machines_are_all_gone(tmp_path: Path, peers: list[Peer]) -> None:
    url = f"file://{tmp_path}/archive"
    peers.append(Peer("host", str(tmp_path / "p1"), "p1", "1000", f"archive={url}"))
    peers[0].wait("event", PATIENCE_S, "round 4 committed")
    archived = peers[0].wait("event", PATIENCE_S, "archived up to record")["event"]
    peers[0].kill()
    kill_hub(tmp_path)
    shutil.rmtree(tmp_path / "p1")
    found = survey(ArchiveCopy(url))
    assert found.reach(max(found.whole)) == found.view.round >= 2, archived
    peers.append(Peer("resume", url, "p2", str(tmp_path / "p2")))
    assert peers[1].wait("joined", PATIENCE_S)["joined"] == found.view.round
    peers[1].wait("event", PATIENCE_S, f"round {found.view.round + 3} committed")
    peers[1].signal(signal.SIGINT)
    peers[1].process.wait(20)
    kept = records(tmp_path / "p2")
    assert kept[: found.view.sequence] == [(e.sequence, e.hash) for e, _ in ArchiveCopy(url).records()]


def test_everything_dies_and_one_disk_brings_the_run_back(
    swarm: Callable[[int], Swarm], tmp_path: Path
) -> None:
    s = swarm(1000)
    s.join("p2", "p3")
    s.until(lambda: s.training() == {"p1", "p2", "p3"}, 30, "all peers train")
    s.wait_round(7, PATIENCE_S)
    for name in ("p1", "p2", "p3"):
        s.peers[name].kill()
    kill_hub(tmp_path)
    s.observer.leave()
    shutil.rmtree(tmp_path / "p1" / "hubs")
    before = {name: records(tmp_path / name) for name in ("p1", "p2", "p3")}
    longest = max(before, key=lambda name: len(before[name]))
    committed = s.view.round
    found = survey(DiskCopy(find_disk(tmp_path / longest)))
    assert found.view.round >= committed, "somebody's disk has every round that anybody saw committed"

    first = s.peers["again"] = Peer("resume", str(tmp_path / longest), "again")
    invite = first.wait("invite", PATIENCE_S)["invite"]
    other = next(name for name in before if name != longest)
    # Only now: the first may wait for parts that only another disk has.
    second = s.peers["other"] = Peer("join", str(tmp_path / other), "other", invite)
    third = s.peers["new"] = Peer("join", str(tmp_path / "new"), "new", invite)
    assert first.wait("joined", PATIENCE_S)["joined"] >= found.view.round
    for peer in (second, third):
        assert peer.wait("joined", PATIENCE_S)["joined"] >= found.view.round
    for peer in (first, second, third):
        peer.wait("event", PATIENCE_S, f"round {found.view.round + 4} committed")
    for peer in (first, second, third):
        peer.signal(signal.SIGINT)
    for peer in (first, second, third):
        peer.process.wait(20)

    after = {name: records(tmp_path / name) for name in (longest, other, "new")}
    assert after[longest][: len(before[longest])] == before[longest], "the same records in the same order"
    for name in (other, "new"):
        shared = min(len(after[name]), len(after[longest]))
        assert after[name][:shared] == after[longest][:shared]
    states: dict[int, set[str]] = {}
    for name in after:
        copy = DiskCopy(find_disk(tmp_path / name))
        seen = survey(copy)
        start = min(seen.whole)
        for round_ in Replay(copy, seen, start).rounds(seen.reach(start)):
            states.setdefault(round_.round, set()).add(round_.state)
        check_content(copy)
    assert max(states) >= found.view.round + 3
    assert all(len(digests) == 1 for digests in states.values()), states
