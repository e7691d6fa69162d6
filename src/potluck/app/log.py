"""``potluck log``: what happened in a run, from its ledger at the hub or from a copy on a disk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from potluck.app.disk import copy_at
from potluck.app.hub import away
from potluck.app.output import Output, count
from potluck.errors import LedgerUnavailable, Unreachable
from potluck.hub.client import HubClient
from potluck.identity import Identity
from potluck.protocol.history import Event, History
from potluck.wire.invite import Invite, is_invite
from potluck.wire.records import Chain, Entry


def show_log(out: Output, source: str, last: int) -> None:
    """Tell a run's history, an event a line; of the ``last`` events only, or of all if that is 0.

    Raises:
        UsageError: ``source`` is no invite, and holds no copy of a run.
        Unreachable: the hub is away.
        CorruptData: the journal is damaged or altered.
    """
    history = History()
    kept: deque[Event] = deque(maxlen=last or None)
    for entry in _entries(out, source):
        for event in history.follow(entry):
            if last:
                kept.append(event)
            else:
                _say(out, event)
    for event in kept:
        _say(out, event)
    view = history.view
    best = view.evaluations.best
    said = f", the best evaluated one is {best.round}" if best is not None else ""
    out.summary(
        f"{count(view.sequence, 'record')}, up to round {view.round}{said}; {view.tokens:,} tokens of "
        f"{count(len(history.shares), 'peer')}",
        code=0,
        run=view.genesis.run if view.genesis is not None else None,
        records=view.sequence,
        round=view.round,
        tokens=view.tokens,
        peers={p: {"rounds": s.rounds, "tokens": s.tokens} for p, s in sorted(history.shares.items())},
        best=best.round if best is not None else None,
        over=view.finished.reason if view.finished is not None else None,
    )


def _say(out: Output, event: Event) -> None:
    out.say(event.kind, f"{event.sequence:>6}  {event.text}", sequence=event.sequence, **event.fields)


def _entries(out: Output, source: str) -> Iterable[Entry]:
    if not is_invite(source):
        return (entry for entry, _ in copy_at(source).records())
    parsed = Invite.parse(source)
    out.status(f"asking the hub of run {parsed.run}")
    try:
        return asyncio.run(read_ledger(parsed))
    except (Unreachable, LedgerUnavailable) as error:
        raise away(error, parsed.run) from error


async def read_ledger(invite: Invite) -> list[Entry]:
    """All records, as somebody who is no peer of the run."""
    client = await HubClient.join(invite, Identity.generate())
    try:
        chain, entries = Chain(), list[Entry]()
        while batch := await client.ledger.read(chain.sequence + 1):
            entries += [chain.follow(sequence, raw) for sequence, raw in batch]
    finally:
        await client.close()
    return entries
