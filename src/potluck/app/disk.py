"""``potluck verify`` and ``potluck fork``: what a disk holds of a run, without any network."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

from potluck.app.output import Output, count
from potluck.errors import UsageError
from potluck.peer.replay import Replay, Round, check_content, oldest_start, survey
from potluck.peer.resume import open_copy
from potluck.peer.revive import fork
from potluck.store.copies import Copy


def copy_at(source: str) -> Copy:
    """The copy of a run that is named where an invite could be as well.

    Raises:
        UsageError: it is neither.
    """
    try:
        return open_copy(source)
    except UsageError as error:
        raise UsageError(f"that is no invite (potluck:…) and no copy of a run: {error}") from error


def verify_disk(out: Output, source: str) -> None:
    """Replay a copy of a run, and say each round that is as it must be.

    Raises:
        UsageError: there is no copy of a run.
        CorruptData, StoreError: the first thing that is damaged, missing or altered.
    """
    out.status("reading the journal")
    copy = open_copy(source)
    found = survey(copy)
    start = oldest_start(copy, found)
    stretches = found.stretches()
    run = found.genesis.run
    out.say(
        "copy",
        f"{copy.where}: run {run}, {count(found.view.sequence, 'record')}, up to round {found.view.round}; "
        f"replayed from the snapshot of round {start}",
        where=copy.where,
        run=run,
        records=found.view.sequence,
        round=found.view.round,
        start=start,
    )
    for round_, lacking in sorted(found.partly.items()):
        if round_ > start:
            out.say("note", f"the snapshot of round {round_} is here in part only ({lacking} chunks lack)")
    if lacking_files := copy.lacking_of(found.genesis.assets):
        out.say(
            "note", f"{len(lacking_files)} pieces of the run's files are not here: not enough to train from"
        )
    replayed, state = 0, found.whole[start].state
    for (_, best), (later, _) in pairwise(stretches):
        between = f"rounds {best + 1} to {later} are kept no more: they lie between the best evaluated state"
        out.say("note", f"{between}, or one that was, and the snapshot of round {later}")
    for first, last in stretches:
        state = found.whole[first].state
        for each in Replay(copy, found, first).rounds(last):
            _tell(out, each)
            replayed, state = replayed + 1, each.state
    files = check_content(copy)
    out.summary(
        f"{count(replayed, 'round')} replayed, {count(files, 'file')} compared with their digests: all is as "
        f"the ledger says; state {state[:12]} after round {found.view.round}",
        code=0,
        run=run,
        start=start,
        round=found.view.round,
        replayed=replayed,
        files=files,
        state=state,
    )


def _tell(out: Output, each: Round) -> None:
    named = " and ".join(each.named_by) or "no later record"
    out.say(
        "round",
        f"round {each.round}  state {each.state[:12]}  {count(each.parts, 'part')}  {each.tokens:,} tokens  "
        f"named by {named}",
        round=each.round,
        state=each.state,
        parts=each.parts,
        tokens=each.tokens,
        named_by=each.named_by,
    )


def fork_run(out: Output, source: str, round_: int, to: Path) -> None:
    """Begin a new run from the state after a round of a copy.

    Raises:
        UsageError: no copy, no such round in it, or the new directory is not empty.
        CorruptData, StoreError: what is needed is damaged or missing.
    """
    out.status(f"replaying up to round {round_}")
    copy = open_copy(source)
    found = survey(copy)
    forked = fork(copy, found, round_, to)
    out.summary(
        f"run {forked.run} begins with the state after round {round_} of run {found.genesis.run}, in {to}",
        ("host it", f"potluck host --resume {shlex.quote(str(to))}"),
        code=0,
        run=forked.run,
        parent=found.genesis.run,
        round=round_,
        state=forked.state,
        directory=str(forked.directory),
    )
