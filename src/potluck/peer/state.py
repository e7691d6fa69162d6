"""What a peer has: its store, its vectors, and the contributions that came to it. Synchronous throughout.

The shell runs these in one worker thread, the simulator inline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from potluck.codecs import Codec, codec
from potluck.codecs.fp32 import Fp32
from potluck.errors import CorruptData, RecipeError, StoreError
from potluck.optim.outer import OuterOptimizer
from potluck.optim.state import state_digest
from potluck.peer.dataplane import DataPlane, Given
from potluck.peer.layout import Carry, Layout, Stretch, Vector
from potluck.peer.residuals import Returning
from potluck.peer.spare import Spare
from potluck.recipe import Recipe
from potluck.reduce.mean import Values
from potluck.store.blobs import read_blob, write_blob
from potluck.store.contents import Contents
from potluck.store.residuals import Owed
from potluck.store.snapshots import load_snapshot, snapshot_files
from potluck.wire.records import Blob, Commit, Genesis, PartInfo, Snapshot, TensorSpec
from potluck.wire.result import Tally, describe, pack, unpack

PART_VALUES = 1 << 22
"""No part is larger: what a reducer handles at a time stays bounded, however large the model."""


class Missing(Exception):
    """Content that a step needs is not in the store, or was damaged there."""

    def __init__(self, digests: Iterable[str]) -> None:
        self.digests = tuple(digests)
        super().__init__(f"{len(self.digests)} pieces of content are missing")


class Contribution(NamedTuple):
    """A member's encoded part, with the tokens and the leased data blocks behind it."""

    weight: float
    raw: bytes
    blocks: int = 0


class Partial(NamedTuple):
    """The mean of what some members of a group gave for a part, in fp32; as in ``PartInfo`` who is in it."""

    contributors: tuple[tuple[int, float], ...]
    raw: bytes
    blocks: tuple[tuple[int, int], ...] = ()


class Copy(NamedTuple):
    """The state after a round: its digest, and vectors of its own."""

    round: int
    state: str
    theta: Vector
    momentum: Vector


class Prepared(NamedTuple):
    """A result that is decoded already."""

    name: str
    tally: Tally
    values: Values


