"""What the demo shows: a live table on a terminal, lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from potluck.protocol.view import RunView
from potluck.wire.messages import Progress

EVENTS = 12
"""Events that the live view keeps in sight."""


class View:
    """Shows a run; ``event`` may be called from any thread."""

    def __init__(self, *, json: bool, plain: bool) -> None:
        self._json = json
        self._console = Console(highlight=False, no_color=plain)
        self._live_wanted = not json and not plain and self._console.is_terminal
        self._live: Live | None = None
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._started = time.monotonic()
        self._round = -1

    def __enter__(self) -> Self:
        if self._live_wanted:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def event(self, text: str) -> None:
        """Something happened; the words are the core's own."""
        at = time.monotonic() - self._started
        if self._json:
            # In one piece with its end: events come from two threads.
            print(json.dumps({"event": text, "at_s": round(at, 2)}) + "\n", end="", flush=True)
        elif self._live is None:
            self._console.print(f"{at:6.1f} s  {text}", soft_wrap=True)
        self._events.append(f"{at:6.1f} s  {text}")

    def show(self, view: RunView, peers: Sequence[Progress], target: int) -> None:
        """The state of the run now."""
        trainers = [p for p in peers if p.phase == "training"]
        speed = sum(p.tokens_per_s for p in trainers)
        if self._live is not None:
            self._live.update(self._screen(view, peers, target, speed))
        elif view.round != self._round:
            self._round = view.round
            loss = f"{view.loss:.3f}" if view.loss is not None else "–"
            self.event(
                f"round {view.round}: loss {loss}, {view.tokens:,} of {target:,} tokens, "
                f"{speed:,.0f} tokens/s, {len(trainers)} peers train"
            )

    def _screen(self, view: RunView, peers: Sequence[Progress], target: int, speed: float) -> Group:
        loss = f"{view.loss:.3f}" if view.loss is not None else "–"
        head = Text.assemble(
            ("potluck demo", "bold"),
            f"   round {view.round}   loss {loss}   {speed:,.0f} tokens/s   "
            f"{view.tokens:,} of {target:,} tokens",
        )
        table = Table(expand=True, box=box.SIMPLE_HEAD, header_style="dim")
        for name in ("peer", "phase", "round", "state", "tokens/s", "loss", "up", "down"):
            table.add_column(name, justify="left" if name in ("peer", "phase", "state") else "right")
        for p in peers:
            table.add_row(
                p.name,
                p.phase,
                str(p.round),
                p.state[:12],
                f"{p.tokens_per_s:,.0f}",
                f"{p.loss:.3f}" if p.loss is not None else "–",
                _megabytes(p.bytes_sent),
                _megabytes(p.bytes_received),
            )
        bar = ProgressBar(total=max(target, 1), completed=min(view.tokens, target))
        return Group(head, bar, table, Panel("\n".join(self._events), title="events"))

    def finish(self, summary: dict[str, Any], digests: dict[str, str], keep: Path | None) -> None:
        """The end: figures, digests, a sample, and what to type next."""
        if self._json:
            print(json.dumps(summary), flush=True)
            return
        say = self._console.print
        fall = 1 - summary["loss_last"] / summary["loss_first"]
        say(
            f"\nheld-out loss {summary['loss_first']:.3f} → {summary['loss_last']:.3f} nats/token "
            f"({fall:.0%} lower), {summary['bits_per_byte']:.3f} bits/byte"
        )
        say(
            f"{summary['rounds']} rounds, {summary['tokens']:,} tokens, {summary['killed']} peers killed, "
            f"{summary['joined']} joined, {summary['rounds_lost']} rounds lost, "
            f"{_megabytes(summary['bytes_sent'])} sent"
        )
        verdict = "the same bits everywhere" if summary["digests_equal"] else "THE STATES DIFFER"
        say(f"state digests: {verdict}")
        for name, digest in sorted(digests.items()):
            say(f"  {name:8} {digest}")
        say("\na sample of the model:")
        say(Panel(summary["sample"].strip(), width=80))
        if keep is not None:
            say(f"the model is in {keep / 'model'}: AutoModelForCausalLM.from_pretrained reads it")
        say("next, on your own machines:")
        say("  potluck host                  # starts a run, and prints an invite")
        say("  potluck join INVITE           # on every other machine")
        say("  potluck status INVITE         # what it is doing, and why")
        say("  potluck export INVITE model   # a directory for transformers")


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
