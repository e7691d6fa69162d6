"""How a peer reaches the head of the ledger: a snapshot if it must, then every commit since.

The same path serves a joiner, a peer that was away, one whose state drifted, and a member that lacks a
part of the round just committed. Content is named by digest, so it can come from anybody who has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from potluck.protocol.arrival import Arrival
from potluck.protocol.effects import Apply, Effect, Fetch, LoadSnapshot
from potluck.protocol.errand import RETRY_S, Errand
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import RunView
from potluck.wire.messages import Progress
from potluck.wire.records import Blob, Commit, Snapshot, chunk_sizes

NO_STATE = -1
"""The round of a peer that has no state yet."""

FLYING_PER_SOURCE = 2
"""Fetches under way from one peer at a time."""

FLYING = 8
"""Fetches under way in all."""

AHEAD = 8
"""Results of so many rounds are fetched while a snapshot or the rounds before them are on their way."""

LOAD_BYTES_S = 150e6
"""A snapshot that is here takes one second to load for so many bytes, about."""

DOUBT_S = 30.0
"""A source that failed is asked after all others for so long, in seconds: what can't be reached is found out
by silence, and with one such wait in every round a peer would fall behind.
"""


@dataclass(frozen=True)
class Need:
    """Content that is wanted: its digest, its size, and the peers that say they have it."""

    digest: str
    size: int
    sources: tuple[str, ...]


class Catchup:
    """Brings a peer's state to the last commit. ``have`` is the content that is in its store."""

    def __init__(self, peer: str, have: set[str]) -> None:
        self.round = NO_STATE
        self.state = ""
        self.have = have
        self.fetching = NO_STATE
        """The round of the snapshot that is being fetched."""
        self.reason = "nothing to catch up with"
        self._peer = peer
        self._busy = False
        self._flying: dict[str, str] = {}
        self._errands: dict[str, Errand] = {}
        self._tries: dict[str, int] = {}
        self._doubted: dict[str, float] = {}
        self._spoilt: set[int] = set()
        self._sizes: dict[str, int] = {}
        self._arrival = Arrival()
        self._left = self._to_load = 0

    @property
    def manifest(self) -> dict[str, int]:
        """Digests being fetched (for tests and status), with how often each was tried."""
        return {digest: self._tries.get(digest, 0) for digest in sorted(self._flying)}

    # -- what happened ---------------------------------------------------------------------------

    def applied(self, round_: int, state: str) -> None:
        """The state is now that after ``round_``."""
        self.round, self.state, self._busy = round_, state, False
        self.fetching = NO_STATE

    def missing(self, digests: tuple[str, ...]) -> None:
        """Content that should have been here was not, or was damaged: fetch it again."""
        self._busy = False
        for digest in digests:
            self.have.discard(digest)
            self._errands.pop(digest, None)

    def spoilt(self, round_: int) -> None:
        """A snapshot, though all of it is here, is not the state that it says it is: another one must do."""
        self._busy, self.fetching = False, NO_STATE
        self._spoilt.add(round_)

    def drifted(self) -> None:
        """The state is not what the others have: start over from a snapshot."""
        self.round, self.state = NO_STATE, ""

    def fetched(self, digest: str, ok: bool, now: float) -> None:
        """A fetch ended."""
        source, size = self._flying.pop(digest, None), self._sizes.pop(digest, 0)
        if source is not None and not ok:
            self._doubted[source] = now + DOUBT_S
        if ok:
            self._arrival.came(size, now)
            self.have.add(digest)
            self._errands.pop(digest, None)
            self._tries.pop(digest, None)
        elif digest in self._errands:
            self._errands[digest] = Errand(retry_at=now + RETRY_S)

    def eta_s(self, now: float) -> float | None:
        """In how many seconds the snapshot that is fetched or loaded will be our state, about; None if there
        is none, or nothing came lately.
        """
        if self.fetching == NO_STATE:
            return None
        fetched_s = self._arrival.eta_s(self._left, now) if self._left else 0.0
        return None if fetched_s is None else fetched_s + self._to_load / LOAD_BYTES_S

    # -- what to do ------------------------------------------------------------------------------

    def poll(self, view: RunView, swarm: Swarm, now: float, patient: bool = False) -> list[Effect]:
        """The next step towards the head: fetch, load or apply. ``patient``: the last round's parts may be on
        their way to us, so they are not fetched yet.
        """
        if view.genesis is None or self.round >= view.round:
            return []
        peers = self._in_turn([p for p in swarm.alive(now) if p.peer != self._peer])
        if self._busy:
            return self._fetch_ahead(view, peers, now, patient)
        if patient and self.round == view.round - 1:
            lacking = sum(info.digest not in self.have for info in view.commits[view.round].parts)
            if lacking:
                self.reason = f"waiting for {lacking} parts of round {view.round}"
                return []
        commit = view.commits.get(self.round + 1) if self.round != NO_STATE else None
        needs = self._lacking(commit, peers) if commit is not None else []
        if commit is not None and all(need.sources for need in needs):
            return self._replay(commit, needs, now) + self._fetch_ahead(view, peers, now, patient)
        snapshot = self._choose(view, peers)
        if snapshot is not None:
            return self._load(snapshot, peers, now) + self._fetch_ahead(view, peers, now, patient)
        if commit is None:
            self.reason = "waiting for a peer that holds a snapshot of the run"
            return []
        lost = sum(not need.sources for need in needs)
        self.reason = f"waiting for a peer that holds the {lost} parts of round {commit.round} missing here"
        return self._fetch(needs, now)

    def _fetch_ahead(self, view: RunView, peers: list[Progress], now: float, patient: bool) -> list[Effect]:
        """Results of the rounds after the one, or the snapshot, that is fetched or applied at the moment."""
        base = max(self.round, self.fetching)
        last = min(base + AHEAD, view.round - patient)
        commits = [view.commits[r] for r in range(base + 1, last + 1) if r in view.commits]
        needs = [need for commit in commits for need in self._lacking(commit, peers)]
        return self._fetch([need for need in needs if need.sources], now)

    def _in_turn(self, peers: list[Progress]) -> list[Progress]:
        """Beginning with another one at each peer: else all would ask the same first."""
        turn = int(self._peer[:8], 16) % len(peers) if peers else 0
        return peers[turn:] + peers[:turn]

    def _lacking(self, commit: Commit, peers: list[Progress]) -> list[Need]:
        lacking = [info for info in commit.parts if info.digest not in self.have]
        if not lacking:
            return []
        holders = _holders({info.digest for info in lacking}, commit.round, peers)
        return [Need(info.digest, info.size, tuple(holders[info.digest])) for info in lacking]

    def _replay(self, commit: Commit, needs: list[Need], now: float) -> list[Effect]:
        if needs:
            self.reason = f"fetching {len(needs)} parts of round {commit.round}"
            return self._fetch(needs, now)
        self._busy = True
        self.reason = f"applying round {commit.round}"
        return [Apply(commit)]

    def _choose(self, view: RunView, peers: list[Progress]) -> Snapshot | None:
        """Of the recorded snapshots beyond our state that are here, or that somebody alive holds, the one
        that is the fewest bytes away from the head. One that is half here is seldom given up for a newer one.
        """
        held = {round_ for progress in peers for round_ in progress.snapshots}
        within = [
            snapshot
            for round_, snapshot in view.snapshots.items()
            if round_ > self.round
            and round_ not in self._spoilt
            and (round_ in held or not self._missing(chunks(snapshot.files)))
        ]
        return min(within, key=lambda s: (self._bytes_away(view, s), -s.round), default=None)

    def _bytes_away(self, view: RunView, snapshot: Snapshot) -> int:
        """Bytes to fetch of a snapshot, and of all rounds since."""
        since = [view.commits[r] for r in range(snapshot.round + 1, view.round + 1) if r in view.commits]
        parts = ((info.digest, info.size) for commit in since for info in commit.parts)
        return self._missing(chunks(snapshot.files)) + self._missing(parts)

    def _missing(self, content: Iterable[tuple[str, int]]) -> int:
        return sum(size for digest, size in content if digest not in self.have)

    def _load(self, snapshot: Snapshot, peers: list[Progress], now: float) -> list[Effect]:
        sources = tuple(p.peer for p in peers if snapshot.round in p.snapshots)
        needs = [
            Need(digest, size, sources) for digest, size in chunks(snapshot.files) if digest not in self.have
        ]
        if self.fetching != snapshot.round:
            self.fetching = snapshot.round
            self._arrival.began(now)
        self._left = sum(need.size for need in needs)
        self._to_load = sum(blob.size for blob in snapshot.files)
        if needs:
            self.reason = f"fetching {len(needs)} chunks of the snapshot of round {snapshot.round}"
            return self._fetch(needs, now)
        self._busy = True
        self.reason = f"loading the snapshot of round {snapshot.round}"
        return [LoadSnapshot(snapshot)]

    def _fetch(self, needs: list[Need], now: float) -> list[Effect]:
        effects: list[Effect] = []
        for need in needs:
            if len(self._flying) >= FLYING:
                break
            errand = self._errands.setdefault(need.digest, Errand())
            source = self._source(need, now)
            if need.digest in self._flying or source is None or not errand.due(now):
                continue
            self._flying[need.digest], self._sizes[need.digest] = source, need.size
            self._tries[need.digest] = self._tries.get(need.digest, 0) + 1
            effects.append(Fetch(need.digest, need.size, source))
        return effects

    def _source(self, need: Need, now: float) -> str | None:
        """The least busy source; after a failure the next one in turn. Those that failed lately come last."""
        busy = list(self._flying.values())
        sources = [s for s in need.sources if now >= self._doubted.get(s, 0.0)] or need.sources
        free = [s for s in sources if busy.count(s) < FLYING_PER_SOURCE]
        if not free:
            return None
        turn = self._tries.get(need.digest, 0)
        if turn:
            return free[turn % len(free)]
        return min(free, key=busy.count)


def chunks(files: tuple[Blob, ...]) -> Iterator[tuple[str, int]]:
    """Digest and size of every chunk of some files, in order."""
    for blob in files:
        yield from zip(blob.chunks, chunk_sizes(blob), strict=True)


def _holders(digests: set[str], round_: int, peers: list[Progress]) -> dict[str, list[str]]:
    """Peers that applied the round and keep its parts, or that say they hold this one, by content."""
    holders: dict[str, list[str]] = {digest: [] for digest in digests}
    for progress in peers:
        applied = progress.round >= round_ >= progress.parts_from
        said = digests if applied else digests.intersection(held.digest for held in progress.held)
        for digest in said:
            holders[digest].append(progress.peer)
    return holders