class PeerState:
    """Store and vectors of one peer in one run."""

    def __init__(self, store: Contents, recipe: Recipe, genesis: Genesis) -> None:
        self.store = store
        self.tensors = genesis.tensors
        self._rounds = recipe.rounds
        self.layout = Layout(self.size, genesis.parts, recipe.rounds.fragments)
        self._codec = codec(recipe.rounds.codec)
        self._outer = OuterOptimizer(recipe.outer)
        self._inbox: dict[tuple[int, int, int, int], Contribution] = {}
        self._partials: dict[tuple[int, int, int, int], Partial] = {}
        self._spare = Spare()
        self._prepared: dict[int, Prepared] = {}
        self._weight, self._blocks = 0.0, 0
        self._member: tuple[int, int, int] | None = None
        self.plane: DataPlane | None = None
        self.returning = Returning(None, self.layout, _nothing)
        """What an earlier life left."""

    @property
    def size(self) -> int:
        """Trained values in all."""
        return sum(int(np.prod(spec.shape, dtype=np.int64)) for spec in self.tensors)

    @property
    def fragments(self) -> int:
        """Fragments that rounds exchange in turn."""
        return self.layout.fragments

    def stretches(self, round_: int) -> tuple[Stretch, ...]:
        """What a round exchanges of the parameters."""
        return self.layout.stretches(round_)

    # -- the round in flight ---------------------------------------------------------------------

    def cut(
        self, round_: int, attempt: int, index: int, local: Vector, weight: float, blocks: int = 0
    ) -> bool:
        """Encode the local progress; False if it is not finite (nothing is kept then)."""
        assert self.plane is not None, "only a peer with a state is a member"
        if not self.plane.cut(round_, attempt, local):
            return False
        self._member, self._weight, self._blocks = (round_, attempt, index), weight, blocks
        return True

    def contribution(self, round_: int, attempt: int, part: int) -> Contribution | None:
        """Our contribution of a part, while it is kept; None if no work is behind it."""
        raw = self.plane.contribution(round_, attempt, part) if self.plane else None
        return Contribution(self._weight, raw, self._blocks) if raw is not None and self._weight > 0 else None

    def abandon(self) -> Vector:
        """What was trained here since the last commit counts for nothing; returns the shared parameters."""
        assert self.plane is not None, "there is a state to go back to"
        return self.plane.abandon()

    def shared(self) -> Vector:
        """The shared parameters [n], a copy."""
        assert self.plane is not None, "there is a state to go back to"
        return self.plane.theta.copy()

    def standing(self) -> tuple[int, str, Vector]:
        """The round of the state, its digest, and the shared parameters [n], a copy."""
        assert self.plane is not None, "there is a state to measure"
        return self.plane.round, self.plane.digest, self.plane.theta.copy()

    def contribution_sizes(self, round_: int, part: int) -> range | None:
        """How many bytes an encoded part may have in a round; None if there is no such part."""
        return self._sizes(round_, part, self._codec)

    def partial_sizes(self, round_: int, part: int) -> range | None:
        """How many bytes a partial's values may have; None if there is no such part."""
        return self._sizes(round_, part, Fp32())

    def _sizes(self, round_: int, part: int, coder: Codec) -> range | None:
        return coder.sizes(self.layout.size(round_, part)) if part < self.layout.parts else None

    @property
    def round_bytes(self) -> int:
        """Bytes of one whole contribution, at most."""
        layout, coder = self.layout, self._codec
        return max(
            sum(coder.sizes(layout.size(round_, part))[-1] for part in range(layout.parts))
            for round_ in range(layout.fragments)
        )

    def take(self, round_: int, attempt: int, part: int, index: int, given: Contribution) -> None:
        """Keep another member's contribution until its part is reduced."""
        self._inbox[round_, attempt, part, index] = given

    def take_partial(self, round_: int, attempt: int, part: int, partial: Partial) -> None:
        """Keep what was combined, here or elsewhere, until its part is reduced."""
        lead, _ = partial.contributors[0]
        inside = {index for index, _ in partial.contributors}
        blocks = tuple((index, count) for index, count in partial.blocks if index in inside)
        self._partials[round_, attempt, part, lead] = partial._replace(blocks=blocks)

    def partial(self, round_: int, attempt: int, part: int, lead: int) -> Partial | None:
        """What was combined, by its first contributor, while it is kept."""
        return self._partials.get((round_, attempt, part, lead))

    def combine(
        self, round_: int, attempt: int, part: int, contributors: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Combine and keep what these members gave; returns who is in it, and the members refused."""
        assert self.plane is not None, "only a peer with a state is a member"
        given, blocks = self._given(round_, attempt, part, contributors, ())
        mean = self.plane.combine(round_, part, given)
        if mean.contributors:
            counts = tuple((i, blocks[i]) for i, _ in mean.contributors if i in blocks)
            self.take_partial(round_, attempt, part, Partial(mean.contributors, mean.raw, counts))
        return tuple(i for i, _ in mean.contributors), mean.refused

    def reduce(
        self, round_: int, attempt: int, part: int, contributors: Sequence[int], partials: Sequence[int] = ()
    ) -> tuple[PartInfo | None, tuple[int, ...]]:
        """As ``reduced``, and store the result.

        Raises:
            StoreError: the disk refuses.
        """
        info, raw, refused = self.reduced(round_, attempt, part, contributors, partials)
        if info is not None:
            self.store.put(raw, info.digest)
        return info, refused

    def reduced(
        self, round_: int, attempt: int, part: int, contributors: Sequence[int], partials: Sequence[int] = ()
    ) -> tuple[PartInfo | None, bytes, tuple[int, ...]]:
        """Reduce a part over what these members gave and the partials with these leads; returns the result,
        its content, and the members refused.

        Contributions are kept until the round is decided, so a reduction that fails can be repeated.
        """
        assert self.plane is not None, "only a peer with a state is a member"
        given, blocks = self._given(round_, attempt, part, contributors, partials)
        mean = self.plane.reduce(round_, part, given)
        if not mean.contributors:
            return None, b"", mean.refused
        counts = tuple((i, blocks[i]) for i, _ in mean.contributors if i in blocks)
        raw = pack(Tally(round_, attempt, part, mean.contributors, counts), mean.raw)
        _, info = describe(raw)
        self.plane.reduced_to(round_, info)
        return info, raw, mean.refused

    def _given(
        self, round_: int, attempt: int, part: int, contributors: Sequence[int], partials: Sequence[int]
    ) -> tuple[list[Given], dict[int, int]]:
        """What there is of these members and partials, and the data blocks behind it by member."""
        given, blocks = [], {}
        for index in contributors:
            found = self._inbox.get((round_, attempt, part, index))
            if found is None and self._member == (round_, attempt, index):
                found = self.contribution(round_, attempt, part)
            if found is not None:
                given.append(Given(((index, found.weight),), found.raw))
                blocks[index] = found.blocks
        for lead in partials:
            combined = self._partials.get((round_, attempt, part, lead))
            if combined is not None:
                given.append(Given(combined.contributors, combined.raw, partial=True))
                blocks.update(combined.blocks)
        return given, {index: count for index, count in blocks.items() if count}

    def weigh(self, round_: int, attempt: int, part: int) -> None:
        """Do now, while others are waited for, what our contribution's part needs when it counts."""
        if self.plane is not None:
            self.plane.weigh(round_, attempt, part)

    def prepare(self, name: str, raw: bytes) -> None:
        """Decode a result of the next round before it is known whether that one counts: of each part the last
        one, so that they take as much memory as the round's values.
        """
        try:
            tally, values = unpack(raw)
        except CorruptData:
            return
        if self.plane is None or tally.round != self.plane.round + 1 or tally.part >= self.layout.parts:
            return
        if tally.part not in self._prepared or self._prepared[tally.part].name != name:
            decoded = self.plane.decoded(tally.round, tally.part, values)
            self._prepared[tally.part] = Prepared(name, tally, decoded)

    def _decided(self, round_: int) -> None:
        """Contributions and results up to this round are not needed any more."""
        self._prepared.clear()
        for kept in (self._inbox, self._partials):
            for key in [key for key in list(kept) if key[0] <= round_]:
                kept.pop(key, None)

    # -- the state -------------------------------------------------------------------------------

    def apply(self, commit: Commit) -> Carry:
        """Take the outer step of a committed round.

        Raises:
            Missing: some of its parts are not here.
        """
        assert self.plane is not None, "commits are applied to a state"
        values: list[bytes | memoryview | Values] = []
        lacking: list[str] = []
        for info in commit.parts:
            prepared = self._prepared.get(info.part)
            if prepared is not None and prepared.name == info.digest:
                values.append(prepared.values if _said(prepared.tally, commit, info) else b"")
            elif (raw := self.store.get(info.digest)) is None:
                lacking.append(info.digest)
            else:
                values.append(_values(raw, commit, info))
        if lacking:
            raise Missing(lacking)
        ours = self._member is not None and self._member[:2] == (commit.round, commit.attempt)
        index = self._member[2] if ours and self._member is not None else None
        self._decided(commit.round)
        return self.returning.meet(self.plane, self.plane.apply(commit, values, index), commit)

    def begin(self, theta: Vector, momentum: Vector, round_: int) -> Carry:
        """Take a state over as it is."""
        if self.plane is None:
            rounds = self._rounds
            mix = rounds.mix if rounds.overlap == "mix" else None
            self.plane = DataPlane(
                theta, momentum, round_, self.layout, self._codec, self._outer, rounds.keeps, mix
            )
            carry = Carry(theta.copy(), None)
        else:
            carry = self.plane.load(theta, momentum, round_)
        return self.returning.meet(self.plane, carry, None)

    def owed(self) -> Owed | None:
        """What this life leaves behind, in the plane's own memory; None if it has no state, or not yet taken
        up or dropped what an earlier one left.
        """
        if self.plane is None or self.returning.waiting:
            return None
        owed = self.plane.owed()
        return replace(owed, flying=self._member if owed.counted else None)

    @property
    def sent(self) -> float:
        """The norm of our last contribution, as it was sent."""
        return self.plane.sent if self.plane is not None else 0.0

    def afresh(self, carry: Carry) -> Carry:
        """The same new state, for a model that does not train yet."""
        assert self.plane is not None, "a state was taken over"
        return self.plane.afresh(carry)

    def load(self, snapshot: Snapshot) -> Carry:
        """Take a snapshot's state over.

        Raises:
            Missing: some of its chunks are not here.
            CorruptData: it is not the state it says it is.
            StoreError: the disk refuses.
        """
        files: dict[str, bytearray] = {}
        for blob in snapshot.files:
            lacking = [d for d in blob.chunks if not self.store.has(d)]
            if lacking:
                raise Missing(lacking)
            try:
                files[blob.name] = read_blob(self.store, blob)
            except StoreError as error:
                damaged = [d for d in blob.chunks if not self.store.has(d)]
                if not damaged:
                    raise
                raise Missing(damaged) from error
        theta, momentum = load_snapshot(self.tensors, files)
        found = state_digest(snapshot.round, theta, momentum)
        if found != snapshot.state:
            raise CorruptData(
                f"the snapshot of round {snapshot.round} has state {found[:12]}, its record says "
                f"{snapshot.state[:12]}: its writers and the ledger disagree; report this run"
            )
        self._decided(snapshot.round)
        return self.begin(theta, momentum, snapshot.round)

    def copy(self) -> Copy:
        """The state as it is, to be written while it goes on."""
        assert self.plane is not None, "there is a state to write"
        copies = [self._spare.take(self.size) for _ in range(2)]
        for copy, vector in zip(copies, (self.plane.theta, self.plane.momentum), strict=True):
            np.copyto(copy, vector)
        return Copy(self.plane.round, self.plane.digest, *copies)

    def write(self, copy: Copy) -> Snapshot:
        """Write a state into the store, in chunks. Touches no vectors: any thread may call.

        Raises:
            StoreError: the disk refuses.
        """
        files = snapshot_files(self.tensors, copy.theta, copy.momentum)
        return Snapshot(copy.round, copy.state, _written(self.store, files), "")

    def write_snapshot(self) -> Snapshot:
        """Write the state as it is; as ``write``."""
        return self.write(self.copy())


def _nothing() -> None:
    """Nothing is there to be removed."""


def _values(raw: bytes, commit: Commit, info: PartInfo) -> bytes | memoryview:
    """The encoded values of a committed result; nothing, if it is none or not what the commit says it is."""
    try:
        tally, values = unpack(raw)
    except CorruptData:
        return b""
    return values if _said(tally, commit, info) else b""


def _said(tally: Tally, commit: Commit, info: PartInfo) -> bool:
    """Whether a result is what a commit says it is."""
    said = (tally.round, tally.attempt, tally.part, tally.contributors)
    return said == (commit.round, commit.attempt, info.part, info.contributors)


def first_snapshot(store: Contents, genesis: Genesis, theta: Vector) -> Snapshot:
    """The state that a run begins with, written by its founder; parameters ``theta`` [n]."""
    blobs = _written(store, snapshot_files(genesis.tensors, theta, np.zeros_like(theta)))
    return Snapshot(0, genesis.state, blobs, "the founder wrote the run's first state")


def _written(store: Contents, files: Mapping[str, bytes]) -> tuple[Blob, ...]:
    return tuple(write_blob(store, name, raw) for name, raw in sorted(files.items()))


def genesis_of(
    run: str, recipe: Recipe, tensors: Sequence[TensorSpec], theta: Vector, wire: int, blocks: int = 0
) -> Genesis:
    """The first record of a run that starts from parameters ``theta`` [n]; momentum is zero.

    ``blocks`` is how many blocks its data has, if it is leased.

    Raises:
        RecipeError: there are more fragments than values.
    """
    fragments = recipe.rounds.fragments
    if fragments > max(1, theta.size):
        raise RecipeError(
            f"rounds.fragments = {fragments} is more than the model's {theta.size} trained values"
        )
    least = -(-theta.size // (PART_VALUES * fragments))
    parts = max(1, min(max(recipe.rounds.parts, least), theta.size // fragments))
    state = state_digest(0, theta, np.zeros_like(theta))
    return Genesis(
        run,
        wire,
        recipe.to_toml(),
        tuple(tensors),
        parts,
        state,
        blocks=blocks,
        epochs=recipe.end.epochs if blocks else 0,
    )
