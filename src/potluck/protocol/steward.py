"""The steward's decisions: when a round opens, when it is committed, who replaces a dead reducer.

Every peer can take them; the ledger's compare-and-set lets one win. A decision is a record and the reason
for it in words, or no record and what is being waited for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from potluck.errors import ProtocolError
from potluck.protocol.plan import FLAT, Plan, assign, exchange_s, groups_for, plan, reassign
from potluck.protocol.swarm import EXPIRY_S, Swarm
from potluck.protocol.turn import LINE
from potluck.protocol.view import KEEP_SNAPSHOTS, MAX_WEIGHT, OpenRound, RunView
from potluck.wire.codec import MAX_MESSAGE_BYTES, encode
from potluck.wire.messages import Progress
from potluck.wire.records import Body, Commit, Finish, Grant, Held, Member, Open, PartInfo, Reassign, Snapshot

SETTLE_S = 2.0
"""How long the next round waits for peers that are still applying the last one, in seconds."""

NEAR_S = 1.5
NEAR_SHARE = 0.1
NEAR_ROUNDS = 3
"""The next round waits so long, or for this share of a round's training if that is more, while all train on,
for a joiner that is so few rounds from its beginning, or will have its state by then.
"""

IDLE_S = 5.0
"""A trainer that has not stepped for so long, and for four of its usual steps, is no member, in seconds."""

ROUND_BYTES = MAX_MESSAGE_BYTES * 9 // 10
MEMBER_BYTES = 110
MOST_NAMED = ROUND_BYTES // MEMBER_BYTES
"""A record has so many bytes to spare, an open or a grant takes so many a member, and names so many."""

PATIENT_STATES = 2
"""While a joiner fetches a snapshot, rounds of as many bytes as so many snapshots are kept for it."""

PATIENT_S = 600.0
"""The most that slow steps, and slow links, may each add to a round's grace period, in seconds."""

LACKING = 0.2
"""In line for a commit, who lacks results counts as much of a place: it may get them this moment."""

LEGS = 2
"""What was measured is a link at its best, so the grace period has so many times what is to be moved."""

ROUND_TRIPS = 4
"""Of the slowest member: a stream is made, and asked, and answered."""


@dataclass(frozen=True)
class Rules:
    """What the recipe says about rounds; ``round_bytes`` is the size of one whole encoded contribution.

    A round of more than ``flat`` members has groups. Its members have done ``least_steps`` inner steps each
    on the average when it opens.
    """

    round_tokens: int
    grace_s: float
    end_tokens: int
    end_rounds: int
    round_bytes: int
    flat: int = FLAT
    least_steps: int = 1


@dataclass(frozen=True)
class Decision:
    """A record to append, or None; and why."""

    body: Body | None
    reason: str


@dataclass(frozen=True)
class Times:
    """When, by our own clock, the last commit and the open round's last record were seen."""

    committed: float
    opened: float


def decide(
    view: RunView, swarm: Swarm, rules: Rules, times: Times, now: float, known: Mapping[str, PartInfo]
) -> Decision:
    """What the ledger needs next, as far as this peer can see. ``known`` are the open round's results that
    are here, by digest: only of those it can say who is in them.
    """
    if view.genesis is None:
        return Decision(None, "waiting for the run's first record")
    if view.finished is not None:
        return Decision(None, f"the run is over: {view.finished.reason}")
    if view.open is not None:
        return _conclude(view, view.open, swarm, rules, times, now, known)
    end = _end(view, rules)
    if end is not None:
        return Decision(Finish(view.round, end), end)
    return _begin(view, swarm, rules, times, now)


def subject(decision: Decision, view: RunView) -> tuple[object, ...]:
    """What a decision is about, whatever its figures."""
    body = decision.body
    if isinstance(body, Grant):
        return "Grant", view.leases.grants if view.leases is not None else 0
    return type(body).__name__, getattr(body, "round", 0), getattr(body, "attempt", 0)


def place_for(
    decision: Decision | None, view: RunView, swarm: Swarm, peer: str, rank: int | None, now: float
) -> float | None:
    """A peer's place in line for what is to be decided. A commit takes all results, so those before it who
    said that they lack some hardly count: a thin link at the head of the line holds nobody up.
    """
    open_ = view.open
    if decision is None or not isinstance(decision.body, Commit) or open_ is None or not rank or rank > LINE:
        return rank
    return sum(1.0 if _has_all(p, open_) else LACKING for p in swarm.before(peer, open_.members, now))


