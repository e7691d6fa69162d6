"""The first line that a benchmark prints: by which command, on which machine, on which day.

Results are kept as they were printed (``… | tee -a bench/results/NAME.jsonl``), so that what ``bench.plots``
makes of them can say where they come from.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ("numpy", "torch")


def head(argv: Sequence[str] | None = None) -> None:
    """A line of JSON; ``argv`` are the arguments if they are not the process's own."""
    told = {"run": command(argv), "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    print(json.dumps(told), flush=True)


def command(argv: Sequence[str] | None) -> str:
    """As it has to be typed to run the same again."""
    program = Path(sys.argv[0]).resolve()
    name = program.name
    if program.is_relative_to(ROOT):
        name = ".".join(program.relative_to(ROOT).with_suffix("").parts)
    return shlex.join(["python", "-m", name, *(sys.argv[1:] if argv is None else argv)])


def machine() -> str:
    """Cores, processor, system, and the versions of what does the arithmetic."""
    libraries = ", ".join(f"{name} {found}" for name in LIBRARIES if (found := _version(name)))
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    python = f"Python {platform.python_version()}"
    return f"{os.cpu_count()} cores of {processor()}, {system}, {python}, {libraries}"


def processor(told: Path = Path("/proc/cpuinfo")) -> str:
    """What the system calls it."""
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
