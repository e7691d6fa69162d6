"""The run as its ledger tells it: a fold over records that every peer computes alike.

A record that does not fit where it stands is skipped by everybody for the same reason; so a confused or
hostile writer can waste a sequence number, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from potluck.errors import CorruptData
from potluck.protocol.evaluations import Evaluations
from potluck.protocol.leases import Leases, Span
from potluck.wire.codec import WIRE
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
    PartInfo,
    Reassign,
    Snapshot,
    Unreadable,
    chunk_sizes,
)

KEEP_SNAPSHOTS = 2
"""Snapshots that peers keep; commits before the older one are forgotten."""

MAX_WEIGHT = (1 << 53) - 1
"""Weights count tokens; nobody trained on more."""


@dataclass(frozen=True)
class OpenRound:
    """The round in flight, with the reassignments so far folded into ``reducers``."""

    round: int
    attempt: int
    members: tuple[Member, ...]
    reducers: tuple[int, ...]
    base: str
    grace_s: float
    groups: int = 1

    def index(self, member: Member) -> int | None:
        """Place of a member in this round, if it has one."""
        return self.members.index(member) if member in self.members else None


class RunView:
    """State of the run after ``sequence`` records. ``round`` is the last committed one (0: the genesis)."""

    def __init__(self) -> None:
        self.sequence = 0
        self.genesis: Genesis | None = None
        self.round = 0
        self.open: OpenRound | None = None
        self.commits: dict[int, Commit] = {}
        self.members: dict[int, tuple[Member, ...]] = {}
        self.snapshots: dict[int, Snapshot] = {}
        self.last_plan: dict[int, Member] = {}
        self.last_members: tuple[Member, ...] = ()
        self.tokens = 0
        self.reopened = 0
        self.loss: float | None = None
        self.finished: Finish | None = None
        self.leases: Leases | None = None
        self.evaluations = Evaluations()
        self.moved: dict[Member, list[Span]] = {}
        """What the last grant leased, or the last commit included, by member."""

    def follow(self, entry: Entry) -> str | None:
        """Fold one record in; returns why it was skipped, if it was."""
        assert entry.sequence == self.sequence + 1, "the chain hands records over in order"
        self.sequence = entry.sequence
        body = entry.record.body
        if isinstance(body, Unreadable):
            return body.reason
        if isinstance(body, Genesis):
            return self._genesis(body)
        if self.genesis is None:
            return "it comes before the genesis"
        if isinstance(body, Move):
            return None  # where the log is kept is the hubs' business: the run goes on as it was
        if self.finished is not None and not isinstance(body, Snapshot | Evaluation):
            return "the run is over"
        if isinstance(body, Open):
            return self._open(body)
        if isinstance(body, Reassign):
            return self._reassign(body)
        if isinstance(body, Commit):
            return self._commit(body)
        if isinstance(body, Grant):
            return self._grant(body)
        if isinstance(body, Snapshot):
            return self._snapshot(body)
        if isinstance(body, Evaluation):
            return self.evaluations.follow(body, self.round, self.snapshots, self.commits)
        self.finished, self.open = body, None
        return None

    def _genesis(self, body: Genesis) -> str | None:
        if self.genesis is not None:
            return "the run has a genesis already"
        if body.wire != WIRE:
            return f"it is of wire version {body.wire}, and this release speaks {WIRE}"
        self.genesis = body
        if body.blocks:
            self.leases = Leases(body.blocks, body.epochs)
        return None

    def _open(self, body: Open) -> str | None:
        assert self.genesis is not None
        attempt = self.open.attempt + 1 if self.open else 0
        if (body.round, body.attempt) != (self.round + 1, attempt):
            return f"round {self.round + 1}, attempt {attempt} is due, not {body.round}, {body.attempt}"
        if len(set(body.members)) != len(body.members):
            return "it names a member twice"
        if len(body.reducers) != self.genesis.parts or max(body.reducers) >= len(body.members):
            return "its plan does not give every part to a member"
        if body.groups > len(body.members):
            return "it has more groups than members"
        if not 0 < body.grace_s < math.inf:
            return "its grace period is no time"
        self.reopened += self.open is not None
        plan = body.members, body.reducers, body.base, body.grace_s, body.groups
        self.open = OpenRound(body.round, body.attempt, *plan)
        self.evaluations.opened(self.round, body.base)
        return None

    def _reassign(self, body: Reassign) -> str | None:
        if self.open is None or (body.round, body.attempt) != (self.open.round, self.open.attempt):
            return "its round is not open"
        reducers = list(self.open.reducers)
        for part, reducer in body.moves:
            if part >= len(reducers) or reducer >= len(self.open.members):
                return f"it moves part {part} to member {reducer}, and there is no such thing"
            reducers[part] = reducer
        self.open = replace(self.open, reducers=tuple(reducers))
        return None

    def _commit(self, body: Commit) -> str | None:
        assert self.genesis is not None
        if self.open is None or (body.round, body.attempt) != (self.open.round, self.open.attempt):
            return "its round is not open"
        if [info.part for info in body.parts] != list(range(self.genesis.parts)):
            return "it does not name each part once, in order"
        if len(body.weights) > len(self.open.members):
            return "it has more weights than there are members"
        body = body.spelt_out()
        # Parts that all contributed to share one tuple, which need be looked at only once.
        distinct = {id(info.contributors): info for info in body.parts}.values()
        unfit = next(filter(None, (fault(info, len(self.open.members)) for info in distinct)), None)
        if unfit:
            return unfit
        counted = [index for index, _ in body.blocks]
        if counted != sorted(set(counted)) or not set(counted) <= contributors(distinct):
            return f"it counts data blocks of {counted}: not its contributors, each once"
        self.moved = {}
        if self.leases is not None:
            members = self.open.members
            self.moved = {members[i]: self.leases.include(members[i], n) for i, n in body.blocks}
        self.commits[body.round] = body
        self.members[body.round] = self.open.members
        self.last_members = self.open.members
        self.last_plan = {p: self.open.members[m] for p, m in enumerate(self.open.reducers)}
        self.round, self.open = body.round, None
        self.tokens += body.tokens
        self.loss = body.loss if body.loss is not None else self.loss
        return None

    def _grant(self, body: Grant) -> str | None:
        if self.leases is None:
            return "this run leases no data"
        named = [*body.released, *(member for member, _ in body.leased)]
        if len(set(named)) != len(named) or not named:
            return "it does not name each member once"
        if self.open is not None and any(self.open.index(m) is not None for m in body.released):
            return "it releases a member of the open round, whose work may be in the next commit"
        for member in body.released:
            self.leases.release(member)
        self.moved = {member: self.leases.lease(member, wanted) for member, wanted in body.leased}
        self.leases.grants += 1
        return None

    def _snapshot(self, body: Snapshot) -> str | None:
        if body.round > self.round:
            return "its round is not committed"
        if self.snapshots and body.round <= max(self.snapshots):
            return "a snapshot as new as this one is recorded already"
        try:
            for blob in body.files:
                chunk_sizes(blob)
        except CorruptData as error:
            return str(error)
        self.snapshots[body.round] = body
        for old in sorted(self.snapshots)[:-KEEP_SNAPSHOTS]:
            del self.snapshots[old]
        oldest = min(self.snapshots)
        for round_ in [r for r in self.commits if r <= oldest]:
            del self.commits[round_], self.members[round_]
        return None


def contributors(parts: Iterable[PartInfo]) -> set[int]:
    """Indices of the members that are in any of these parts."""
    return {index for info in parts for index, _ in info.contributors}


def fault(info: PartInfo, members: int) -> str | None:
    """Why a part's result can't stand; a member counts at most once in a part."""
    indices = [index for index, _ in info.contributors]
    if not indices or indices != sorted(set(indices)) or indices[-1] >= members:
        return f"part {info.part} has contributors {indices}: not members, each at most once"
    weights = [weight for _, weight in info.contributors]
    if not (math.isfinite(sum(weights)) and min(weights) > 0 and max(weights) <= MAX_WEIGHT):
        return f"part {info.part} has a weight that is no number of tokens"
    return None