def _has_all(progress: Progress, open_: OpenRound) -> bool:
    return _sees(progress, open_) and len({held.part for held in progress.held}) == len(open_.reducers)


def agree_on_snapshot(
    view: RunView, swarm: Swarm, own: Mapping[int, tuple[str, Snapshot]], now: float
) -> Decision:
    """Record a snapshot once two peers (or the only one) wrote the same; ``own`` maps rounds to ours."""
    newest = max(view.snapshots, default=-1)
    joiner = _fetches_oldest(view, swarm, now)
    if joiner is not None:
        why = f"no newer snapshot is recorded: {joiner} is fetching the one that it would replace"
        return Decision(None, why)
    for round_ in sorted((r for r in own if r > newest and r <= view.round), reverse=True):
        digest, snapshot = own[round_]
        others = [p for p in swarm.alive(now) if p.phase != "joining"]
        agree = sum(p.snapshots.get(round_) == digest for p in others)
        if agree >= min(2, len(others)) and agree:
            reason = f"{agree} of {len(others)} peers wrote the same snapshot of round {round_}"
            body = Snapshot(snapshot.round, snapshot.state, snapshot.files, reason)
            return Decision(body, reason)
    return Decision(None, "no newer snapshot is held by two peers")


def _fetches_oldest(view: RunView, swarm: Swarm, now: float) -> str | None:
    """Who fetches the snapshot that would be forgotten with a newer one, unless that takes too long: by then
    the rounds since have as many bytes as two snapshots.
    """
    if len(view.snapshots) < KEEP_SNAPSHOTS:
        return None
    oldest = min(view.snapshots)
    joiner = next((p for p in swarm.alive(now) if p.fetching == oldest), None)
    if joiner is None:
        return None
    since = sum(info.size for commit in view.commits.values() for info in commit.parts)
    most = PATIENT_STATES * sum(blob.size for blob in view.snapshots[oldest].files)
    return (joiner.name or joiner.peer[:8]) if since < most else None


def _end(view: RunView, rules: Rules) -> str | None:
    if rules.end_tokens and view.tokens >= rules.end_tokens:
        return f"{view.tokens:,} tokens trained, {rules.end_tokens:,} were asked for"
    if view.leases is not None and view.leases.done:
        return f"all {view.leases.end:,} blocks of the data are in the model, each once"
    if rules.end_rounds and view.round >= rules.end_rounds:
        return f"round {view.round} committed, the last one asked for"
    return None


def _begin(view: RunView, swarm: Swarm, rules: Rules, times: Times, now: float) -> Decision:
    """Open the next round when the swarm has done its tokens."""
    base = swarm.majority(view.round, now)
    trainers = [p for p in swarm.alive(now) if p.phase == "training"]
    if base is None or not trainers:
        return Decision(None, "waiting for a peer that trains")
    ready = [p for p in trainers if _ready(p, view.round, base)]
    done = sum(p.tokens for p in ready)
    steps, least = _steps(ready, rules.round_tokens), rules.least_steps
    rest = _used_up(view, trainers, done)
    dry = _used_up(view, ready, done)  # while one that stands still has data, the others need not have more
    long = least == 1 or steps >= least or dry
    if (not (done >= rules.round_tokens and long) and not rest) or not ready:
        who = f"{len(ready)} of {len(trainers)} peers"
        return Decision(None, _work(done, rules, who, steps))
    late = [p.name or p.peer[:8] for p in trainers if p.round < view.round]
    if late and now - times.committed < SETTLE_S:
        return Decision(None, f"{', '.join(late)} still applying round {view.round}")
    speed = sum(p.tokens_per_s for p in ready)
    due = max(rules.round_tokens, done * least / steps if least > 1 and steps > 0 else 0.0)
    near_s = max(NEAR_S, NEAR_SHARE * due / speed) if speed > 0 else 0.0
    # Of the rest no more will come to tell the time.
    near = [] if rest or dry else _near(view, swarm, near_s, now)
    if near and done < due + near_s * speed:
        return Decision(None, f"{_names(near)} nearly caught up with round {view.round}")
    reason = _work(done, rules, _names(ready), steps)
    if done < rules.round_tokens:
        reason = f"the data is used up: the last {done:,.0f} tokens, done by {_names(ready)}"
    return Decision(_open(view, ready, base, rules, reason), reason)


