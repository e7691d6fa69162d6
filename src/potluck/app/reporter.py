"""Tells a run as it goes: a line for each committed round, for who comes and goes, for what is amiss."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from potluck.app.output import Output, count, figure
from potluck.errors import PotluckError
from potluck.protocol.evaluations import told
from potluck.run import Run
from potluck.wire.messages import Progress
from potluck.wire.records import Commit

TICK_S = 0.5
"""How often the live line is renewed, in seconds."""

ROUTINE = re.compile(
    r"round \d+ (opened|committed|evaluated)|snapshot of round|caught up|run over|archived up to|"
    "append not taken"
)
"""What the core notes at every round; the line of the round says it shorter."""


class Reporter:
    """Its own thread, so that the training loop need not be touched. Used as a context.

    ``watch`` is for ``potluck.host`` and ``potluck.join``; ``begin`` once the run's state is here.
    """

    def __init__(self, out: Output) -> None:
        self._out = out
        self._notes: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._run: Run | None = None
        self._round: int | None = None
        self._evaluated: set[int] = set()
        self._here: dict[str, str] = {}
        self._trainers, self._speed = 0, 0.0
        self._thread = threading.Thread(target=self._tell, name="potluck-reporter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def watch(self, text: str) -> None:
        """An event in the core's words; called from the network thread."""
        self._notes.put(text)

    def attach(self, run: Run) -> None:
        """There is a run now."""
        self._run = run

    def begin(self) -> None:
        """The run's state is here: rounds from the next one on, and changes among the peers, are told."""
        assert self._run is not None
        self._here = {p.peer: p.name or p.peer[:8] for p in self._run.peers}
        self._round = self._run.round
        self._evaluated = set(self._run.view.evaluations.of)

    def end(self) -> None:
        """Stop telling. Safe to call twice."""
        if self._thread.is_alive():
            self._notes.put(None)
            self._thread.join()

    def last_words(self) -> None:
        """After the run was left: what came while it was being left."""
        while not self._notes.empty():
            self._note(self._notes.get())
        self._rounds()

    # -- the thread ------------------------------------------------------------------------------

    def _tell(self) -> None:
        while True:
            try:
                text = self._notes.get(timeout=TICK_S)
                if text is None:
                    return
                self._note(text)
            except queue.Empty:
                pass
            try:
                self._rounds()
                self._peers()
            except PotluckError as error:
                # The run ends or the machine is very busy; the next look tells, and the trainer hears of it.
                self._out.status(str(error))

    def _note(self, text: str | None) -> None:
        if text is not None and not ROUTINE.match(text):
            self._out.say("note", text)

    def _rounds(self) -> None:
        run = self._run
        if run is None or self._round is None:
            return
        head, tokens = run.view.round, run.view.tokens
        commits = [run.view.commits.get(number) for number in range(self._round + 1, head + 1)]
        for index, commit in enumerate(commits):
            if commit is not None:
                later = sum(c.tokens for c in commits[index + 1 :] if c is not None)
                self._committed(run, commit, tokens - later)
        self._round = head
        self._evaluations(run)

    def _evaluations(self, run: Run) -> None:
        """Those that have come, and whether one is the best so far."""
        found = run.view.evaluations
        came = found.of.copy()
        for round_, body in sorted(came.items()):
            if round_ not in self._evaluated:
                best = found.best is body
                more = ", the best so far" if best else ""
                self._out.say(
                    "evaluation",
                    f"round {round_}  evaluated {body.reason}: {told(body)}{more}",
                    round=round_,
                    metrics=dict(body.metrics),
                    best=best,
                    state=body.state,
                    reason=body.reason,
                )
        self._evaluated = set(came)

    def _committed(self, run: Run, commit: Commit, tokens: int) -> None:
        self._look(run.peers)
        target = run.recipe.end.tokens
        self._out.say(
            "round",
            f"round {commit.round}  loss {figure(commit.loss, 3)}  "
            f"{tokens:,}{f' of {target:,}' if target else ''} tokens  {self._speed:,.0f} tokens/s  "
            f"{count(self._trainers, 'peer')}  {commit.reason}",
            round=commit.round,
            loss=commit.loss,
            tokens=tokens,
            tokens_per_s=round(self._speed, 1),
            peers=self._trainers,
            reason=commit.reason,
        )

    def _look(self, peers: Sequence[Progress]) -> None:
        trainers = [p for p in peers if p.phase == "training"]
        if trainers:  # nobody is there any more once we have left: then what was seen last is told
            self._trainers, self._speed = len(trainers), sum(p.tokens_per_s for p in trainers)

    def _peers(self) -> None:
        run = self._run
        if run is None:
            return
        peers = run.peers
        self._look(peers)
        self._out.status(f"{run.state.activity}  ·  {self._speed:,.0f} tokens/s")
        if self._round is None or not peers:
            return
        here = {p.peer: p.name or p.peer[:8] for p in peers}
        for peer in here.keys() - self._here.keys():
            self._out.say("peer-came", f"{here[peer]} is here", name=here[peer], peer=peer)
        for peer in self._here.keys() - here.keys():
            self._out.say("peer-gone", f"{self._here[peer]} is gone", name=self._here[peer], peer=peer)
        self._here = here
