"""Messages between peers: what is announced to all, and what is asked of one."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from potluck.wire.codec import WIRE
from potluck.wire.records import Count, Digest, Member, PartInfo, PeerId, Reason

Phase = Literal["joining", "training", "following", "leaving"]


class Progress(Struct, frozen=True, kw_only=True):
    """What a peer says of itself, about once a second and at every change: presence and progress in one.

    ``round`` is the last round applied and ``state`` its digest; ``tokens`` and ``steps`` count work that is
    in no round yet; ``held`` lists the results it has of the open round's attempt; ``snapshots`` maps
    rounds to digests of the manifests it holds; ``parts_from`` is the first round whose parts it still keeps.
    """

    wire: int = WIRE
    peer: PeerId
    session: Annotated[str, Meta(max_length=32)]
    since: Count = 0
    name: Annotated[str, Meta(max_length=100)] = ""
    version: Annotated[str, Meta(max_length=40)] = ""
    machine: Annotated[str, Meta(max_length=64)] = ""
    addresses: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    phase: Phase = "joining"
    round: int = -1
    state: str = ""
    tokens: float = 0.0
    steps: int = 0
    tokens_per_s: float = 0.0
    step_s: float = 0.0
    loss: float | None = None
    attempt: int = 0
    held: Annotated[tuple[PartInfo, ...], Meta(max_length=65_536)] = ()
    snapshots: Annotated[dict[int, Digest], Meta(max_length=64)] = {}
    parts_from: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    activity: Reason = ""

    @property
    def member(self) -> Member:
        """This life of this peer."""
        return Member(self.peer, self.session)


class Hello(Struct, frozen=True, tag=True):
    """First message on every stream between peers."""

    wire: int
    run: Annotated[str, Meta(max_length=64)]
    session: Annotated[str, Meta(max_length=32)]


class PushContribution(Struct, frozen=True, tag=True):
    """A member's encoded pseudo-gradient of one part; ``size`` bytes follow."""

    round: Count
    attempt: Count
    part: Count
    weight: float
    size: Count


class PushResult(Struct, frozen=True, tag=True):
    """A reducer's result of one part; ``info.size`` bytes follow."""

    round: Count
    attempt: Count
    info: PartInfo


class Fetch(Struct, frozen=True, tag=True):
    """Asks for content by digest."""

    digest: Digest


class Answer(Struct, frozen=True, tag=True):
    """Yes, or no with a reason. ``retry``: not now, but soon. ``size`` bytes follow an answered ``Fetch``."""

    ok: bool
    reason: Reason = ""
    retry: bool = False
    size: Count = 0


Request = Hello | PushContribution | PushResult | Fetch
