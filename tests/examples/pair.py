"""An example as its reader runs it: on a first machine without arguments, on a second with the invite. Here
both are processes, one of them is killed, and this process follows the run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import potluck

EXAMPLES = Path(__file__).parents[2] / "examples"
PREPARED = Path(__file__).with_name("prepared.py")

START_S = 120
RUN_S = 200
"""Deadlines, in seconds, for a machine that is busy with other things."""


class Program:
    """An example's process, and the lines that it said. One that ``waits`` loads what the example needs, and
    begins when it is ``told`` its arguments.
    """

    def __init__(self, script: str, place: Path, waits: bool = False) -> None:
        place.mkdir()
        self.lines: list[str] = []
        self._new = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, *([str(PREPARED)] if waits else []), str(EXAMPLES / script)],
            cwd=place,
            stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As `potluck join` does: PyTorch's threads sleep while they wait for each other.
            env=os.environ | {"XDG_DATA_HOME": str(place), "OMP_WAIT_POLICY": "PASSIVE"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._new:
                self.lines.append(line.rstrip("\n"))
                self._new.notify_all()

    def told(self, *arguments: str) -> None:
        """What it waits for."""
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            stdin.write(" ".join(arguments) + "\n")

    def wait_line(self, start: str, timeout_s: float) -> str:
        """The first line that starts so."""

        def found() -> str | None:
            return next((line for line in self.lines if line.startswith(start)), None)

        with self._new:
            self._new.wait_for(lambda: found() is not None or self.process.poll() is not None, timeout_s)
            line = found()
        assert line is not None, self.tail
        return line

    def kill(self) -> None:
        """SIGKILL."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def finish(self, timeout_s: float) -> None:
        """Wait for the process to end by itself, in good order."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {timeout_s} s\n{self.tail}") from None
        self._reader.join(10)
        assert code == 0, self.tail

    def end(self) -> None:
        """Whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def tail(self) -> str:
        """What it said last."""
        return "\n".join(self.lines[-30:])


class Pair:
    """The two, and the run as an observer sees it."""

    def __init__(self, script: str, directory: Path) -> None:
        self.observer: Any = None
        self._directory, self._event = directory, threading.Condition()
        self.programs = {
            "host": Program(script, directory / "host"),
            "joiner": Program(script, directory / "joiner", waits=True),
        }

    def join(self, *arguments: str) -> None:
        """The host begins, the joiner joins, and this process follows."""
        self.invite = self.programs["host"].wait_line("potluck:", START_S)
        self.programs["joiner"].told(self.invite, *arguments)
        self.observer = potluck.join(
            self.invite,
            name="observer",
            directory=self._directory / "observer",
            listen="127.0.0.1",
            trains=False,
            watch=self._watch,
        )

    def _watch(self, text: str) -> None:
        with self._event:
            self._event.notify_all()

    def until(self, happened: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for something that the run's events announce."""
        deadline = time.monotonic() + timeout_s
        while not happened():
            said = "\n\n".join(f"{name}:\n{program.tail}" for name, program in self.programs.items())
            assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s\n{said}"
            with self._event:
                self._event.wait(0.1)

    def both_in(self, rounds: int) -> bool:
        """Whether so many committed rounds have the work of two peers."""
        view = self.observer.view
        return sum(_contributors(view.commits[r]) > 1 for r in list(view.commits)) >= rounds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Nothing is left of it."""
        if self.observer is not None:
            self.observer.leave()
        for program in self.programs.values():
            program.end()


def _contributors(commit: Any) -> int:
    return len({index for part in commit.parts for index, _ in part.contributors})


def losses(program: Program) -> tuple[float, float]:
    """What the example says at its end."""
    found = re.fullmatch(r"held-out loss ([\d.]+) before, ([\d.]+) after", program.lines[-1])
    assert found, program.tail
    return float(found[1]), float(found[2])


def train_with_a_death(script: str, directory: Path, victim: str, joiner: Sequence[str] = ()) -> Pair:
    """Both train, one is killed, the other sees the run to its end; its held-out loss is lower by then.

    Args:
        joiner: what it is told besides the invite.
    """
    pair = Pair(script, directory)
    try:
        pair.join(*joiner)
        pair.until(lambda: pair.both_in(2), START_S, "two rounds of both")
        assert pair.observer.over is None, "the run was too short for this test"
        pair.programs[victim].kill()
        [left] = [program for name, program in pair.programs.items() if name != victim]
        left.finish(RUN_S)
        before, after = losses(left)
        assert after < before - 0.5
    except BaseException:
        pair.end()
        raise
    return pair
