"""What the simulated world knows and no peer is told; it holds what peers claim against it.

Nothing here asks the protocol whether it is right. Contributions are noted where they are cut and compared
with what was committed, progress where it is made, content where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from potluck.codecs import codec
from potluck.peer.layout import Vector, part_bounds
from potluck.protocol.leases import Span
from potluck.protocol.view import RunView, contributors
from potluck.recipe import Rounds
from potluck.testing.residuals import Residuals
from potluck.wire.records import Commit, Evaluation, Member, PartInfo
from potluck.wire.result import unpack

Exact = NDArray[np.float64]

DRIFT = 1e-3
"""How far fp32 arithmetic may take a model from the sum of its steps within one simulation."""


OWED = {"fp32": 0.0, "bf16": 1.01 / 128, "int8": 1.01 / 127, "int4": 1.01 / 7, "topk": 2.02}
"""How far a result may be from the mean for what its reducer owed before and owes now, in parts of the
largest value: half a step each, and for what topk does not send all of it each."""


class InvariantBroken(AssertionError):
    """The system did what it must never do: ``broke`` says which invariant, without names and figures."""

    broke: str = ""
    at_s: float = 0.0


@dataclass
class Trained:
    """One life's own account: its progress by value [n], and in tokens.

    ``mixing`` are the ranges of its model that are to mix with each new shared state that it is to take up.
    """

    pending: Exact
    cuts: dict[tuple[int, int], Exact]
    mixing: list[list[slice]] = field(default_factory=list)
    tokens: float = 0.0
    included: float = 0.0
    lost: float = 0.0


@dataclass(frozen=True)
class Given:
    """What a member sent for one attempt of one round: its weight, the encoded parts, and the positions of
    the data that it trained on for it.
    """

    weight: float
    encoded: tuple[bytes, ...]
    data: tuple[int, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A commit, its members, when the first peer followed it, and what its results decode to.

    ``left_out`` are members that gave something of which a part does not have it.
    """

    at: float
    commit: Commit
    members: tuple[Member, ...]
    decoded: list[Exact]
    left_out: tuple[Member, ...]


