"""Replays a copy of a run without any network: what it holds, whether it is sound, any state in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from potluck.errors import CorruptData, StoreError, UsageError
from potluck.peer.state import Missing, PeerState
from potluck.protocol.view import RunView
from potluck.recipe import Recipe
from potluck.store.copies import Copy
from potluck.wire.records import Commit, Entry, Evaluation, Genesis, Open, Snapshot

NAMED = 4
"""Digests that a message names of a longer list."""


@dataclass
class Survey:
    """What a copy holds: the run as its journal tells it, and the recorded snapshots that are here whole.

    ``partly`` counts, by round, the chunks lacking of snapshots of which others are here. ``lacking`` names,
    by round, the parts that are not here of rounds since the oldest whole snapshot. ``bests`` are the rounds
    whose states were at some time the best evaluated ones.
    """

    view: RunView = field(default_factory=RunView)
    whole: dict[int, Snapshot] = field(default_factory=dict)
    partly: dict[int, int] = field(default_factory=dict)
    lacking: dict[int, list[str]] = field(default_factory=dict)
    bests: set[int] = field(default_factory=set)

    @property
    def genesis(self) -> Genesis:
        """The run's first record."""
        assert self.view.genesis is not None
        return self.view.genesis

    def reach(self, start: int) -> int:
        """The last round whose state follows from the snapshot of round ``start`` and the parts here."""
        return min((r for r in self.lacking if r > start), default=self.view.round + 1) - 1

    def stretches(self) -> list[tuple[int, int]]:
        """What is to be here without a gap: from the round of a snapshot, up to a round. The last one ends at
        the head. Before it there are others where what the best state follows from was kept, and not what is
        between.
        """
        start, found = min(self.whole), []
        needed = min((r for r in self.whole if r in self.view.snapshots), default=start)
        while (reach := self.reach(start)) < self.view.round:
            best = max((r for r in self.bests if start <= r <= reach), default=None)
            later = min((r for r in self.whole if r > reach), default=None)
            if best is None or later is None or later > needed:
                break
            found.append((start, best))
            start = later
        return [*found, (start, self.view.round)]


def survey(copy: Copy) -> Survey:
    """Read a copy's journal, and look (without reading) for the content that it names.

    Raises:
        CorruptData: the journal is damaged or altered, and where.
        StoreError: it can't be read, or holds no run.
    """
    found = Survey()
    for entry, _ in copy.records():
        if found.view.follow(entry) is None:
            _look(copy, found, entry)
    if found.view.genesis is None:
        raise StoreError(f"{copy.where} has the journal of a run that never began: there is nothing in it")
    return found


def _look(copy: Copy, found: Survey, entry: Entry) -> None:
    body = entry.record.body
    if isinstance(body, Snapshot):
        chunks = {chunk for blob in body.files for chunk in blob.chunks}
        lacking = len(copy.lacking(chunks))
        if not lacking:
            found.whole[body.round] = body
        elif lacking < len(chunks):
            found.partly[body.round] = lacking
        # Whatever is found whole later is newer than the snapshots of before.
        floor = min(found.whole, default=min(found.view.snapshots))
        found.lacking = {r: names for r, names in found.lacking.items() if r > floor}
        found.partly = {r: count for r, count in found.partly.items() if r >= floor}
    elif isinstance(body, Evaluation) and found.view.evaluations.best is body:
        found.bests.add(body.round)
    elif isinstance(body, Commit) and (lost := copy.lacking(info.digest for info in body.parts)):
        found.lacking[body.round] = lost[:NAMED]


@dataclass
class Round:
    """A round that was replayed: its digest, and the later records that name the same."""

    round: int
    state: str
    parts: int
    tokens: int
    named_by: list[str] = field(default_factory=list)


