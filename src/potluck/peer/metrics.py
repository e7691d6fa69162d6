"""This peer's own metrics: lines of JSON on its disk, and whatever trackers its user has."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from potluck.errors import UsageError

log = logging.getLogger("potluck")

NAME = "metrics.jsonl"

TAIL_BYTES = 65_536
"""The last line is sought in so many bytes at the end."""

Plain = str | int | float | bool | None


class Tracker(Protocol):
    """What metrics can be given to: an ``accelerate`` tracker or ``Accelerator``, or anything like it."""

    def log(self, values: dict[str, Any], step: int | None = None) -> object:
        """Keep these values of one step."""


class Metrics:
    """The metrics of one peer in one run; used by the training thread alone.

    Lines of ``metrics.jsonl`` have ``time`` (seconds since 1970), ``round``, ``step``, ``tokens`` (the
    run's) and ``values``. Steps go on counting from the last line of an earlier life.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[str] | None = None
        self._trackers: list[Tracker] = []
        self._made: list[Any] = []
        self._failing: set[object] = set()
        self._whole, self.step = _end_of(directory / NAME)
        """Inner steps of this peer in this run."""

    def track(self, tracker: str | Tracker, project: str) -> None:
        """Give what is logged to a tracker as well: one of yours, or one that accelerate makes by its name.

        Raises:
            UsageError: there is none of this name, or its package is missing.
        """
        if isinstance(tracker, str):
            self._made.append(_made(tracker, project, self._directory))
            self._trackers.append(self._made[-1])
        elif callable(getattr(tracker, "log", None)):
            self._trackers.append(tracker)
        else:
            raise UsageError(f"{type(tracker).__name__} is no tracker: it has no log(values, step)")

    def log(self, values: Mapping[str, Any], round_: int, tokens: int, step: int | None) -> None:
        """Keep values. A disk or tracker that fails is told in words once, and nothing else stops.

        Raises:
            UsageError: a value is neither number nor text.
        """
        plain = {name: _plain(name, value) for name, value in values.items()}
        step = self.step if step is None else step
        written = {name: _finite(value) for name, value in plain.items()}
        line = {"time": time.time(), "round": round_, "step": step, "tokens": tokens, "values": written}
        try:
            self._write(json.dumps(line))
        except OSError as error:
            self._fails(NAME, f"metrics can't be written to {self._directory / NAME}: {error}")
        for tracker in self._trackers:
            try:
                tracker.log(dict(plain), step=step)
            except Exception as error:
                name, what = type(tracker).__name__, f"{type(error).__name__}: {error}"
                self._fails(tracker, f"{name} does not take metrics: {what}")

    def close(self) -> None:
        """End the file and the trackers that were made here. Safe to call twice."""
        made, self._made, self._trackers = self._made, [], []
        for tracker in made:
            try:
                tracker.finish()
            except Exception as error:
                log.warning("%s did not end well: %s", type(tracker).__name__, error)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: str) -> None:
        if self._file is None:
            # Line by line, so that who looks on sees it at once.
            self._file = (self._directory / NAME).open("a", encoding="utf-8", buffering=1)
            if not self._whole:
                self._file.write("\n")
        self._file.write(line + "\n")

    def _fails(self, what: object, text: str) -> None:
        if what not in self._failing:
            self._failing.add(what)
            log.warning("%s", text)


def _made(name: str, project: str, directory: Path) -> Any:
    try:
        from accelerate import PartialState, tracking
    except ImportError as error:
        raise UsageError(f"a tracker by name needs accelerate: pip install accelerate {name}") from error
    known = tracking.LOGGER_TYPE_TO_CLASS
    if name not in known:
        raise UsageError(f"accelerate has no tracker {name!r}; it has {', '.join(sorted(known))}")
    kind = known[name]
    more = {"logging_dir": str(directory / name)} if kind.requires_logging_directory else {}
    try:
        PartialState()  # some of them speak through accelerate's log, which wants to know its process
        tracker = kind(project, **more)
        tracker.start()
    except ImportError as error:
        raise UsageError(f"{name} is not installed: pip install {name}") from error
    return tracker


def _plain(name: str, value: object) -> Plain:
    """A number or text, also out of a tensor or array of one value."""
    if not isinstance(value, str | int | float | bool | None) and callable(getattr(value, "item", None)):
        try:
            value = value.item()  # type: ignore[attr-defined]  # just looked for
        except (ValueError, RuntimeError) as error:  # numpy and torch, of more than one value
            raise UsageError(f"{name!r} to log has more than one value: {error}") from error
    if isinstance(value, str | int | float | bool | None):
        return value
    raise UsageError(f"{name!r} to log is a {type(value).__name__}: log numbers and text")


def _finite(value: Plain) -> Plain:
    """As JSON can have it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _end_of(path: Path) -> tuple[bool, int]:
    """Whether a file's last line is whole, and the step of the last one that is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            tail = file.read()
    except OSError:
        return True, 0
    whole = not tail or tail.endswith(b"\n")  # else a crash cut it short
    for line in reversed(tail.splitlines()):
        try:
            step = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError):
            continue
        return whole, step if type(step) is int else 0
    return whole, 0