class Referee:
    """Checks the invariants of one simulation; every method may raise ``InvariantBroken``.

    Args:
        n, parts, codec_name: the vectors, and how they are cut and encoded.
        fail: raises, with what is needed to see the failure again.
    """

    def __init__(self, n: int, rounds: Rounds, fail: Callable[[str], None]) -> None:
        self.commits: dict[int, Seen] = {}
        self.lives: dict[Member, Trained] = {}
        self._n, self._fail = n, fail
        everywhere = part_bounds(n, rounds.parts * rounds.fragments)
        self._fragments = [everywhere[first :: rounds.fragments] for first in range(rounds.fragments)]
        self._mixes, self._mix = rounds.overlap == "mix", rounds.mix
        self._codec = codec(rounds.codec)
        self._states: dict[int, str] = {}
        self._given: dict[tuple[int, int], dict[Member, Given]] = {}
        self._largest = np.zeros((rounds.fragments, rounds.parts))
        self.data: set[int] = set()
        """Positions of the data that are in the model."""
        self.excused: set[str] = set()
        self.residuals = Residuals(n, self._fragments, self._codec, rounds.keeps)

    # -- progress --------------------------------------------------------------------------------

    def begins(self, member: Member) -> None:
        """A life takes a shared state over as it is; what it had not given yet is lost."""
        life = self.lives.setdefault(member, Trained(np.zeros(self._n), {}))
        life.lost += life.tokens - life.included - life.lost
        life.pending, life.cuts, life.mixing = np.zeros(self._n), {}, []
        self.residuals.begins(member)

    def steps(self, member: Member, change: Exact, tokens: float) -> None:
        """An inner step changed the model by ``change`` [n]."""
        life = self.lives[member]
        life.pending += change
        life.tokens += tokens

    def takes(self, member: Member, before: Vector, shared: Vector) -> None:
        """The model takes up the shared state [n] after a round that was applied."""
        life = self.lives[member]
        for bounds in life.mixing.pop(0):
            model = before[bounds].astype(np.float64) + life.pending[bounds]
            life.pending[bounds] = self._mix * (model - shared[bounds])

    def boundary(self, member: Member, name: str, local: Vector, shared: Vector) -> None:
        """Between two steps: the model is the shared state and all progress that is not in it, once."""
        own = self.lives[member].pending - self.residuals.kept(member)
        off = self.residuals.known(member, np.abs(local.astype(np.float64) - shared - own))
        if off > DRIFT:
            self._fail(f"{name} is off by {off:.4f} from its shared state and its own progress")

    def cut(self, member: Member, key: tuple[int, int], given: Given) -> None:
        """A member's contribution to (round, attempt) is encoded."""
        life = self.lives[member]
        life.cuts[key] = life.pending.copy()
        self._given.setdefault(key, {})[member] = given
        off = self.residuals.cut(member, key, -life.pending, self._decoded(key[0], given.encoded))
        if off > 0:
            self._fail(
                f"a member gives other than its progress and residual in round {key[0]}: off by {off:.6f}"
            )

    def took_up(self, member: Member, last: Member, round_: int) -> None:
        """A life took up what the ``last`` one of its peer, which left after a round, had not sent."""
        for later in sorted(r for r in self.commits if r > round_):
            seen = self.commits[later]
            place = seen.members.index(last) if last in seen.members else None
            self.residuals.applied(last, seen.commit, place, seen.decoded)
        self.residuals.took_up(member, last)

    def reduced(
        self, member: Member, key: tuple[int, int], members: tuple[Member, ...], info: PartInfo, raw: bytes
    ) -> None:
        """A member reduced a part, as ``info`` says, to these bytes."""
        given, size = self._given.get(key, {}), self._size(key[0], info.part)
        pairs = [(given.get(members[index]), weight) for index, weight in info.contributors]
        if any(one is None for one, _ in pairs):
            self.residuals.unsure(member, key[0], info.part)  # if it is committed so, that is checked there
            return
        total = np.zeros(size)
        for one, weight in pairs:
            assert one is not None
            total += weight * self._codec.decode(one.encoded[info.part], size)
        result = self._result(raw, key[0], info.part)
        off = self.residuals.reduced(member, key[0], info, total / info.weight, result)
        if off > 0:
            self._fail(f"a result is not the mean and the residual in round {key[0]}: off by {off:.6f}")

    def applied(self, member: Member, name: str, commit: Commit, state: str) -> None:
        """A peer took the outer step of a round (1); what of its own was in it is shared now."""
        self.state(name, commit.round, state)
        life, seen = self.lives.get(member), self.commits[commit.round]
        place = seen.members.index(member) if member in seen.members else None
        self.residuals.applied(member, commit, place, seen.decoded)
        key = (commit.round, commit.attempt)
        if life is None:
            return
        life.mixing.append([])
        if key not in life.cuts or member not in seen.members:
            return
        index, weights = seen.members.index(member), []
        for info, bounds in zip(commit.parts, self._bounds(commit.round), strict=True):
            if index in dict(info.contributors):
                if self._mixes:
                    life.mixing[-1].append(bounds)
                else:
                    life.pending[bounds] -= life.cuts[key][bounds]
                weights.append(dict(info.contributors)[index])
        life.included += max(weights, default=0.0)
        life.cuts = {later: cut for later, cut in life.cuts.items() if later > key}
        if life.included + life.lost > life.tokens * (1 + 1e-9):
            self._fail(f"{name} trained {life.tokens} tokens, and {life.included} of them are in")

    # -- rounds ----------------------------------------------------------------------------------

    def state(self, name: str, round_: int, state: str) -> None:
        """Invariant 1: peers that have the state after a round have the same."""
        if name in self.excused:
            return  # it counted wrong, and nothing could tell it so yet
        known = self._states.setdefault(round_, state)
        if known != state:
            self._fail(f"{name} has state {state[:8]} after round {round_}, others {known[:8]}")

    def committed(
        self,
        now: float,
        commit: Commit,
        members: tuple[Member, ...],
        raws: Sequence[bytes | None],
        data: Mapping[Member, Sequence[Span]],
    ) -> None:
        """A commit is in the ledger. These are its parts' bytes, wherever they lie, and the positions of the
        data that it says are in the model now, by member.
        """
        if commit.round in self.commits:
            return
        if commit.round != max(self.commits, default=0) + 1:
            self._fail(f"round {commit.round} is committed after round {max(self.commits, default=0)}")
        given = self._given.get((commit.round, commit.attempt), {})
        for index in sorted(contributors(commit.parts)):
            if members[index] in self.residuals.closed:
                self._fail(f"round {commit.round} has a contribution whose residual was taken up without it")
            self._trained(commit, members[index], given.get(members[index]), data.get(members[index], ()))
        everywhere = set.intersection(*(set(dict(info.contributors)) for info in commit.parts))
        left_out = tuple(m for index, m in enumerate(members) if m in given and index not in everywhere)
        decoded: list[Exact] = []
        self.commits[commit.round] = Seen(now, commit, members, decoded, left_out)
        for part, raw in enumerate(raws):
            if commit.parts[part].digest in self.residuals.closed_results:
                self._fail(f"round {commit.round} has a result whose residual was taken up without it")
            if raw is None:
                self._fail(f"round {commit.round} part {part} is committed, and nobody has it")
            else:
                decoded.append(self._result(raw, commit.round, part))
                self._reduced(commit, part, raw, [(m, given[m]) for m in members if m in given], members)
        weights = {index: weight for info in commit.parts for index, weight in info.contributors}
        if abs(commit.tokens - sum(weights.values())) > 1:
            self._fail(f"round {commit.round} says {commit.tokens} tokens, its contributors {weights}")
        self._given = {key: value for key, value in self._given.items() if key[0] > commit.round}

    def _trained(self, commit: Commit, member: Member, given: Given | None, spans: Sequence[Span]) -> None:
        """Invariant 2: what a contributor trained on is what the ledger says, and is in the model once."""
        said = [position for span in spans for position in range(*span)]
        if given is not None and said != list(given.data):
            self._fail(f"round {commit.round} has data {said} of {member.peer[:4]}, it gave {given.data}")
        twice = self.data.intersection(said)
        if twice:
            self._fail(f"round {commit.round} has data of {member.peer[:4]} a second time: {sorted(twice)}")
        self.data.update(said)

    def _reduced(
        self,
        commit: Commit,
        part: int,
        raw: bytes,
        given: list[tuple[Member, Given]],
        members: tuple[Member, ...],
    ) -> None:
        """Invariant 3: a part is the mean of what those it names gave, each counted once by its weight.

        What its reducer owed from earlier results comes on top.
        """
        said, gave = dict(commit.parts[part].contributors), dict(given)
        size, weight = self._size(commit.round, part), 0.0
        total = np.zeros(size)
        for index, claimed in sorted(said.items()):
            one = gave.get(members[index])
            if one is None or one.weight != claimed:
                self._fail(
                    f"round {commit.round} part {part} counts {members[index].peer[:4]} with {claimed}, it "
                    f"gave {one.weight if one else 'nothing'}"
                )
                return
            total += one.weight * self._codec.decode(one.encoded[part], size)
            weight += one.weight
        result = self._result(raw, commit.round, part)
        place = commit.round % len(self._fragments), part
        self._largest[place] = max(self._largest[place], float(np.abs(result).max()))
        slack = OWED[self._codec.name] * self._largest[place]
        off = float(np.abs(result - total / weight).max())
        if off > slack + 1e-5 * (1 + self._largest[place]):
            self._fail(
                f"round {commit.round} part {part} is off by {off:.5f} from the mean of its contributors"
            )

    def evaluated(self, body: Evaluation) -> None:
        """What the ledger says of how good a state is, is about the state that peers have."""
        known = self._states.get(body.round, body.state)
        if known != body.state:
            self._fail(f"round {body.round} is evaluated in state {body.state[:8]}, peers have {known[:8]}")

    def kept(self, view: RunView, held: set[str]) -> None:
        """Invariant 4: what a peer may still ask for is in some living peer's store."""
        for commit in view.commits.values():
            for info in commit.parts:
                if info.digest not in held:
                    self._fail(f"round {commit.round} part {info.part} was committed, and nobody has it")
        for snapshot in view.snapshots.values():
            if any(chunk not in held for blob in snapshot.files for chunk in blob.chunks):
                self._fail(f"the snapshot of round {snapshot.round} is recorded, and nobody has all of it")

    def _bounds(self, round_: int) -> list[slice]:
        """Ranges of a round's parts."""
        return self._fragments[round_ % len(self._fragments)]

    def _size(self, round_: int, part: int) -> int:
        bounds = self._bounds(round_)[part]
        return int(bounds.stop - bounds.start)

    def _result(self, raw: bytes, round_: int, part: int) -> Exact:
        return self._codec.decode(unpack(raw)[1], self._size(round_, part)).astype(np.float64)

    def _decoded(self, round_: int, encoded: Sequence[bytes]) -> list[Exact]:
        return [
            self._codec.decode(raw, self._size(round_, part)).astype(np.float64)
            for part, raw in enumerate(encoded)
        ]
