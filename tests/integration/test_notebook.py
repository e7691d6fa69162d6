"""A notebook: its running loop, its cells that are run again, and no signal or fork of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("notebook.py")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]


def test_cells_are_run_and_run_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, tmp_path], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    hosted, _, _, again, _, back, once_more, over, another, last = said
    assert again["invite"] == hosted["invite"], "who joined by the invite stays with us"
    assert [told["peers"] for told in (again, back, once_more)] == [1, 1, 1], "and nobody is beside us"
    assert 2 <= again["round"] < back["round"] <= once_more["round"], "what was learnt is there"
    assert over["over"] == "round 6 committed, the last one asked for"
    assert another["run"] != hosted["run"]
    assert another["round"] == 0
    assert last == {"same": True, "threads": []}
    for words in ("this process hosts this run already", "this process takes part in this run already"):
        assert done.stderr.count(words) == 1, done.stderr