def _steps(ready: Sequence[Progress], round_tokens: float) -> float:
    """Inner steps behind a token of the round, on the average. So a peer counts as it does in the mean: one
    that is slow, or has just come, with few tokens as yet, keeps nobody waiting; nor does one that says that
    it did far more than a round in no step.
    """
    weights = [min(p.tokens, round_tokens) for p in ready]
    steps = sum(weight * p.steps for weight, p in zip(weights, ready, strict=True))
    return steps / sum(weights) if sum(weights) > 0 else 0.0


def _work(done: float, rules: Rules, who: str, steps: float) -> str:
    """In words, what is done of a round."""
    words = f"{done:,.0f} of {rules.round_tokens:,} tokens done by {who}"
    return (
        words
        if rules.least_steps == 1
        else f"{words}, {steps:.1f} of at least {rules.least_steps} steps each"
    )


def _near(view: RunView, swarm: Swarm, near_s: float, now: float) -> list[Progress]:
    """Joiners that have a state, and few rounds still to apply to it, or will have one in ``near_s``."""
    least = max(0, view.round - NEAR_ROUNDS)
    return [
        p
        for p in swarm.alive(now)
        if p.phase == "joining" and (p.round >= least or (p.eta_s is not None and p.eta_s <= near_s))
    ]


def _used_up(view: RunView, trainers: Sequence[Progress], done: float) -> bool:
    """Whether all who train have come to the end of the data: no more tokens will come."""
    leases = view.leases
    ended = leases is not None and leases.free == 0 and all(p.waiting for p in trainers)
    return ended and done > 0


def _trainers(view: RunView, swarm: Swarm, now: float) -> list[Progress]:
    """Who can be a member of the next attempt."""
    base = swarm.majority(view.round, now)
    return [p for p in swarm.alive(now) if p.phase == "training" and _ready(p, view.round, base)]


def _ready(progress: Progress, round_: int, base: str | None) -> bool:
    """Whether a trainer can be a member: at the common state, and stepping. (One that stands still would
    keep every round waiting for its cut; one that has just come has its first tokens by then.)
    """
    steps = progress.idle_s < max(IDLE_S, 4 * progress.step_s)
    return progress.round == round_ and progress.state == base and steps


def _has_work(progress: Progress) -> bool:
    """Whether a trainer has something to give, or will: alone, one without would never end a round."""
    return progress.tokens > 0 or not progress.waiting


def _open(view: RunView, ready: Sequence[Progress], base: str, rules: Rules, reason: str) -> Open:
    assert view.genesis is not None
    ready = sorted(_fitting(ready, view.round), key=lambda p: p.member)
    members = tuple(p.member for p in ready)
    groups = groups_for(len(members), rules.flat)
    shared = _plan(view, ready, rules, groups)
    return Open(
        round=view.round + 1,
        attempt=view.open.attempt + 1 if view.open else 0,
        members=members,
        reducers=shared.reducers,
        base=base,
        grace_s=_grace_s(ready, shared.reducers, rules, groups),
        reason=(reason + _moves(view, ready, shared))[:2000],
        groups=groups,
    )


def _plan(view: RunView, ready: Sequence[Progress], rules: Rules, groups: int) -> Plan:
    """Who reduces what: by the members' links, in a round with groups evenly."""
    assert view.genesis is not None
    members, parts = [p.member for p in ready], view.genesis.parts
    if groups > 1:
        return Plan(assign(parts, members, view.last_plan))
    rates, same = [_rate(p) for p in ready], set(members) == set(view.last_members)
    return plan(parts, members, view.last_plan, rates, rules.round_bytes, same=same)


def _rate(progress: Progress | None) -> float:
    """A link's slower direction in bytes/s; 0 unless both are known. (Older releases measured one stream of
    those that share an uplink, and say nothing of the downlink.)
    """
    return min(progress.uplink, progress.downlink) if progress is not None else 0.0


def _moves(view: RunView, ready: Sequence[Progress], shared: Plan) -> str:
    """In words, whose parts changed because of links, and what that saves."""
    if shared.moved_s is None:
        return ""
    had, has = Counter(view.last_plan.values()), Counter(ready[index].member for index in shared.reducers)
    changes, total = [], len(shared.reducers)
    for p in sorted(ready, key=lambda p: has[p.member] - had[p.member]):
        if has[p.member] != had[p.member]:
            link = f" ({_rate(p) / 1e6:.3g} MB/s)" if _rate(p) > 0 else ""
            changes.append(
                f"{p.name or p.peer[:8]}{link} reduces {has[p.member]} of {total}, not {had[p.member]}"
            )
    before_s, after_s = shared.moved_s
    return (
        f"; by their links {', '.join(changes)}: about {after_s:.1f} s on the wire instead of {before_s:.1f}"
    )


