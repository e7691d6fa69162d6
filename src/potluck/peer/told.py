"""What the ranks of one peer say to each other: pure, no I/O.

A peer may be several processes, its *ranks*, that train one model together over ``torch.distributed``. Rank 0
speaks for the peer: it alone has the network, the hub and the disk. At each boundary all ranks call the roll,
a few numbers from each; where there is something to do rank 0 tells what, and all do it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import msgspec
import numpy as np

from potluck import errors
from potluck.errors import EnvironmentProblem, PotluckError, UsageError
from potluck.peer.handover import CutRequest
from potluck.peer.layout import Carry, Stretch
from potluck.wire.codec import decode, encode

MAX_BYTES = 1 << 20
"""What is told at a time takes no more, in bytes."""

ALIKE = 1e-9
"""Two ranks' sums of the same values differ by less, of their size: each may add in an order of its own."""


class Doing(IntEnum):
    """What a rank is at when it calls the roll."""

    JOIN = 1
    STEP = 2
    BLOCK = 3
    CUT = 4
    LEAVE = 5

    @property
    def words(self) -> str:
        """What it does, as others are told."""
        return _WORDS[self]


_WORDS = {
    Doing.JOIN: "joins the run",
    Doing.STEP: "ends a step",
    Doing.BLOCK: "asks for data",
    Doing.CUT: "gives its progress",
    Doing.LEAVE: "leaves the run",
}


class Call(NamedTuple):
    """What one rank says when the roll is called. Numbers only: they travel as float64, and are exact."""

    doing: float
    tokens: float = 0.0
    loss: float = math.nan
    """nan: it saw none."""
    sign: float = 0.0
    """JOIN: of the model's tensors; CUT: of the values that each rank has whole."""
    machine: float = 0.0
    """JOIN: of the machine."""
    news: float = 0.0
    """Rank 0: whether it has something to tell."""
    position: float = -1.0
    """Rank 0, BLOCK: the block of data that comes next; -1 while there is none."""
    threads: float = 0.0
    """Rank 0: threads for this peer on its machine."""
    round: float = 0.0
    """Rank 0: the last round applied here."""
    done: float = 0.0
    """Rank 0: the share of the run that is done."""
    run_tokens: float = 0.0
    """Rank 0: the run's tokens."""


def agree(calls: Sequence[Call]) -> Call:
    """What all say together: rank 0's numbers, the sum of the tokens, the mean of the losses.

    Raises:
        UsageError: one rank does something else than rank 0, or has another model.
    """
    first = calls[0]
    for rank, call in enumerate(calls):
        if call.doing != first.doing:
            raise UsageError(
                f"rank {rank} of this peer {_words(call)} while rank 0 {_words(first)}: all ranks must take "
                "the same steps, and leave the loop after the same one"
            )
        if call.doing == Doing.JOIN and call.sign != first.sign:
            raise UsageError(
                f"rank {rank} of this peer has another model than rank 0: all ranks must train the same "
                "tensors, spread over all of them or whole on each (no pipeline, no subgroups)"
            )
        if call.doing == Doing.CUT and not _alike(call.sign, first.sign):
            raise UsageError(
                f"rank {rank} of this peer has other parameters than rank 0: nothing keeps them in step. "
                "Wrap the model in DistributedDataParallel or fully_shard; or, for ranks that are to be "
                "peers of their own, join before torch.distributed is initialised"
            )
    losses = [call.loss for call in calls if not math.isnan(call.loss)]
    return first._replace(
        tokens=sum(call.tokens for call in calls),
        loss=sum(losses) / len(losses) if losses else math.nan,
    )


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=ALIKE) or (math.isnan(one) and math.isnan(other))


def _words(call: Call) -> str:
    return Doing(int(call.doing)).words


# -- what rank 0 tells -------------------------------------------------------------------------------

Bounds = tuple[int, int, float]
"""A stretch: from, to, share."""


class Move(msgspec.Struct, frozen=True):
    """A new shared state to carry the model over to, without its values; see ``Carry``."""

    loaded: bool
    stretches: tuple[Bounds, ...] | None


class Deal(msgspec.Struct, frozen=True, tag=True):
    """What to do at this boundary: carry over to new shared states, oldest first; then give the stretches
    that a round asks for, if it does.
    """

    moves: tuple[Move, ...] = ()
    cut: bool = False
    stretches: tuple[Bounds, ...] | None = None


class Wait(msgspec.Struct, frozen=True, tag=True):
    """Rank 0 waits for others; nothing to do yet."""


class Read(msgspec.Struct, frozen=True, tag=True):
    """Gather the parameters to rank 0."""


class Write(msgspec.Struct, frozen=True, tag=True):
    """Take the parameters from rank 0."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """What was begun is done: this peer has joined, or has left, the run."""

    invite: str = ""
    recipe: str = ""
    blocks: int = 0
    round: int = 0
    share: float = 0.0
    tokens: float = 0.0


class Over(msgspec.Struct, frozen=True, tag=True):
    """The run has reached its end, and why."""

    reason: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Rank 0 failed: an error of this kind, in words."""

    kind: str
    text: str


Told = Deal | Wait | Read | Write | Done | Over | Failed


def pack(told: Told) -> bytes:
    """As bytes."""
    return encode(told)


def unpack(raw: bytes) -> Told:
    """From bytes.

    Raises:
        ProtocolError: they are something else.
    """
    told: Told = decode(raw, Told, MAX_BYTES)
    return told


def deal(carries: Sequence[Carry], request: CutRequest | None) -> Deal:
    """What the handover has for the trainer, without its values."""
    moves = tuple(Move(carry.origin is None, _bounds(carry.stretches)) for carry in carries)
    if request is None:
        return Deal(moves)
    return Deal(moves, cut=True, stretches=_bounds(request.stretches))


def undeal(told: Deal) -> tuple[list[Carry], CutRequest | None]:
    """The same on another rank: its vectors are empty."""
    none = np.empty(0, np.float32)
    carries = [
        Carry(none, None if move.loaded else none, stretches=_stretches(move.stretches))
        for move in told.moves
    ]
    return carries, CutRequest(0, 0, 0, _stretches(told.stretches)) if told.cut else None


def failed(error: BaseException) -> Failed:
    """An error of rank 0's, to be told."""
    return Failed(type(error).__name__, str(error)[: MAX_BYTES // 8])


def error_of(told: Failed) -> PotluckError:
    """The error that it was, on another rank."""
    kind = getattr(errors, told.kind, None)
    if isinstance(kind, type) and issubclass(kind, PotluckError):
        return kind(told.text)
    return EnvironmentProblem(f"rank 0 of this peer failed, and with it the peer: {told.kind}: {told.text}")


def _bounds(stretches: Sequence[Stretch] | None) -> tuple[Bounds, ...] | None:
    if stretches is None:
        return None
    return tuple((bounds.start, bounds.stop, share) for bounds, share in stretches)


def _stretches(bounds: Sequence[Bounds] | None) -> tuple[Stretch, ...] | None:
    if bounds is None:
        return None
    return tuple(Stretch(slice(start, stop), share) for start, stop, share in bounds)
