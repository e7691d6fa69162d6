"""Records of the ledger, and the hash chain that binds them.

The ledger is the run: genesis, then opens, reassignments, commits, snapshots and evaluations in one order.
A peer's state is a function of it and of the parts that it names.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from potluck.errors import CorruptData, ProtocolError
from potluck.wire.codec import decode, digest, encode

Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]
PeerId = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
Reason = Annotated[str, Meta(max_length=2000)]
MetricName = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9 _./@%()-]{0,63}\\Z")]

ZERO = "0" * 64
"""The hash before the first record."""


class Blob(Struct, frozen=True):
    """A file kept as fixed chunks, each named by its digest: chunk i holds bytes [i·chunk, (i+1)·chunk)."""

    name: Annotated[str, Meta(max_length=200)]
    size: Count
    chunk_bytes: Annotated[int, Meta(ge=1, le=1 << 26)]
    chunks: Annotated[tuple[Digest, ...], Meta(max_length=8192)]


def chunk_sizes(blob: Blob) -> list[int]:
    """Bytes in each chunk of a blob, for bounding its fetch.

    Raises:
        CorruptData: the blob's size and number of chunks contradict each other.
    """
    count = -(-blob.size // blob.chunk_bytes)
    if len(blob.chunks) != count:
        raise CorruptData(
            f"{blob.name!r} of {blob.size} bytes has {count} chunks of {blob.chunk_bytes}, not "
            f"{len(blob.chunks)}: whoever announced it made that up"
        )
    return [min(blob.chunk_bytes, blob.size - index * blob.chunk_bytes) for index in range(count)]


class TensorSpec(Struct, frozen=True):
    """One trained tensor: its name in the model and its shape."""

    name: Annotated[str, Meta(max_length=300)]
    shape: Annotated[tuple[Count, ...], Meta(max_length=8)]


class Member(Struct, frozen=True, order=True):
    """A peer in one of its lives: a process that restarts under the same key is another member."""

    peer: PeerId
    session: Annotated[str, Meta(max_length=32)]


class Held(Struct, frozen=True):
    """A result of one part that somebody has: its content by digest, and that content's bytes."""

    part: Count
    digest: Digest
    size: Count


class PartInfo(Struct, frozen=True):
    """The reduced result of one part: its bytes by digest, and who is in it with what weight (tokens).

    ``contributors`` holds indices into the round's members, ascending, with the weight of each, ``blocks``
    the number of leased data blocks behind each contribution that has any.
    """

    part: Count
    digest: Digest
    size: Count
    contributors: Annotated[tuple[tuple[Count, float], ...], Meta(max_length=20_000)]
    blocks: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=20_000)] = ()
    without: Annotated[tuple[Count, ...], Meta(max_length=20_000)] = ()
    """In a commit, instead of ``contributors``: all whose weights it has, without these."""

    @property
    def weight(self) -> float:
        """Sum of the contributors' weights."""
        return sum(weight for _, weight in self.contributors)

    @property
    def held(self) -> Held:
        """What is announced of it."""
        return Held(self.part, self.digest, self.size)


class Genesis(Struct, frozen=True, tag=True):
    """The first record: everything that defines the run, by value or by digest.

    The data has ``blocks`` blocks, gone through ``epochs`` times (0: for ever); with none it is not leased.
    ``base`` is the digest of what the model has besides its trained tensors, as ``base.safetensors`` holds it
    (``peer.frozen``); "" where nobody looked.
    """

    run: Annotated[str, Meta(max_length=64)]
    wire: int
    recipe: Annotated[str, Meta(max_length=100_000)]
    tensors: Annotated[tuple[TensorSpec, ...], Meta(max_length=20_000)]
    parts: Annotated[int, Meta(ge=1, le=65_536)]
    state: Digest
    assets: tuple[Blob, ...] = ()
    blocks: Count = 0
    epochs: Count = 0
    base: Annotated[str, Meta(pattern="^([0-9a-f]{64})?\\Z")] = ""


class Open(Struct, frozen=True, tag=True):
    """A round begins: ``reducers[p]`` is the index of the member that reduces part p.

    ``attempt`` is 0, or one more than that of the open round it replaces.
    ``base`` is the state digest that members start from; ``grace_s`` how long reducers wait.
    Member i is in group i mod ``groups`` (``protocol.plan``).
    """

    round: Count
    attempt: Count
    members: Annotated[tuple[Member, ...], Meta(min_length=1, max_length=20_000)]
    reducers: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=65_536)]
    base: Digest
    grace_s: float
    reason: Reason
    groups: Annotated[int, Meta(ge=1, le=20_000)] = 1


class Reassign(Struct, frozen=True, tag=True):
    """Parts of the open round get another reducer: pairs (part, index of the new reducer)."""

    round: Count
    attempt: Count
    moves: Annotated[tuple[tuple[Count, Count], ...], Meta(min_length=1, max_length=65_536)]
    reason: Reason