def _grace_s(ready: Sequence[Progress], reducers: Sequence[int], rules: Rules, groups: int) -> float:
    """How long reducers wait: for the slowest steps; for the link, either way, that is busy longest, a thin
    one with its member's own contribution too; and for one that acts for a group and is dead.
    """
    steps_s = 2 * max(p.step_s if p.step_s > 0 else 0.0 for p in ready)
    links = [min((rate for rate in (p.uplink, p.downlink) if rate > 0), default=0.0) for p in ready]
    transfer_s = LEGS * exchange_s(reducers, links, rules.round_bytes, groups)
    transfer_s += ROUND_TRIPS * max(p.rtt_s if p.rtt_s > 0 else 0.0 for p in ready)
    death_s = EXPIRY_S if groups > 1 else 0.0
    return round(rules.grace_s + min(steps_s, PATIENT_S) + min(transfer_s, PATIENT_S) + death_s, 2)


def _fitting(ready: Sequence[Progress], turn: int) -> Sequence[Progress]:
    """As many as one record can name, others each time; what the rest has done waits for their turn."""
    if len(ready) <= MOST_NAMED:
        return ready
    start = turn * MOST_NAMED % len(ready)
    return [*ready[start:], *ready[:start]][:MOST_NAMED]


def _conclude(
    view: RunView,
    open_: OpenRound,
    swarm: Swarm,
    rules: Rules,
    times: Times,
    now: float,
    known: Mapping[str, PartInfo],
) -> Decision:
    """Commit the open round, or mend it."""
    live = [m for m in open_.members if swarm.lives(m, now)]
    witnesses = [p for p in swarm.alive(now) if _sees(p, open_)]
    results = _best(open_, witnesses, known)
    need = min(2, max(1, len(live)))
    if all(count >= need for count, _ in results):
        infos = [known.get(held.digest) for _, held in results if held is not None]
        decision = _commit(open_, tuple(filter(None, infos)), need, swarm, now) if all(infos) else None
        if decision is not None:
            return decision
    if not live:
        why = f"no member of round {open_.round} is left"
        return _reopen(view, swarm, rules, now, why, exclude_stuck=False)
    if not any(count for count, _ in results) and _barren(view, open_, live, swarm, now):
        why = f"nobody who is left in round {open_.round} had anything to give"
        return _reopen(view, swarm, rules, now, why, exclude_stuck=False)
    patience_s = 3 * open_.grace_s + 5
    if now - times.opened > patience_s:
        why = f"round {open_.round} did not get through in {patience_s:.0f} s"
        return _reopen(view, swarm, rules, now, why, exclude_stuck=True)
    orphans = [
        part
        for part, (count, _) in enumerate(results)
        if not count and not swarm.lives(open_.members[open_.reducers[part]], now)
    ]
    if orphans:
        return _replace(open_, orphans, swarm, now)
    if all(count >= need for count, _ in results):
        absent = sum(held is not None and held.digest not in known for _, held in results)
        why = f"{absent} of its parts are not here yet" if absent else "no record can hold its commit"
        return Decision(None, f"round {open_.round} is ready; {why}")
    lacking = [part for part, (count, _) in enumerate(results) if count < need]
    waits = sorted({swarm.name(open_.members[open_.reducers[part]]) for part in lacking})
    return Decision(
        None,
        f"round {open_.round}: {len(lacking)} of {len(results)} parts not yet held by {need}; "
        f"reduced by {', '.join(waits)}",
    )


def _barren(view: RunView, open_: OpenRound, live: Sequence[Member], swarm: Swarm, now: float) -> bool:
    """Whether nothing can come of a round without results, and another attempt would be no such round: its
    members that live all abstained, and one died, whose data can go to others then, or somebody has work now.
    """
    last = [swarm.last(m.peer) for m in live]
    if not all(p is not None and p.abstains and _sees(p, open_) for p in last):
        return False
    return len(live) < len(open_.members) or any(p.tokens > 0 for p in _trainers(view, swarm, now))


def _sees(progress: Progress, open_: OpenRound) -> bool:
    """Whether a peer's ``held`` speaks of this attempt of this round."""
    return progress.round == open_.round - 1 and progress.attempt == open_.attempt


