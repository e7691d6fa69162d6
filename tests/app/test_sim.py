"""``potluck sim``: the same words for the same seed, failures made small, scenarios as files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from potluck.app import sim as program
from potluck.peer.dataplane import DataPlane
from potluck.testing.scenario import parse, scenario

from . import shells as command
from .shells import summary

QUICK = ("--seed", "4", "--peers", "3", "--minutes", "0.5", "--faults", "heavy")


def test_the_same_seed_says_the_same_byte_for_byte() -> None:
    said = set()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-m", "potluck", "sim", *QUICK, "--plain"],
            env=environment,
            capture_output=True,
            timeout=120,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1
    assert b"every invariant held" in said.pop()


def test_a_summary_for_programs() -> None:
    result = command.potluck("sim", *QUICK, "--json")
    assert result.exit_code == 0
    said = summary(result)
    assert (said["seed"], said["peers"], said["minutes"]) == (4, 3, 1.5)
    assert said["rounds"] >= 3
    for name in ("messages_a_peer_minute", "bytes_a_peer_minute", "hub_messages_s", "longest_gap_s"):
        assert said[name] > 0


def test_a_scenario_is_printed_edited_and_replayed(tmp_path: Path) -> None:
    printed = command.potluck("sim", *QUICK, "--print", "--plain").stdout
    made = scenario(4, program.world_of(3, 0.5, "heavy"))
    assert parse(printed) == made
    file = tmp_path / "scenario.txt"
    file.write_text(printed)
    whole = command.potluck("sim", *QUICK, "--plain").stdout
    assert command.potluck("sim", "--scenario", str(file), "--plain").stdout == whole
    file.write_text("\n".join(printed.splitlines()[:-2]))
    assert command.potluck("sim", "--scenario", str(file), "--plain").stdout != whole


def test_a_broken_invariant_is_said_made_small_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    apply = DataPlane.apply

    def drifting(self: DataPlane, *values: object) -> object:
        carry = apply(self, *values)  # type: ignore[arg-type]
        self.theta[0] += np.float32(values[2] == 0)
        return carry

    monkeypatch.setattr(DataPlane, "apply", drifting)
    result = command.potluck("sim", *QUICK, "--json")
    assert result.exit_code == 1
    said = summary(result)
    assert said["broke"] == "a peer has state # after round #, others #"
    smallest = parse(str(said["scenario"]))
    assert smallest.faults == ()
    assert smallest.world.peers <= 3
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert {"event": "next", "text": "to see it again", "command": f"potluck sim {' '.join(QUICK)}"} in events
    file = tmp_path / "smallest.txt"
    file.write_text(str(said["scenario"]))
    again = command.potluck("sim", "--scenario", str(file), "--no-shrink", "--plain")
    assert again.exit_code == 1
    assert "has state" in again.stdout


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_many_seeds_end_when_their_time_is_over(jobs: str) -> None:
    said = command.potluck("sim", "--seeds", "4000", "--within", "0", "--jobs", jobs, "--plain").stdout
    found = re.search(r"(\d+) of 4,000 seeds, as 0 minutes are over, 0 failed", said)
    assert found is not None, said
    assert 1 <= int(found[1]) < 1000


def test_many_seeds_in_two_processes_say_what_one_says() -> None:
    said = {
        command.potluck("sim", "--seeds", "30", "--seed", "7", "--jobs", jobs, "--json").stdout
        for jobs in ("1", "2")
    }
    assert len(said) == 1
    last = json.loads(said.pop().splitlines()[-1])
    assert (last["event"], last["seeds"]) == ("summary", 30)


def test_the_first_of_many_that_fails_is_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.testing.referee.DRIFT", -1.0)
    result = command.potluck("sim", "--seeds", "2", "--seed", "9", "--jobs", "1", "--plain")
    assert result.exit_code == 1
    assert "seed 9: a peer is off by #" in result.stdout
    assert "potluck sim --seed 9 --seeds 1" in result.stdout
    assert "\nseed " in result.stdout
    assert "potluck sim --scenario FILE" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--faults", "some"], "there are no faults 'some'"),
        (["--scenario", "missing.txt"], "missing.txt can't be read"),
    ],
)
def test_wrong_arguments_are_said(words: list[str], said: str) -> None:
    result = command.potluck("sim", *words, "--plain")
    assert result.exit_code == 2
    assert said in result.stderr
