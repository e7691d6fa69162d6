"""How fast one member sends to another, so that all streams of an exchange together fill every link.

Left to themselves, streams that cross at links of others share these unevenly: some are done early, and the
rest do not take what is free then. If each has the share of its sender's uplink that its bytes are of all
that the sender has to send, and no more than such a share of its receiver's downlink, all are done together
when the busiest link is, and no queue grows.
"""

from __future__ import annotations

import math
from collections import Counter

from potluck.protocol.swarm import Swarm
from potluck.protocol.view import OpenRound
from potluck.wire.records import Member

SLACK = 1.05
"""So many times the share: a link may carry more than it was seen to, and is seen to next time."""

LEAST = 1e5
"""No pace is less, in bytes/s: what was measured on so thin a link, or is said of it, decides nothing."""

LOOK = 8
"""One round in so many has no pace, to see what links carry."""

WORTHWHILE_S = 2.0
"""Where a link is busy for less, in seconds, streams go as fast as they can: of an exchange so short what was
measured says too little, and a pace by that would keep it so.
"""

ROUND_TRIPS = 20
"""So many round trips as well: until then streams are getting started."""


def pace(
    open_: OpenRound | None,
    me: Member,
    to: str,
    swarm: Swarm,
    uplink: float,
    rtt_s: float,
    size: int,
    now: float,
) -> float:
    """The most that we send to another member, in bytes/s; 0 is no limit.

    Args:
        to: the other's key.
        uplink: what ours was seen to carry, in bytes/s; 0 while unknown. Others say what their downlinks did.
        rtt_s: our round trip to others, in seconds; 0 while unknown. They say theirs, too.
        size: of one contribution, in bytes.
    """
    if open_ is None or open_.groups > 1 or open_.round % LOOK == 0:
        return 0.0
    places = {m.peer: i for i, m in enumerate(open_.members) if m == me or swarm.lives(m, now)}
    if to not in places or me.peer not in places or len(places) < 3:
        return 0.0
    mine, other, loads = places[me.peer], places[to], Counter(open_.reducers)
    part = size / len(open_.reducers)
    progress = swarm.last(to)
    # Who has exchanged nothing yet has measured what its snapshot's source could send.
    downlink = progress.downlink if progress is not None and progress.uplink > 0 else 0.0
    starting_s = ROUND_TRIPS * max(rtt_s, progress.rtt_s if progress is not None else 0.0)

    def busy_s(member: int, rate: float) -> float:
        """How long a member's link is, with what goes to all others; what comes from them is as much."""
        parts = sum(loads[member] + loads[i] for i in places.values() if i != member)
        return part * parts / rate if 0 < rate < math.inf else 0.0

    longest_s = max(busy_s(mine, uplink), busy_s(other, downlink))
    if longest_s < max(WORTHWHILE_S, starting_s):
        return 0.0
    return max(LEAST, SLACK * part * (loads[mine] + loads[other]) / longest_s)
