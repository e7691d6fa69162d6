"""Results that were kept: what benchmarks printed, and by which command, where and when they did.

A file of ``bench/results`` has lines of JSON. A line with ``run`` says where the ones below it come from.
There may be several, since a benchmark may be run in pieces. Of two lines about the same the later counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

FOLDER = Path(__file__).parent / "results"

Line = dict[str, Any]

Key = TypeVar("Key", bound=Hashable)


class BadResults(Exception):
    """A file of results is missing, or is not what benchmarks print."""


@dataclass(frozen=True)
class Results:
    """The lines of one file, and what was said above them."""

    name: str
    heads: list[Line] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def of(self, key: str) -> list[Line]:
        """Lines that have this key."""
        return [line for line in self.lines if key in line]

    def source(self) -> str:
        """A sentence for a document: machines, days, and the file that has the commands."""
        machines = " and ".join(dict.fromkeys(head["machine"] for head in self.heads))
        days = ", ".join(sorted({head["date"] for head in self.heads}))
        notes = " ".join(dict.fromkeys(head["note"] for head in self.heads if "note" in head))
        where = f"[{self.name}.jsonl](../bench/results/{self.name}.jsonl)"
        return f"From {where}: {machines}; {days}.{' ' + notes if notes else ''}"


def read(name: str, folder: Path = FOLDER) -> Results:
    """The results of this name.

    Raises:
        BadResults: naming file and line.
    """
    path = folder / f"{name}.jsonl"
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise BadResults(f"{path} can't be read: {error}") from error
    found = Results(name)
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _parsed(raw, f"{path}:{number}")
        if "run" in line:
            if not {"machine", "date"} <= set(line):
                raise BadResults(f"{path}:{number}: a line with run lacks machine or date")
            found.heads.append(line)
        elif found.heads:
            found.lines.append(line)
        else:
            raise BadResults(f"{path}:{number}: no line above says by which command, where and when")
    return found


def _parsed(raw: str, where: str) -> Line:
    try:
        line = json.loads(raw)
    except ValueError as error:
        raise BadResults(f"{where}: not JSON: {error}") from error
    if not isinstance(line, dict):
        raise BadResults(f"{where}: not a JSON object")
    return line


def latest(lines: Iterable[Line], key: Callable[[Line], Key]) -> dict[Key, Line]:
    """The last line of each key, in the order in which keys came first."""
    return {key(line): line for line in lines}
