"""Runs an example whose arguments are not known yet: loads its libraries, then waits for them on stdin. A
host on a fast machine would be far in its run before a second one had loaded them."""

from __future__ import annotations

import ast
import importlib
import runpy
import sys
from pathlib import Path


def load(script: Path) -> None:
    for node in ast.parse(script.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                getattr(importlib.import_module(node.module), alias.name)


def main() -> None:
    script = Path(sys.argv[1])
    sys.path.insert(0, str(script.parent))
    load(script)
    sys.argv[:] = [str(script), *sys.stdin.readline().split()]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
