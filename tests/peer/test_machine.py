from __future__ import annotations

import subprocess
import sys

import pytest
from bench import wan
from bench.wan import Link, Wan

from potluck.peer.machine import machine_id, share_of_cores

SAY = "from potluck.peer.machine import machine_id; print(machine_id())"
MISSING = wan.missing()


def test_two_processes_are_on_one_machine() -> None:
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == machine_id()
    assert len(machine_id()) == 16


@pytest.mark.integration
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_one_without_a_network_card_is_on_the_same() -> None:
    """Found by the soak: each peer in a namespace thought that all cores were its own."""
    with Wan({"a": Link(), "b": Link()}) as network:
        said = network.start("a", [sys.executable, "-c", SAY], stdout=subprocess.PIPE, text=True)
        assert said.communicate(timeout=60)[0].strip() == machine_id()


def test_peers_share_the_cores_and_everyone_has_one() -> None:
    assert share_of_cores(10_000) == 1
    assert share_of_cores(1) >= share_of_cores(2) >= 1