def _best(
    open_: OpenRound, witnesses: Sequence[Progress], known: Mapping[str, PartInfo]
) -> list[tuple[int, Held | None]]:
    """For each part how many peers hold its result, and that; of several the most held, or lowest digest.

    What is said of a result that is here, and is not so, does not count.
    """
    holders: Counter[Held] = Counter()
    for progress in witnesses:
        holders.update(h for h in set(progress.held) if h.digest not in known or known[h.digest].held == h)
    best: list[tuple[int, Held | None]] = [(0, None)] * len(open_.reducers)
    for held in sorted(holders, key=lambda h: (-holders[h], h.digest, h.size)):
        if held.part < len(best) and best[held.part][1] is None:
            best[held.part] = holders[held], held
    return best


def _commit(
    open_: OpenRound, infos: tuple[PartInfo, ...], need: int, swarm: Swarm, now: float
) -> Decision | None:
    """The commit of these results; None if it is too large for a record."""
    weights = {index: weight for info in infos for index, weight in info.contributors}
    losses = []
    for index, weight in sorted(weights.items()):
        progress = swarm.last(open_.members[index].peer)
        if progress is not None and progress.loss is not None and math.isfinite(progress.loss):
            losses.append((progress.loss, weight))
    loss = sum(value * w for value, w in losses) / sum(w for _, w in losses) if losses else None
    reason = f"all {len(infos)} parts held by {'two members' if need == 2 else 'the only member left'}"
    blocks = {index: n for info in infos for index, n in info.blocks if index in weights and n}
    infos = tuple(replace(info, blocks=()) for info in infos)
    missing = [m for index, m in enumerate(open_.members) if index not in weights]
    if missing:
        lost = [f"{swarm.name(m)} ({'late' if swarm.lives(m, now) else 'gone'})" for m in missing]
        reason += f"; without {', '.join(lost)}"
    tokens = min(int(sum(weights.values())), MAX_WEIGHT)
    counted = tuple(sorted(blocks.items()))
    body = Commit(open_.round, open_.attempt, infos, tokens, loss, reason[:2000], counted).abridged()
    try:
        return Decision(body, reason) if len(encode(body)) < ROUND_BYTES else None
    except ProtocolError:
        return None


def _replace(open_: OpenRound, orphans: Sequence[int], swarm: Swarm, now: float) -> Decision:
    """Give a dead reducer's parts to members that live."""
    live = [index for index, m in enumerate(open_.members) if swarm.lives(m, now)]
    gone = sorted({swarm.name(open_.members[open_.reducers[part]]) for part in orphans})
    last = [swarm.last(m.peer) for m in open_.members]
    rates = [_rate(p) if open_.groups == 1 else 0.0 for p in last]
    moves = reassign(orphans, open_.reducers, live, rates)
    heirs = sorted({swarm.name(open_.members[member]) for _, member in moves})
    reason = f"{', '.join(gone)} died before its parts were held; {', '.join(heirs)} reduces them now"
    return Decision(Reassign(open_.round, open_.attempt, moves, reason[:2000]), reason)


def _reopen(view: RunView, swarm: Swarm, rules: Rules, now: float, why: str, exclude_stuck: bool) -> Decision:
    """Open the round once more; local progress of everybody is still theirs, so nothing is lost."""
    assert view.open is not None
    base, ready = swarm.majority(view.round, now), _trainers(view, swarm, now)
    if base is None or not ready:
        return Decision(None, f"{why}; waiting for a peer that trains")
    ready = [p for p in ready if _has_work(p)] or ready
    if exclude_stuck:
        ready = _least_stuck(view.open, ready)
    reason = f"{why}; opened again with {_names(ready)}"
    return Decision(_open(view, ready, base, rules, reason[:2000]), reason)


def _least_stuck(open_: OpenRound, ready: Sequence[Progress]) -> list[Progress]:
    """Peers that got furthest in the stuck attempt; if those are no fewer than its members, half as many.

    Members that can't reach each other would block every attempt; halving ends with one that can go alone,
    and it is another one's turn with each attempt.
    """
    held = {p.peer: len({i.part for i in p.held}) if _sees(p, open_) else 0 for p in ready}
    furthest = [p for p in ready if held[p.peer] == max(held.values())]
    if len(furthest) < len(open_.members):
        return furthest
    turn = open_.attempt % len(furthest)
    return (furthest[turn:] + furthest[:turn])[: (len(open_.members) + 1) // 2]


def _names(peers: Sequence[Progress]) -> str:
    names = [p.name or p.peer[:8] for p in peers]
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} peers"
