"""What a command shows: lines and a live line for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

TEXT_STYLES = {
    "again": "yellow",
    "came": "green",
    "error": "bold red",
    "invite": "bold",
    "note": "yellow",
    "peer-came": "green",
    "peer-gone": "yellow",
    "skipped": "yellow",
    "summary": "bold",
    "went": "yellow",
}


class Output:
    """Where a command's words go. Any thread may call.

    Args:
        json: one JSON object a line on standard output, the summary (or the error) last.
        plain: no colours and no live line, as when standard output is no terminal.
        verbose: logs on standard error, and an error's traceback.
    """

    def __init__(self, *, json: bool = False, plain: bool = False, verbose: bool = False) -> None:
        self.json, self.plain, self.verbose = json, plain, verbose
        look: dict[str, Any] = {"no_color": True, "force_terminal": False} if plain else {}
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, **look)
        self._errors = Console(
            stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True, **look
        )
        self._live: Live | None = None
        self._lock = threading.RLock()

    def say(self, event: str, text: str = "", **fields: Any) -> None:
        """Something happened: ``text`` for people, ``fields`` for programs (else the text)."""
        self._put(event, lambda: self._line(event, text), fields or {"text": text})

    def show(self, event: str, picture: RenderableType, **fields: Any) -> None:
        """As ``say``, with something that takes more than a line, such as a table."""
        self._put(event, lambda: self._console.print(picture), fields)

    def next(self, why: str, command: str) -> None:
        """The exact command that comes next, on a line of its own, so that it can be copied whole."""
        self._put("next", lambda: self._hint(why, command), {"text": why, "command": command})

    def summary(self, text: str, next_: tuple[str, str] | None = None, **fields: Any) -> None:
        """The last word: what came of it, and the exact command that comes next (why, command)."""
        self.restore()
        if self.json:
            self.say("summary", **fields, **({"next": next_[1]} if next_ else {}))
            return
        self.say("summary", text)
        if next_ is not None:
            self.next(*next_)

    def status(self, text: str) -> None:
        """What is being done or waited for at the moment; on a terminal only."""
        if self.json or not self._console.is_terminal:
            return
        with self._lock:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=8, transient=True)
                self._live.start()
            spinner = Spinner("dots", Text(printable(text), style="dim", no_wrap=True, overflow="ellipsis"))
            self._live.update(spinner)

    def error(self, text: str, code: int) -> None:
        """What went wrong, in one line on standard error; with JSON, on standard output."""
        self.restore()
        if self.json:
            self._put("error", lambda: None, {"text": text, "code": code})
        else:
            self._errors.print(Text(f"potluck: {printable(text)}", style=TEXT_STYLES["error"]))

    def restore(self) -> None:
        """Give the terminal back as it was. Safe to call twice, and at any moment."""
        with self._lock:
            live, self._live = self._live, None
            if live is not None:
                live.stop()

    def _put(self, event: str, draw: Callable[[], None], fields: dict[str, Any]) -> None:
        with self._lock:
            try:
                if self.json:
                    print(json.dumps({"event": event, **fields}), flush=True)
                else:
                    draw()
                    sys.stdout.flush()
            except BrokenPipeError:
                # Nobody reads any more (say, `| head`): what is being done goes on without a word.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def _line(self, event: str, text: str) -> None:
        self._console.print(Text(printable(text), style=TEXT_STYLES.get(event, "")))

    def _hint(self, why: str, command: str) -> None:
        self._console.print(Text(f"{printable(why)}:"))
        self._console.print(Text(f"  {printable(command)}", style="cyan"))


def printable(text: str) -> str:
    """Text from other machines without what a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def figure(value: float | None, digits: int = 0) -> str:
    """A number to read, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def count(number: int, noun: str) -> str:
    """A number of things: "1 peer", "2 peers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
