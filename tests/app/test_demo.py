"""The main job, as a user runs it: ``potluck demo``, cut short."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

KEYS = {
    "rounds",
    "peers",
    "killed",
    "joined",
    "digests_equal",
    "rounds_lost",
    "loss_first",
    "loss_last",
    "bits_per_byte",
    "tokens",
    "bytes_sent",
    "bytes_received",
    "sample",
}


@pytest.mark.integration
@pytest.mark.timeout(540)
def test_the_demo_survives_deaths_and_learns() -> None:
    command = [sys.executable, "-m", "potluck", "demo", "--json", "--seconds", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=530, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary.keys() == KEYS
    assert summary["digests_equal"] is True
    assert summary["rounds_lost"] == 0
    assert summary["killed"] >= 2
    assert summary["joined"] >= 1
    assert summary["loss_last"] <= 0.65 * summary["loss_first"]
    assert summary["bytes_sent"] > 0
    events = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    words = " ".join(str(event.get("event")) for event in events)
    assert "peer-1 is killed" in words
    assert "in the exchange of round" in words
