"""What a core asks its shell to do. Each is answered by the event named in its docstring."""

from __future__ import annotations

from dataclasses import dataclass, field

from potluck.protocol.leases import Span
from potluck.wire.records import Body, Commit, Snapshot


@dataclass(frozen=True)
class Append:
    """Append to the ledger, right after the last record seen. → ``appended``."""

    body: Body


@dataclass(frozen=True)
class Cut:
    """Take the local progress at the next inner-step boundary and encode it. → ``cut_done``."""

    round: int
    attempt: int


@dataclass(frozen=True)
class SendContribution:
    """Send the encoded part to its reducer, or to who gathers for our group. → ``sent``."""

    round: int
    attempt: int
    part: int
    to: str


@dataclass(frozen=True)
class Combine:
    """Take the mean of what these members of our group gave for a part, for its reducer. → ``combined``."""

    round: int
    attempt: int
    part: int
    contributors: tuple[int, ...]


@dataclass(frozen=True)
class SendPartial:
    """Send what was combined (``lead``: its first contributor; None: nothing was) to a part's reducer, and
    who of the group gives nothing. → ``partial_sent``.
    """

    round: int
    attempt: int
    part: int
    lead: int | None
    abstained: tuple[int, ...]
    to: str


@dataclass(frozen=True)
class Reduce:
    """Reduce a part over what these members gave, and over the partials with these leads. → ``reduced``."""

    round: int
    attempt: int
    part: int
    contributors: tuple[int, ...]
    partials: tuple[int, ...] = ()


@dataclass(frozen=True)
class SendResult:
    """Send a result that is held here to a member. → ``sent``."""

    round: int
    attempt: int
    part: int
    digest: str
    to: str


@dataclass(frozen=True)
class Fetch:
    """Fetch content by digest from a peer. → ``fetched``."""

    digest: str
    size: int
    source: str


@dataclass(frozen=True)
class Apply:
    """Apply a committed round; all its parts are here. → ``applied`` (or ``missing``)."""

    commit: Commit


@dataclass(frozen=True)
class LoadSnapshot:
    """Take a snapshot's state; all its chunks are here. → ``applied`` (or ``missing``)."""

    snapshot: Snapshot


@dataclass(frozen=True)
class WriteSnapshot:
    """Write the state as it is, after this round. → ``snapshot_written``."""

    round: int


@dataclass(frozen=True)
class Evaluate:
    """Evaluate the state as it is, after this round, beside all else. → ``evaluating.done``."""

    round: int


@dataclass(frozen=True)
class Drop:
    """Content that nobody will ask for any more."""

    digests: frozenset[str]


@dataclass(frozen=True)
class Leased:
    """These data blocks are ours to train on, after those that we have."""

    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Included:
    """So many of our data blocks, the oldest first, are in a commit."""

    blocks: int


@dataclass(frozen=True)
class Revoked:
    """We were taken for gone: our data blocks went to others, and what we trained on them must not count."""


@dataclass(frozen=True)
class Announce:
    """Say at once what changed, rather than at the next beat."""


@dataclass(frozen=True)
class Note:
    """Words for the log and whoever watches; ``problem``: something is amiss."""

    text: str
    problem: bool = field(default=False, compare=False)


Effect = (
    Append
    | Cut
    | SendContribution
    | Combine
    | SendPartial
    | Reduce
    | SendResult
    | Fetch
    | Apply
    | LoadSnapshot
    | WriteSnapshot
    | Evaluate
    | Drop
    | Leased
    | Included
    | Revoked
    | Announce
    | Note
)
