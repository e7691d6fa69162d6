"""Single machines in trouble: slow, stopped for long, with a wrong clock, with a full disk, or left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.swarm import Swarm

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

YEAR_S = 365 * 86_400


def pace(s: Swarm, rounds: int) -> float:
    """Seconds a round takes, over so many."""
    s.wait_round(s.view.round + 1, 30)
    began, first = time.monotonic(), s.view.round
    s.wait_round(first + rounds, 60)
    return (time.monotonic() - began) / (s.view.round - first)


def test_a_peer_twenty_times_slower_does_not_slow_the_rest(swarm: Callable[..., Swarm]) -> None:
    s = swarm(10_000)
    s.join("p2", "p3")
    s.until(lambda: s.training() == {"p1", "p2", "p3"}, 30, "all peers train")
    before = pace(s, 4)
    s.join("slow", pace=0.08)
    s.until(lambda: "slow" in s.members(s.view.round), 40, "the slow peer is a member")
    assert pace(s, 4) < 1.5 * before + 0.5
    assert s.view.reopened == 0
    assert {"p1", "p2", "p3"} <= s.contributors(s.view.round)


@pytest.mark.parametrize("off_s", [YEAR_S, -YEAR_S])
def test_a_clock_that_is_a_year_off_changes_nothing(swarm: Callable[..., Swarm], off_s: float) -> None:
    s = swarm(10_000)
    s.join("p2", clock=off_s)
    s.until(lambda: {"p1", "p2"} <= s.members(s.view.round), 40, "both are members")
    s.peers["p2"].kill()
    s.join("p2")
    s.until(lambda: {"p1", "p2"} <= s.members(s.view.round), 40, "and again, with the clock set right")
    assert s.view.reopened == 0


def test_a_peer_stopped_for_a_minute_comes_back(swarm: Callable[..., Swarm]) -> None:
    s = swarm(10_000)
    s.join("p2", "p3")
    s.until(lambda: s.training() == {"p1", "p2", "p3"}, 30, "all peers train")
    s.wait_round(s.view.round + 1, 30)
    stopped, rounds = time.monotonic(), s.view.round
    s.peers["p3"].signal(signal.SIGSTOP)
    try:
        s.until(lambda: time.monotonic() > stopped + 60, 70, "a minute")
        assert s.view.round > rounds + 10, "the others went on"
    finally:
        s.peers["p3"].signal(signal.SIGCONT)
    s.until(lambda: "p3" in s.members(s.view.round), 40, "it is a member again")
    s.wait_round(s.view.round + 2, 20)
    assert s.view.reopened == 0


def test_all_peers_but_one_are_killed_at_once(swarm: Callable[..., Swarm]) -> None:
    s = swarm(10_000)
    s.join("p2", "p3", "p4")
    s.until(lambda: s.training() == {"p1", "p2", "p3", "p4"}, 30, "all peers train")
    s.wait_round(s.view.round + 2, 30)
    for name in ("p1", "p2", "p4"):
        s.peers[name].signal(signal.SIGKILL)
    round_ = s.view.round
    s.wait_round(round_ + 3, 30)
    assert s.members(s.view.round) == {"p3"}
    s.join("p5")
    s.until(lambda: s.members(s.view.round) == {"p3", "p5"}, 30, "a joiner is a member")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    disk = tmp_path / "p2"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "potluck-test", disk], check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(path: Path) -> None:
    """Until the disk takes no more."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_is_told_in_words_and_costs_nobody_else(
    swarm: Callable[..., Swarm], small_disk: Path
) -> None:
    s = swarm(10_000)
    s.join("p2", "p3")
    s.until(lambda: s.training() == {"p1", "p2", "p3"}, 30, "all peers train")
    filler = small_disk / "filler"
    fill(filler)
    try:
        told = s.peers["p2"].wait("event", 60, "the disk is full")["event"]
        assert "trying again" in told
        s.wait_round(s.view.round + 3, 40)
        assert {"p1", "p3"} <= s.members(s.view.round)
    finally:
        filler.unlink()
    s.until(lambda: "p2" in s.contributors(s.view.round), 60, "it contributes again")
    assert s.peers["p2"].process.poll() is None
