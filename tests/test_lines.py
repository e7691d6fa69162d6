"""What Potluck asks of who uses it is counted as it is said to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.lines import EXAMPLES, added, code_lines, pairs

ROOT = Path(__file__).parents[1]

PLAIN = '''"""A loop."""

import torch

for batch in loader:
    step(batch)  # one

    done()
'''

OWN = '''"""The same
with Potluck."""

import torch
import potluck

# others join this
with potluck.join(
    invite,
) as run:
    for batch in loader:
        step(batch)  # two
        done(run)
'''


def test_what_is_indented_said_or_blank_is_not_added() -> None:
    assert code_lines(PLAIN) == ["import torch", "for batch in loader:", "step(batch)  # one", "done()"]
    assert added(PLAIN, PLAIN.replace("for", "\n# that is\nfor")) == []
    indented = PLAIN.replace("for", "if True:\n  for").replace("    ", "      ")
    assert added(PLAIN, indented) == ["if True:"]


def test_each_new_or_changed_line_counts() -> None:
    plain, own = PLAIN.replace("  # one", ""), OWN.replace("  # two", "")
    assert added(plain, own) == ["import potluck", "with potluck.join(", "invite,", ") as run:", "done(run)"]
    text = 'x = """a\n\nb"""\n'
    assert len(code_lines(text)) == 3, "a long string is as long as it is"


def test_the_bars_are_within_their_goals() -> None:
    assert [(plain.name, own.name) for plain, own in pairs()][:1] == [("plain.py", "plain_potluck.py")]
    done = subprocess.run(
        [sys.executable, "-m", "bench.lines", "--quick", "--bar"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    bars = {line["bar"]: line["value"] for line in lines if "bar" in line}
    assert set(bars) == {"lines_added", "public_names", "import_s"}
    assert 0 < bars["lines_added"] <= 4
    assert bars["public_names"] <= 40
    assert 0 < bars["import_s"] <= 0.15


def test_the_counted_example_is_the_plain_one_but_for_what_is_counted() -> None:
    plain, own = (EXAMPLES / name for name in ("plain.py", "plain_potluck.py"))
    lines = code_lines(own.read_text("utf-8"))
    for line in added(plain.read_text("utf-8"), own.read_text("utf-8")):
        lines.remove(line)
    assert lines == code_lines(plain.read_text("utf-8")), "nothing is left out or moved"