class Replay:
    """The rounds of a copy, one after another, from a snapshot that it holds.

    Args:
        start: the round whose snapshot is replayed from.
    """

    def __init__(self, copy: Copy, found: Survey, start: int) -> None:
        self._copy, self._found = copy, found
        self.state = _blank(copy, found)
        self._start = found.whole[start]
        self._states = {start: self._start.state}
        self._pending: Round | None = None

    def rounds(self, until: int | None = None) -> Iterator[Round]:
        """Apply and check each round up to ``until`` (by default to the end).

        Every part and chunk is compared with its digest; the digest of every state with what later opens and
        snapshots name.

        Raises:
            CorruptData, StoreError: the first thing that is not as it must be, in words.
        """
        self._load(self.state, self._start)
        view = RunView()
        for entry, _ in self._copy.records():
            skipped = view.follow(entry)
            body = entry.record.body
            if skipped is not None:
                continue
            if isinstance(body, Commit) and body.round > self._start.round:
                if until is not None and body.round > until:
                    break
                yield from self._done()
                self._pending = self._apply(body.spelt_out())
            elif isinstance(body, Genesis) and self._start.round == 0:
                self._compare(0, body.state, "the genesis")
            elif isinstance(body, Open):
                self._compare(body.round - 1, body.base, f"the open of round {body.round}")
            elif isinstance(body, Snapshot):
                self._snapshot(body)
        yield from self._done()

    def _done(self) -> Iterator[Round]:
        if self._pending is not None:
            yield self._pending
        self._pending = None

    def _apply(self, commit: Commit) -> Round:
        try:
            self.state.apply(commit)
        except Missing as missing:
            raise StoreError(
                f"round {commit.round} can't be replayed: {what_lacks(self._copy, missing.digests, 'part')}. "
                f"{self._copy.where} holds the run up to round {commit.round - 1}, its journal goes up to "
                f"round {self._found.view.round}"
            ) from missing
        assert self.state.plane is not None
        state = self._states[commit.round] = self.state.plane.digest
        judged = self._found.view.evaluations.of.get(commit.round)
        named = ["its evaluation"] if judged is not None and judged.state == state else []
        return Round(commit.round, state, len(commit.parts), commit.tokens, named)

    def _snapshot(self, body: Snapshot) -> None:
        self._compare(body.round, body.state, f"the snapshot of round {body.round}")
        if body.round in self._found.whole and body.round > self._start.round:
            self._load(_blank(self._copy, self._found), body)

    def _load(self, state: PeerState, snapshot: Snapshot) -> None:
        try:
            state.load(snapshot)
        except Missing as missing:
            raise StoreError(
                f"the snapshot of round {snapshot.round} can't be loaded: "
                f"{what_lacks(self._copy, missing.digests, 'chunk')}"
            ) from missing

    def _compare(self, round_: int, named: str, by: str) -> None:
        replayed = self._states.get(round_)
        if replayed is None:
            return
        if replayed != named:
            raise CorruptData(
                f"the state after round {round_} is {replayed[:12]} when replayed, and {by} names "
                f"{named[:12]}: the ledger in {self._copy.where} and the content beside it do not belong "
                "together; use another peer's disk"
            )
        if self._pending is not None and self._pending.round == round_:
            self._pending.named_by.append(by)


def _blank(copy: Copy, found: Survey) -> PeerState:
    return PeerState(copy, Recipe.from_toml(found.genesis.recipe), found.genesis)


def what_lacks(copy: Copy, digests: Iterable[str], kind: str) -> str:
    """Missing and damaged content in words: how much of it, and its names."""
    names = list(digests)
    damaged = [name for name in names if name in copy.damaged]
    kinds = [(damaged, "damaged"), ([n for n in names if n not in copy.damaged], "missing")]
    told = []
    for some, how in kinds:
        if some:
            listed = ", ".join(n[:12] for n in some[:NAMED]) + (", …" if len(some) > NAMED else "")
            told.append(f"{len(some)} {kind}{'' if len(some) == 1 else 's'} {how} ({listed})")
    return " and ".join(told)


def oldest_start(copy: Copy, found: Survey) -> int:
    """The round of the oldest snapshot that is here whole.

    Raises:
        StoreError: there is none, and what is missing.
    """
    if found.whole:
        return min(found.whole)
    raise StoreError(f"{copy.where} holds no state to go on from: {no_snapshot(found)}")


def no_snapshot(found: Survey) -> str:
    """Why there is no snapshot to start from, in words."""
    recorded = sorted(found.view.snapshots)
    if not recorded:
        return "its journal names no snapshot yet"
    told = []
    for round_ in recorded:
        lacking = found.partly.get(round_)
        told.append(f"that of round {round_} " + (f"lacks {lacking} chunks" if lacking else "is not here"))
    return f"of the last snapshots, {' and '.join(told)}"


def state_after(copy: Copy, found: Survey, round_: int) -> PeerState:
    """The state after a round, replayed and checked.

    Raises:
        UsageError: the copy does not reach so far back, or the run has not got so far.
        CorruptData, StoreError: what it needs is damaged or missing.
    """
    starts = [r for r in found.whole if r <= round_]
    if round_ > found.view.round:
        raise UsageError(f"{copy.where} knows the run up to round {found.view.round}, not {round_}")
    if not starts:
        oldest = oldest_start(copy, found)
        raise UsageError(
            f"{copy.where} keeps the run from round {oldest} on, not round {round_}: a peer keeps as many "
            "snapshots as it was told to (--keep-snapshots)"
        )
    replay = Replay(copy, found, max(starts))
    for _ in replay.rounds(round_):
        pass
    return replay.state


def check_content(copy: Copy) -> int:
    """Compare all content that was not read yet with its digests; returns how much there is in all.

    Raises:
        CorruptData: some of it is damaged.
    """
    digests = copy.digests()
    for name in sorted(digests - copy.intact):
        copy.get(name)
    if copy.damaged:
        raise CorruptData(f"{what_lacks(copy, sorted(copy.damaged), 'file')} in {copy.where}")
    return len(digests)
