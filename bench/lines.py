"""What Potluck asks of who uses it: lines, names to know, time to import.

    python -m bench.lines --bar [--quick]

One JSON object a line. ``lines_added``: of each pair ``examples/NAME.py`` and ``examples/NAME_potluck.py``
the lines of code that only the second has, the most of all pairs. A line that is only indented further is the
same; one that is changed is another; blank lines, comments and docstrings are none. ``public_names`` are
those in ``potluck.__all__``. ``import_s`` is what ``import potluck`` takes, the median of fresh processes, in
which PyTorch must be absent afterwards.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import io
import json
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from bench.heading import ROOT, head

import potluck

EXAMPLES = ROOT / "examples"
SUFFIX = "_potluck"

IMPORT = """
import sys, time
started = time.perf_counter()
import potluck
took_s = time.perf_counter() - started
assert "torch" not in sys.modules
print(took_s)
"""


def pairs(examples: Path = EXAMPLES) -> Iterator[tuple[Path, Path]]:
    """Examples without and with Potluck."""
    for own in sorted(examples.glob(f"*{SUFFIX}.py")):
        plain = own.with_name(own.name.replace(SUFFIX, ""))
        if plain.exists():
            yield plain, own


def code_lines(source: str) -> list[str]:
    """Lines of code without what they are indented by, comments, docstrings and blank ones."""
    told = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    found: dict[int, str] = {}
    lines = source.splitlines()
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*blank, tokenize.ENDMARKER):
            for number in range(token.start[0], token.end[0] + 1):
                found[number] = lines[number - 1].strip()
    return [line for number, line in sorted(found.items()) if number not in told]


def added(plain: str, own: str) -> list[str]:
    """Lines of code that only the second has."""
    compared = difflib.ndiff(code_lines(plain), code_lines(own))
    return [line[2:] for line in compared if line.startswith("+ ")]


def import_s() -> float:
    """Of one fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, timeout=60
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--bar", action="store_true", help="bars are printed anyway")
    parser.add_argument("--quick", action="store_true", help="fewer processes for import_s")
    wanted = parser.parse_args()
    head()
    most = 0
    for plain, own in pairs():
        lines = added(plain.read_text("utf-8"), own.read_text("utf-8"))
        most = max(most, len(lines))
        print(json.dumps({"example": own.name, "added": lines}), flush=True)
    took = [import_s() for _ in range(3 if wanted.quick else 15)]
    bars = (
        ("lines_added", most, "lines"),
        ("public_names", len(potluck.__all__), "names"),
        ("import_s", round(statistics.median(took), 4), "s"),
    )
    for name, value, unit in bars:
        print(json.dumps({"bar": name, "value": value, "unit": unit}), flush=True)


if __name__ == "__main__":
    main()