class Commit(Struct, frozen=True, tag=True):
    """A round is done: one result per part. ``tokens`` counts each contributor once.

    ``blocks`` says for each contributor how many of the blocks leased to it, the oldest first, are now in the
    model. ``weights`` are those of parts that name no contributors: a member's is the same in all parts.
    """

    round: Count
    attempt: Count
    parts: Annotated[tuple[PartInfo, ...], Meta(min_length=1, max_length=65_536)]
    tokens: Count
    loss: float | None
    reason: Reason
    blocks: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=20_000)] = ()
    weights: Annotated[tuple[tuple[Count, float], ...], Meta(max_length=20_000)] = ()

    def abridged(self) -> Commit:
        """The same in fewer bytes: each member with its weight once, and for each part who is not in it."""
        weights = {index: weight for info in self.parts for index, weight in info.contributors}
        everyone = tuple(sorted(weights.items()))

        def short(info: PartInfo) -> PartInfo:
            if any(weights[index] != weight for index, weight in info.contributors):
                return info
            there = {index for index, _ in info.contributors}
            without = tuple(index for index, _ in everyone if index not in there)
            return replace(info, contributors=(), without=without)

        return replace(self, parts=tuple(map(short, self.parts)), weights=everyone)

    def spelt_out(self) -> Commit:
        """The same with the contributors of each part."""

        def long(info: PartInfo) -> PartInfo:
            if info.contributors:
                return info
            there = self.weights
            if info.without:
                absent = set(info.without)
                there = tuple(pair for pair in self.weights if pair[0] not in absent)
            return replace(info, contributors=there, without=())

        return replace(self, parts=tuple(map(long, self.parts)), weights=())


class Grant(Struct, frozen=True, tag=True):
    """Data blocks change hands: those of ``released`` members are free again, then each of ``leased`` gets so
    many of the free ones, the oldest first. Which ones follows from the ledger alone.
    """

    released: Annotated[tuple[Member, ...], Meta(max_length=20_000)]
    leased: Annotated[tuple[tuple[Member, Count], ...], Meta(max_length=20_000)]
    reason: Reason


class Snapshot(Struct, frozen=True, tag=True):
    """State after a round, as files in chunks, agreed on by its writers."""

    round: Count
    state: Digest
    files: tuple[Blob, ...]
    reason: Reason


class Evaluation(Struct, frozen=True, tag=True):
    """How good the state after a round is, as one peer measured it.

    The first metric is what states are compared by: less of it is better, or more, if ``rises``.
    """

    round: Count
    state: Digest
    metrics: Annotated[tuple[tuple[MetricName, float], ...], Meta(min_length=1, max_length=64)]
    reason: Reason
    rises: bool = False

    @property
    def worth(self) -> float:
        """By this states are compared: more is better."""
        value = self.metrics[0][1]
        return value if self.rises else -value


class Finish(Struct, frozen=True, tag=True):
    """The run is over."""

    round: Count
    reason: Reason


class Move(Struct, frozen=True, tag=True):
    """The log goes on in another engine: the last record of the old one, and the same in the new.

    ``engine`` is the number of the new one. Hubs go by it only if the run's authority signed it for its
    place: ``sequence`` and the hash of the record before (see ``move_said``).
    """

    engine: Count
    signature: Annotated[bytes, Meta(max_length=64)]
    reason: Reason


class Unreadable(Struct, frozen=True, tag=True):
    """What stands in the ledger and is no record: garbage, or a later release's. Everybody skips it."""

    reason: Reason


Body = Genesis | Open | Reassign | Commit | Grant | Snapshot | Evaluation | Finish | Move | Unreadable


class Record(Struct, frozen=True):
    """One entry of the ledger: a body, its author, and the hash of the record before."""

    previous: Digest
    author: PeerId
    body: Body


class Entry(Struct, frozen=True):
    """A record at its place: sequence (from 1), its hash, and itself."""

    sequence: int
    hash: str
    record: Record


class Chain:
    """Follows a ledger from the start and checks each link."""

    def __init__(self) -> None:
        self.sequence = 0
        self.head = ZERO

    def follow(self, sequence: int, raw: bytes) -> Entry:
        """The record at ``sequence``, checked to be the next one; ``Unreadable`` if the bytes are none.

        Raises:
            CorruptData: a record is missing, repeated, or does not name the one before.
        """
        if sequence != self.sequence + 1:
            raise CorruptData(f"ledger record {sequence} came where {self.sequence + 1} was due")
        try:
            record: Record = decode(raw, Record)
        except ProtocolError as error:
            record = Record(self.head, ZERO, Unreadable(f"it can't be read: {error}"[:2000]))
        if record.previous != self.head:
            raise CorruptData(
                f"ledger record {sequence} names {record.previous[:12]} as the one before it, not "
                f"{self.head[:12]}: the hub's copy was altered; do not trust this hub"
            )
        self.sequence, self.head = sequence, digest(raw)
        return Entry(sequence, self.head, record)

    def next(self, author: str, body: Body) -> bytes:
        """Bytes of the record that would follow."""
        return encode(Record(self.head, author, body))


def canonical(value: object) -> bytes:
    """Deterministic bytes of any wire value, for digests."""
    return msgspec.msgpack.encode(value, order="deterministic")


def move_said(run: str, engine: int, sequence: int, previous: str) -> bytes:
    """What the run's authority signs in a ``Move`` at ``sequence``."""
    return canonical(("potluck move", run, engine, sequence, previous))


def manifest(snapshot: Snapshot) -> str:
    """Digest by which peers compare snapshots they wrote; the reason does not count."""
    return digest(canonical((snapshot.round, snapshot.state, snapshot.files)))
