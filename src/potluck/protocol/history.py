"""A run's history as its ledger tells it: an event for each record that says something, and sums over all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from potluck.protocol.evaluations import told
from potluck.protocol.view import RunView
from potluck.wire.records import (
    Commit,
    Entry,
    Evaluation,
    Finish,
    Genesis,
    Grant,
    Member,
    Move,
    Open,
    Reassign,
    Snapshot,
)

MOST_NAMED = 8
"""Of more peers than so many their number is told."""


@dataclass(frozen=True)
class Event:
    """Something that happened: ``text`` in words, ``fields`` for programs."""

    sequence: int
    kind: str
    text: str
    fields: dict[str, Any]


@dataclass
class Share:
    """A peer's part in a run: its rounds, their tokens, and the first and last of them."""

    rounds: int = 0
    tokens: float = 0.0
    first: int = 0
    last: int = 0


@dataclass
class History:
    """Folds entries; ``view`` is the run after them, ``shares`` who gave what, by key."""

    view: RunView = field(default_factory=RunView)
    shares: dict[str, Share] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    _lives: dict[str, str] = field(default_factory=dict)
    _members: tuple[Member, ...] = ()

    def follow(self, entry: Entry) -> Iterator[Event]:
        """The next record, and what is to be told of it."""
        skipped, body = self.view.follow(entry), entry.record.body
        if skipped:
            what = f"ledger record {entry.sequence} ({type(body).__name__}) is skipped: {skipped}"
            yield Event(entry.sequence, "skipped", what, {"record": type(body).__name__, "reason": skipped})
            return
        for kind, text, fields in self._told(body):
            yield Event(entry.sequence, kind, text, fields)

    def _told(self, body: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
        reason = getattr(body, "reason", "")
        fields = {"round": body.round, "reason": reason} if hasattr(body, "round") else {"reason": reason}
        match body:
            case Genesis():
                yield self._genesis(body)
            case Open():
                yield from self._came_and_went(body)
                again = body.attempt > 0
                fields |= {"attempt": body.attempt, "members": [m.peer for m in body.members]}
                yield "again" if again else "open", f"round {body.round} opened: {reason}", fields
            case Reassign():
                yield "reassign", f"round {body.round}: {reason}", fields | {"parts": len(body.moves)}
            case Commit():
                yield self._commit(body)
            case Grant():
                if body.released:
                    yield "data", f"data: {reason}", fields | {"released": [m.peer for m in body.released]}
            case Snapshot():
                text = f"snapshot of round {body.round} recorded: {reason}"
                yield "snapshot", text, fields | {"state": body.state}
            case Evaluation():
                yield self._evaluation(body)
            case Finish():
                yield "over", f"run over: {reason}", fields
            case Move():
                yield "move", f"the ledger moves to engine {body.engine}: {reason}", fields

    def _genesis(self, body: Genesis) -> tuple[str, str, dict[str, Any]]:
        data = f", {body.blocks:,} blocks of data" if body.blocks else ""
        text = f"run {body.run} begins with {len(body.tensors)} tensors{data}, state {body.state[:12]}"
        return "run", text, {"run": body.run, "state": body.state, "blocks": body.blocks}

    def _came_and_went(self, body: Open) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Who is a member now and was none of the round before, and the other way round."""
        before, now = set(self._members), set(body.members)
        for member in sorted(now - before):
            known = self._lives.get(member.peer)
            how = "comes" if known is None else "is back" if known == member.session else "is back, restarted"
            self._lives[member.peer] = member.session
            yield "came", f"{short(member.peer)} {how}", {"peer": member.peer, "round": body.round}
        for member in sorted(before - now):
            if member.peer not in {m.peer for m in now}:
                text = f"{short(member.peer)} is no member any more"
                yield "went", text, {"peer": member.peer, "round": body.round}
        self._members = body.members

    def _commit(self, body: Commit) -> tuple[str, str, dict[str, Any]]:
        members, body = self.view.last_members, body.spelt_out()
        weights = {index: weight for info in body.parts for index, weight in info.contributors}
        given = {members[index].peer: weight for index, weight in sorted(weights.items())}
        for peer, weight in given.items():
            share = self.shares.setdefault(peer, Share(first=body.round))
            share.rounds, share.tokens, share.last = share.rounds + 1, share.tokens + weight, body.round
        loss = f", loss {body.loss:.4g}" if body.loss is not None else ""
        who = ", ".join(map(short, given)) if len(given) <= MOST_NAMED else f"{len(given)} peers"
        text = f"round {body.round} committed: {body.tokens:,} tokens of {who}{loss}; {body.reason}"
        return (
            "commit",
            text,
            {
                "round": body.round,
                "tokens": body.tokens,
                "total": self.view.tokens,
                "loss": body.loss,
                "contributors": given,
                "reason": body.reason,
            },
        )

    def _evaluation(self, body: Evaluation) -> tuple[str, str, dict[str, Any]]:
        self.evaluations.append(body)
        best = self.view.evaluations.best is body
        text = (
            f"round {body.round} evaluated {body.reason}: {told(body)}{', the best so far' if best else ''}"
        )
        fields = {"round": body.round, "metrics": dict(body.metrics), "best": best, "state": body.state}
        return "evaluation", text, fields | {"reason": body.reason}


def short(peer: str) -> str:
    """A key, as far as people read it: ledgers hold no names."""
    return peer[:8]
