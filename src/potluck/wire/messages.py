"""Messages between peers: what is announced to all, and what is asked of one."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from potluck.wire.codec import WIRE
from potluck.wire.records import Count, Digest, Held, Member, PeerId, Reason

MAX_WANTS = 1 << 20
"""More data blocks than anybody needs at a time."""

MAX_GROUP = 2000
"""More members than a group ever has."""

MAX_EVERY_S = 120.0
"""Nobody announces itself more seldom, in seconds."""

MAX_RATE = 1e12
MAX_RTT_S = 60.0
"""No link is faster, in bytes/s, or its round trip longer, in seconds; who says so is not heard."""

MOST = 1e18
"""Nothing else that is counted or measured is more."""

Rate = Annotated[float, Meta(ge=0, le=MAX_RATE)]
Amount = Annotated[float, Meta(ge=0, le=MOST)]
Phase = Literal["joining", "training", "following", "leaving", "gone"]


class Progress(Struct, frozen=True, kw_only=True):
    """What a peer says of itself, about once a second and at every change: presence and progress in one.

    ``beat`` counts them, so that one that comes late is dropped; of two sessions the later sorts higher.
    ``every_s`` is how long the next may be in coming, in seconds.
    ``since`` is the length of the ledger when the peer came. ``round`` is the last round applied, ``state``
    its digest. ``tokens`` and ``steps`` count work that is in no round yet; ``idle_s`` is how long ago the
    last step ended. ``uplink`` and ``downlink`` are what this peer's link was seen to carry, in bytes/s, and
    ``rtt_s`` is the round trip to others, in seconds: 0 while unknown. ``held`` lists the results held of
    ``attempt`` of the open round, ``snapshots`` the manifests held by round, ``parts_from`` the first round
    whose parts are still kept; ``fetching`` is the round of the snapshot that is being fetched, -1 if none
    is, and ``eta_s`` in how many seconds it will be the peer's state, if that can be told; ``abstains``: it
    had nothing to give to that attempt. ``leased`` counts the data blocks ever leased to this life, as far
    as it knows, ``wants`` how many more it could do with; ``waiting``: it has none left to train on.
    ``evaluates``: it can evaluate shared states; ``evaluating`` is the round of the one that it is at, -1 if
    none is.
    """

    wire: int = WIRE
    peer: PeerId
    session: Annotated[str, Meta(max_length=32)]
    beat: Count = 0
    every_s: Annotated[float, Meta(ge=1, le=MAX_EVERY_S)] = 1.0
    since: Count = 0
    name: Annotated[str, Meta(max_length=100)] = ""
    version: Annotated[str, Meta(max_length=40)] = ""
    machine: Annotated[str, Meta(max_length=64)] = ""
    addresses: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    phase: Phase = "joining"
    round: int = -1
    state: str = ""
    tokens: Amount = 0.0
    steps: Count = 0
    tokens_per_s: Amount = 0.0
    step_s: Amount = 0.0
    idle_s: Amount = 0.0
    uplink: Rate = 0.0
    downlink: Rate = 0.0
    rtt_s: Annotated[float, Meta(ge=0, le=MAX_RTT_S)] = 0.0
    loss: float | None = None
    leased: Count = 0
    wants: Annotated[int, Meta(ge=0, le=MAX_WANTS)] = 0
    waiting: bool = False
    evaluates: bool = False
    evaluating: int = -1
    attempt: int = 0
    abstains: bool = False
    held: Annotated[tuple[Held, ...], Meta(max_length=65_536)] = ()
    snapshots: Annotated[dict[int, Digest], Meta(max_length=64)] = {}
    parts_from: int = 0
    fetching: int = -1
    eta_s: Annotated[float, Meta(ge=0)] | None = None
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
    """A member's encoded pseudo-gradient of one part; ``size`` bytes follow.

    ``weight`` is in tokens; ``blocks`` counts the leased data blocks in it.
    """

    round: Count
    attempt: Count
    part: Count
    weight: float
    size: Count
    blocks: Count = 0


class PushPartial(Struct, frozen=True, tag=True):
    """The weighted mean of what some members of one group gave for one part; ``size`` bytes follow.

    ``contributors`` and ``blocks`` are as in ``PartInfo``; ``abstained`` members of the group give nothing.
    """

    round: Count
    attempt: Count
    part: Count
    contributors: Annotated[tuple[tuple[Count, float], ...], Meta(max_length=MAX_GROUP)]
    blocks: Annotated[tuple[tuple[Count, Count], ...], Meta(max_length=MAX_GROUP)]
    abstained: Annotated[tuple[Count, ...], Meta(max_length=MAX_GROUP)]
    size: Count


class PushResult(Struct, frozen=True, tag=True):
    """A result of one part; ``held.size`` bytes follow, in which is said who is in it (``wire.result``)."""

    round: Count
    attempt: Count
    held: Held


class Fetch(Struct, frozen=True, tag=True):
    """Asks for content by digest; ``compressed``: it may come so (``wire.compress``)."""

    digest: Digest
    compressed: bool = False


class Answer(Struct, frozen=True, tag=True):
    """Yes, or no with a reason. ``retry``: not now, but soon; ``version``: another wire version, so never.
    ``size`` bytes of content follow an answered ``Fetch``, as ``compressed`` ones if it has them. ``known``
    are members of a partial that are counted already.
    """

    ok: bool
    reason: Reason = ""
    retry: bool = False
    size: Count = 0
    compressed: Count = 0
    version: bool = False
    known: Annotated[tuple[Count, ...], Meta(max_length=MAX_GROUP)] = ()


Push = PushContribution | PushPartial | PushResult
Request = Hello | Push | Fetch
