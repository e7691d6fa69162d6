"""Somebody does what the tutorial says, command by command, after installing."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .app.shells import end_hubs
from .test_docs import INVITE

pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]

PAGE = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text("utf-8")
STEP_S = 90.0
"""How long a step may take on a busy machine."""


class Terminal:
    """One command at a time, and what it says."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[str] | None = None
        self._said: list[str] = []
        self._changed = threading.Condition()

    def type(self, line: str) -> None:
        """Begin with a command, which is to be in the tutorial as it is here but for the invite."""
        assert INVITE.sub("INVITE", line) in PAGE, line
        words = shlex.split(line)
        assert words[0] == "potluck"
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                *words,
                *([] if words[1] == "status" else ["--directory", str(self._home)]),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self._home.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._said = []
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                self._said.append(line.rstrip())
                self._changed.notify_all()
        process.stdout.close()

    def sees(self, pattern: str) -> str:
        """The first line with this in it, once it is there."""
        found: list[str] = []

        def there() -> bool:
            found[:] = [line for line in self._said if re.search(pattern, line)]
            return bool(found)

        with self._changed:
            assert self._changed.wait_for(there, STEP_S), "\n".join([pattern, *self._said])
        return found[0]

    def ends(self) -> int:
        assert self._process is not None
        return self._process.wait(STEP_S)

    def presses_ctrl_c(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[tuple[Terminal, Terminal, Terminal]]:
    opened = Terminal(tmp_path / "home"), Terminal(tmp_path / "home"), Terminal(tmp_path / "home")
    yield opened
    for terminal in opened:
        terminal.close()
    end_hubs(tmp_path)


def like(line: str) -> str:
    """A pattern of a line, whatever its figures are."""
    return r"[\d,.]+".join(map(re.escape, re.split(r"\d[\d,.]*", line)))


def test_the_tutorial_works_as_it_is_written(
    terminals: tuple[Terminal, Terminal, Terminal], tmp_path: Path
) -> None:
    first, second, third = terminals
    first.type("potluck host")
    invite = first.sees(f"^{INVITE.pattern}$")
    assert first.sees("potluck join").strip() == f"potluck join {invite}"

    second.type(f"potluck join {invite}")
    second.sees(r"is in run")
    [round_] = re.findall(r"^```text\n(.+)\n```", PAGE, re.M)
    second.sees(like(round_))

    third.type(f"potluck status {invite}")
    third.sees(r"  training  ")
    assert third.ends() == 0

    first.presses_ctrl_c()
    again = first.sees("potluck join .*").strip()
    assert first.ends() == 130
    first.type(again)

    third.type(f"potluck export {invite} model")
    third.sees("let it write")
    assert third.ends() == 0
    assert (tmp_path / "model" / "config.json").is_file()
    first.sees(r"is in run")
    for terminal in (first, second):
        terminal.presses_ctrl_c()
    assert [terminal.ends() for terminal in (first, second)] == [130, 130]
