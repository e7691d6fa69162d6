"""The core of a peer: events in, effects out, and whose turn it is to write the ledger."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from potluck.protocol.catchup import NO_STATE, chunks
from potluck.protocol.core import TICK_S, PeerCore
from potluck.protocol.effects import (
    Announce,
    Append,
    Apply,
    Combine,
    Cut,
    Drop,
    Effect,
    Fetch,
    LoadSnapshot,
    Note,
    Reduce,
    SendContribution,
    SendResult,
    WriteSnapshot,
)
from potluck.protocol.errand import RETRY_S
from potluck.protocol.incoming import PUSH_S
from potluck.protocol.steward import LACKING, Rules
from potluck.protocol.swarm import EXPIRY_S
from potluck.protocol.turn import AGAIN_S, ANSWER_S, RANK_S
from potluck.wire.messages import Answer, Progress, PushContribution, PushPartial
from potluck.wire.records import Body, Commit, Evaluation, Finish, Open, PartInfo, Snapshot

from .support import (
    BASE,
    Ledger,
    blob,
    committed,
    genesis,
    held,
    member,
    moved,
    opened,
    peer_id,
    result,
    says,
    snapshot,
    told,
)

RULES = Rules(200, 3.0, 0, 0, 1000)


class Peer:
    """A core and the ledger it follows."""

    def __init__(
        self,
        n: int = 1,
        *,
        trains: bool = True,
        have: set[str] | None = None,
        every: int = 2,
        listened: bool = True,
    ) -> None:
        self.n = n
        self.core = PeerCore(member(n), RULES, trains=trains, have=have or set(), snapshot_every=every)
        if listened:
            self.listen(-EXPIRY_S, 0.0)
        self._ledger = Ledger()

    def listen(self, since: float, now: float) -> None:
        """Our own announcements come back throughout."""
        while since <= now:
            self.core.swarm.echo(since)
            since += 1.0

    def follow(self, *bodies: Body, now: float = 0.0, author: int = 9) -> None:
        for body in bodies:
            self.core.followed(self._ledger.add(body, author), now)

    def hear(self, *announcements: Progress, now: float = 0.0) -> None:
        for progress in announcements:
            last = self.core.swarm.last(progress.peer)
            assert self.core.heard(replace(progress, beat=last.beat + 1 if last else 0), now)

    def say(
        self, now: float = 0.0, tokens: float = 100.0, since: int | None = None, echoes: bool = True
    ) -> Progress:
        since = self.n if since is None else since
        base = Progress(peer=peer_id(self.n), session="s", name=f"peer{self.n}", since=since, tokens=tokens)
        progress = self.core.announcement(base, now)
        if echoes:
            self.core.heard(progress, now)
        return progress

    def poll(self, kind: type[Effect], now: float = 0.0) -> list[Any]:
        return [effect for effect in self.core.poll(now) if isinstance(effect, kind)]

    def notes(self, now: float = 0.0) -> list[str]:
        return [note.text for note in self.poll(Note, now)]


def trained(n: int = 1, since: int | None = None, **more: Any) -> Peer:
    """A peer with the state of round 0, which is the last."""
    peer = Peer(n, **more)
    peer.follow(genesis())
    peer.core.applied(0, BASE, loaded=False)
    peer.core.poll(0.0)
    peer.say(since=since)
    return peer


def in_round(n: int = 1, members: tuple[int, ...] = (1, 2), **more: Any) -> Peer:
    """A member of round 1 with everybody there, before its cut."""
    peer = trained(n, **more)
    peer.hear(*(says(m) for m in members if m != n))
    peer.follow(opened(members=members))
    return peer


# -- coming ------------------------------------------------------------------------------------------


def test_a_founder_is_in_training_once_it_has_the_first_state_and_writes_it_down() -> None:
    peer = Peer(every=2)
    assert (peer.core.phase, peer.core.catchup.round) == ("joining", NO_STATE)
    peer.follow(genesis())
    peer.core.applied(0, BASE, loaded=False)
    effects = peer.core.poll(0.0)
    assert WriteSnapshot(0) in effects
    assert Announce() in effects
    assert Note("caught up with round 0") in effects
    assert (peer.core.phase, peer.say().phase) == ("training", "training")


def test_who_does_not_train_follows() -> None:
    assert trained(trains=False).core.phase == "following"


def test_a_joiner_is_no_member_and_no_steward_before_it_has_caught_up() -> None:
    peer = Peer()
    peer.follow(genesis(), snapshot(0), opened(), committed())
    peer.hear(says(2, round=1, snapshots={0: "a" * 64}, tokens=1e6))
    peer.say()
    for now in (0.0, 1.0, 2.0, 3.0):
        assert peer.poll(Append, now) == []
    assert peer.core.phase == "joining"
    assert peer.core.activity == "fetching 2 chunks of the snapshot of round 0"
    assert peer.say().activity == peer.core.activity


def test_loaded_state_is_not_written_again_and_its_earlier_parts_are_not_promised() -> None:
    peer = Peer()
    peer.follow(genesis(), snapshot(0))
    peer.core.applied(0, BASE, loaded=True)
    assert peer.poll(WriteSnapshot) == []
    assert peer.say().parts_from == 1


def test_a_peer_that_comes_back_keeps_what_only_later_records_name() -> None:
    """It reads the ledger from the start, and an old snapshot's record must not empty its disk."""
    new, late = snapshot(4), committed(5)
    have = {d for d, _ in chunks(new.files)} | {info.digest for info in late.parts}
    peer = Peer(have=set(have))
    history: list[Body] = [genesis(), snapshot(0)]
    for round_ in range(1, 6):
        history += [opened(round_), late if round_ == 5 else committed(round_)]
        if round_ in (2, 4):
            history.append(snapshot(round_) if round_ == 2 else new)
        peer.follow(*history)
        history = []
        assert [effect for effect in peer.poll(Drop) if effect.digests & have] == []
    peer = Peer(have=set(have))
    peer.follow(genesis(), snapshot(0))
    for round_ in range(1, 6):
        peer.follow(opened(round_), late if round_ == 5 else committed(round_))
        if round_ in (2, 4):
            peer.follow(snapshot(round_))
    assert peer.poll(LoadSnapshot) == [LoadSnapshot(new)]
    peer.core.applied(4, BASE, loaded=True)
    assert peer.poll(Apply) == [Apply(late)]


# -- skipped records ---------------------------------------------------------------------------------


def test_a_record_that_does_not_fit_is_told_and_changes_nothing() -> None:
    peer = trained()
    peer.follow(opened(7))
    assert peer.notes() == [
        "ledger record 2 (Open) is skipped: round 1, attempt 0 is due, not 7, 0",
    ]
    assert peer.core.exchange is None


# -- a round -----------------------------------------------------------------------------------------


def test_a_member_sees_a_round_through() -> None:
    peer = in_round()
    assert peer.poll(Cut) == [Cut(1, 0)]
    peer.core.cut_done(1, 0, 60.0)
    assert peer.poll(SendContribution) == [SendContribution(1, 0, 1, peer_id(2))]
    peer.core.sent(1, 0, 1, peer_id(2), None, Answer(True), 0.1)
    push = PushContribution(1, 0, 0, 40.0, 8)
    assert peer.core.contributed(push, member(2)).ok
    assert peer.poll(Reduce) == [Reduce(1, 0, 0, (0, 1))]
    mine, theirs = result(0), result(1)
    peer.core.reduced(1, 0, 0, mine, ())
    peer.core.result(1, 0, theirs, 0.2)
    assert Announce() in peer.core.poll(0.2)
    assert peer.say(0.2).held == held(mine, theirs)
    peer.follow(committed(1, mine, theirs), now=0.3)
    assert peer.core.exchange is None
    assert peer.poll(Apply, 0.3) == [Apply(committed(1, mine, theirs))]
    assert peer.say(0.3).held == held(mine, theirs), "who lacks one may fetch it here until we apply it"
    peer.core.applied(1, "f" * 64, loaded=False)
    said = peer.say(0.4)
    assert (said.round, said.state, said.held) == (1, "f" * 64, ())


def test_parts_of_a_commit_are_announced_until_it_is_applied_even_while_the_next_round_is_open() -> None:
    peer = in_round()
    mine, theirs = result(0), result(1)
    peer.core.result(1, 0, mine, 0.2)
    peer.follow(committed(1, mine, theirs), opened(2, (3,), (0, 0)))
    assert peer.core.exchange is not None
    assert peer.say().held == held(mine)


def test_a_member_that_is_not_at_the_base_abstains() -> None:
    peer = trained()
    peer.follow(opened(), committed())
    peer.hear(says(2, round=1))
    peer.follow(opened(2))
    assert peer.core.catchup.round == 0
    assert peer.poll(Cut) == []
    assert peer.core.exchange is not None
    assert peer.core.exchange.weight == 0.0


def test_a_peer_that_drifted_sees_it_in_the_next_open_and_rejoins() -> None:
    peer = trained()
    peer.hear(says(2, state="e" * 64, snapshots={0: "a" * 64}))
    peer.follow(snapshot(0), opened(base="e" * 64))
    told = (
        f"state after round 0 is {BASE[:12]} here and {'e' * 12} elsewhere: taking the state from the others"
    )
    assert f"{told} again" in peer.notes()
    assert peer.core.phase == "joining"
    assert peer.core.catchup.round == NO_STATE
    assert peer.core.exchange is not None
    assert peer.core.exchange.weight == 0.0
    assert [f.source for f in peer.poll(Fetch, 1.0)] == [], "already being fetched"
    assert set(peer.core.catchup.manifest) == {d for d, _ in chunks(snapshot(0).files)}


def test_events_of_a_round_that_is_over_change_nothing() -> None:
    peer = in_round()
    peer.core.cut_done(1, 0, 60.0)
    peer.follow(opened(attempt=1), now=1.0)
    peer.core.poll(1.0)
    peer.core.cut_done(1, 0, 60.0)
    peer.core.reduced(1, 0, 0, result(0), (1,))
    peer.core.result(1, 0, result(1), 1.0)
    peer.core.sent(1, 0, 1, peer_id(2), None, Answer(True), 1.0)
    assert peer.core.exchange is not None
    assert (peer.core.exchange.weight, peer.core.exchange.held) == (None, ())
    assert {result(0).digest, result(1).digest} <= peer.core.catchup.have, "the bytes are here all the same"


@pytest.mark.parametrize(
    ("round_", "attempt", "retry", "reason"),
    [
        (2, 0, True, "round 2 is not open here yet"),
        (1, 1, True, "round 1 is not open here yet"),
        (0, 0, False, "round 0, attempt 0 is closed: late"),
    ],
)
def test_a_contribution_to_another_round_is_early_or_late(
    round_: int, attempt: int, retry: bool, reason: str
) -> None:
    push = PushContribution(round_, attempt, 0, 40.0, 8)
    assert in_round().core.contributed(push, member(2)) == Answer(False, reason, retry)
    assert in_round().core.contributed(push, member(2)) == Answer(False, reason, retry)


def test_between_rounds_the_last_is_late_and_the_next_early() -> None:
    peer = in_round()
    peer.follow(committed())
    late = peer.core.contributed(PushContribution(1, 3, 0, 40.0, 8), member(2))
    early = peer.core.contributed(PushContribution(2, 0, 0, 40.0, 8), member(2))
    assert (late.retry, early.retry) == (False, True)


def test_who_refuses_us_and_who_sends_garbage_is_named() -> None:
    peer = in_round()
    peer.core.cut_done(1, 0, 60.0)
    peer.core.poll(0.0)
    peer.core.sent(1, 0, 1, peer_id(2), None, Answer(False, "late"), 0.1)
    peer.core.sent(1, 0, 1, peer_id(2), None, Answer(False, "busy", retry=True), 0.1)
    peer.core.reduced(1, 0, 0, None, (1,))
    assert peer.notes(0.1) == [
        "round 1 part 1: peer2 refused it: late",
        "round 1 part 0: contribution of peer2 refused, it can't be decoded",
    ]


def test_damage_is_told_and_mended() -> None:
    peer = in_round()
    parts = committed()
    for info in parts.parts:
        peer.core.result(1, 0, info, 0.2)
    peer.follow(parts)
    assert peer.poll(Apply) == [Apply(parts)]
    peer.hear(says(2, round=1))
    lost = parts.parts[0].digest
    peer.core.missing((lost,))
    effects = peer.core.poll(0.1)
    assert Note("1 pieces of content are damaged or gone here: fetching them again") in effects
    assert Fetch(lost, 8, peer_id(2)) in effects
    peer.core.fetched(lost, True, 0.2)
    assert peer.poll(Apply, 0.2) == [Apply(parts)]


# -- what is fetched as a result ---------------------------------------------------------------------


def asks(peer: Peer, info: PartInfo) -> Fetch:
    """A member that fetches a result which another holds, and no push brought."""
    peer.core.cut_done(1, 0, 60.0)
    peer.hear(says(2, held=(info,)))
    peer.core.poll(0.0)
    peer.hear(says(2, held=(info,)), now=PUSH_S)
    [fetch] = peer.poll(Fetch, PUSH_S)
    assert isinstance(fetch, Fetch)
    assert peer.core.fetches_result(info.digest)
    return fetch


def test_what_is_fetched_as_a_result_is_held_by_what_stands_in_it() -> None:
    peer, info = in_round(), result(1)
    assert asks(peer, info) == Fetch(info.digest, info.size, peer_id(2))
    peer.core.fetched(info.digest, True, PUSH_S, told(info))
    assert Announce() in peer.core.poll(PUSH_S)
    assert peer.say(PUSH_S).held == held(info)


@pytest.mark.parametrize("of", [(2, 0), (1, 1), None])
def test_what_turns_out_to_be_of_another_round_or_no_result_is_none(of: tuple[int, int] | None) -> None:
    peer, info = in_round(), result(1)
    asks(peer, info)
    peer.core.fetched(info.digest, True, PUSH_S, told(info, *of) if of else None)
    assert peer.say(PUSH_S).held == ()
    assert info.digest in peer.core.catchup.have, "the bytes are here all the same"


@pytest.mark.parametrize(
    "bad",
    [
        result(9),
        result(1, (20, 1.0)),
        replace(result(1), contributors=()),
    ],
)
def test_what_can_be_no_result_of_the_round_stops_nobody(bad: PartInfo) -> None:
    """Somebody announced content that it made up."""
    for peer in (in_round(), in_groups(1)):
        peer.core.cut_done(1, 0, 60.0)
        for now in (0.0, 0.5, 0.5 + PUSH_S):
            peer.hear(says(4, held=(replace(bad.held, part=0),)), says(2, held=(replace(bad.held, part=0),)))
            peer.core.poll(now)
        assert peer.core.fetches_result(bad.digest)
        peer.core.fetched(bad.digest, True, 2.0, told(bad))
        peer.core.poll(2.0)
        assert peer.say(2.0).held == ()


# -- rounds in groups --------------------------------------------------------------------------------


def in_groups(n: int, **more: Any) -> Peer:
    """A member of round 1 of nine in three groups, peer n at place n; 0 reduces, 4 and 5 gather."""
    peer = trained(n, since=50 + n)
    peer.hear(*(says(m) for m in range(9) if m != n))
    peer.follow(opened(members=range(9), reducers=(0, 0), groups=3, **more))
    peer.core.poll(0.0)
    return peer


def both(*contributors: tuple[int, float]) -> tuple[PartInfo, PartInfo]:
    named = contributors or tuple((n, 10.0) for n in range(9))
    return result(0, *named), result(1, *named)


def test_who_gathers_sends_on_what_its_group_gave() -> None:
    peer = in_groups(4)
    peer.core.cut_done(1, 0, 60.0)
    for n in (1, 7):
        assert peer.core.contributed(PushContribution(1, 0, 0, 40.0, 8), member(n)).ok
    assert peer.poll(Combine) == [Combine(1, 0, 0, (1, 4, 7))]
    peer.core.combined(1, 0, 0, (1, 4), (7,))
    assert peer.notes() == ["round 1 part 0: contribution of peer7 refused, it can't be decoded"]
    peer.core.combined(1, 0, 0, (1, 4), ())
    peer.core.partial_sent(1, 0, 0, 1, peer_id(0), Answer(False, "late"), 0.2)
    assert peer.notes(0.2) == ["round 1 part 0: the group's mean was refused: late"]


def test_a_reducer_takes_a_groups_mean_for_the_round_that_it_is_in() -> None:
    peer = in_groups(0)
    weights = ((1, 10.0), (4, 11.0))
    assert peer.core.partial(PushPartial(1, 1, 0, weights, (), (), 8), member(4)).retry
    assert peer.core.partial(PushPartial(0, 0, 0, weights, (), (), 8), member(4)).reason.endswith("late")
    assert peer.core.partial(PushPartial(1, 0, 0, weights, (), (7,), 8), member(4)) == Answer(True)
    again = peer.core.partial(PushPartial(1, 0, 0, ((4, 11.0), (7, 1.0)), (), (), 8), member(7))
    assert again.known == (4,)


@pytest.mark.parametrize(
    "weights",
    [
        ((1, 5.0), (1, 7.0)),
        ((4, 5.0), (1, 7.0)),
        ((1, 5.0), (2, 7.0)),
        ((1, 0.0),),
    ],
)
def test_a_mean_that_names_its_members_otherwise_than_once_in_order_is_refused(
    weights: tuple[tuple[int, float], ...],
) -> None:
    assert not in_groups(0).core.partial(PushPartial(1, 0, 0, weights, (), (), 8), member(4)).ok


def test_events_of_groups_of_a_round_that_is_over_change_nothing() -> None:
    peer = in_groups(4)
    peer.follow(opened(attempt=1, members=range(9), reducers=(0, 0), groups=3), now=1.0)
    peer.core.combined(1, 0, 0, (1, 4), (7,))
    peer.core.partial_sent(1, 0, 0, 1, peer_id(0), Answer(False, "late"), 1.0)
    assert not [note for note in peer.notes(1.0) if "refused" in note]


def test_after_the_commit_who_gathered_spreads_the_results_on() -> None:
    peer, infos = in_groups(4), both()
    peer.core.result(1, 0, infos[0], 0.1)
    assert {push.to for push in peer.poll(SendResult, 0.1)} == {peer_id(1), peer_id(7)}
    peer = in_groups(4)
    peer.follow(committed(1, *infos), now=0.2)
    assert peer.core.exchange is None
    peer.core.result(1, 0, result(0, (0, 1.0), label="other"), 0.3)
    assert peer.poll(SendResult, 0.3) == [], "it is not what was committed"
    peer.core.result(1, 0, infos[1], 0.3)
    assert peer.poll(SendResult, 0.3) == [], "that is for 7 to spread"
    peer.core.result(1, 0, infos[0], 0.4)
    pushes = [SendResult(1, 0, 0, infos[0].digest, peer_id(n)) for n in (1, 7)]
    assert peer.poll(SendResult, 0.4) == pushes
    for push in pushes:
        peer.core.sent(1, 0, 0, push.to, push.digest, Answer(False, "busy", retry=True), 0.5)
    peer.follow(opened(2, range(9), (0, 0), groups=3), now=2.0)
    assert peer.poll(SendResult, 2.0) == [], "the next round is open"


def test_a_push_that_fails_after_the_commit_is_tried_again() -> None:
    peer, infos = in_groups(4), both()
    peer.core.result(1, 0, infos[0], 0.1)
    first, second = peer.poll(SendResult, 0.1)
    peer.follow(committed(1, *infos), now=0.2)
    for push, answer in ((first, Answer(True)), (second, Answer(False, "unreachable", retry=True))):
        peer.core.sent(1, 0, 0, push.to, push.digest, answer, 0.3)
    assert peer.poll(SendResult, 0.3 + RETRY_S) == [second]


def test_after_the_commit_of_a_round_without_groups_nothing_is_spread() -> None:
    peer = in_round()
    peer.core.result(1, 0, result(1), 0.1)
    peer.follow(committed(1, result(0), result(1)), now=0.2)
    assert peer.poll(SendResult, 0.2) == []


def test_a_member_waits_a_while_for_what_is_spread_and_others_do_not() -> None:
    infos = both()
    for n, waits in ((1, True), (20, False)):
        peer = in_groups(n)
        peer.follow(committed(1, *infos), now=1.0)
        peer.hear(*(says(m, held=infos) for m in range(9) if m != n), now=1.1)
        assert (peer.poll(Fetch, 1.1) == []) == waits
        assert (peer.poll(Fetch, 1.0 + 4.0 / 2 - 0.01) == []) == waits or not waits
        if waits:
            assert peer.core.activity == "waiting for 2 parts of round 1"
            assert len(peer.poll(Fetch, 1.0 + 4.0 / 2)) == 2


# -- crowds ------------------------------------------------------------------------------------------


def in_crowd(monkeypatch: pytest.MonkeyPatch, n: int, size: int = 3) -> Peer:
    """A member of a round in groups, of a swarm in which each speaks every third second only."""
    monkeypatch.setattr("potluck.protocol.swarm.CROWD", size)
    peer = in_groups(n)
    assert peer.core.swarm.every_s(0.0) == 9 / size
    return peer


def test_in_a_crowd_one_speaks_more_seldom_unless_all_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_crowd(monkeypatch, 1).say().every_s == 3.0
    reducer = in_crowd(monkeypatch, 0)
    assert reducer.say().every_s == 1.0
    reducer.follow(committed(1, *both()))
    assert reducer.say().every_s == 3.0


def test_in_a_crowd_only_what_others_wait_for_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    info = both()[0]
    for n, at_once in ((1, False), (4, True)):
        peer = in_crowd(monkeypatch, n)
        peer.core.result(1, 0, info, 0.1)
        assert (Announce() in peer.core.poll(0.1)) == at_once
        assert peer.say(0.2).held == held(info), "with the next beat all the same"
    reducer = in_crowd(monkeypatch, 0)
    reducer.core.reduced(1, 0, 0, info, ())
    assert Announce() in reducer.core.poll(0.1)
    assert Announce() not in reducer.core.poll(0.2)


# -- content that is dropped -------------------------------------------------------------------------


def through(peer: Peer, round_: int) -> Commit:
    """One round, applied here."""
    parts = committed(round_)
    peer.follow(opened(round_, base=peer.core.catchup.state))
    for info in parts.parts:
        peer.core.result(round_, 0, info, 0.2)
    peer.follow(parts)
    peer.core.poll(0.0)
    peer.core.applied(round_, f"{round_:064x}", loaded=False)
    return parts


def test_what_came_before_the_older_snapshot_is_dropped_once_it_is_applied() -> None:
    asset = blob("tokenizer")
    leftover = "e" * 64
    have = {leftover} | {d for d, _ in chunks((asset,))}
    peer = Peer(have=have)
    peer.follow(genesis(assets=(asset,)))
    peer.core.applied(0, BASE, loaded=False)
    gone: set[str] = set()
    for round_ in range(5):
        parts = through(peer, round_).parts if round_ else ()
        if round_ % 2 == 0:
            mine = snapshot(round_, state=peer.core.catchup.state)
            peer.core.snapshot_written(mine)
            peer.follow(mine)
        dropped = [effect.digests for effect in peer.poll(Drop)]
        assert len(dropped) == (round_ % 2 == 0)
        gone |= set().union(*dropped)
        assert not gone & {info.digest for info in parts}
    kept = peer.core.catchup.have
    assert {d for d, _ in chunks((asset,))} <= kept, "the run's files are needed by every joiner"
    assert {info.digest for r in (3, 4) for info in committed(r).parts} <= kept
    assert {d for r in (2, 4) for d, _ in chunks(snapshot(r).files)} <= kept
    assert gone == {leftover} | {d for d, _ in chunks(snapshot(0).files)} | {
        info.digest for r in (1, 2) for info in committed(r).parts
    }
    assert peer.say().parts_from == 3


def test_nothing_is_dropped_that_a_commit_still_to_be_applied_needs() -> None:
    peer = trained()
    parts = [through(peer, round_) for round_ in (1, 2)]
    third = committed(3)
    peer.follow(opened(3, base=peer.core.catchup.state))
    for info in third.parts:
        peer.core.result(3, 0, info, 0.2)
    peer.follow(third)
    assert peer.poll(Apply) == [Apply(third)]
    peer.follow(snapshot(0), snapshot(1), snapshot(3))
    assert peer.poll(Drop) == [], "round 3 is being applied out of the store"
    peer.core.applied(3, "3" * 64, loaded=False)
    [drop] = peer.poll(Drop)
    assert {info.digest for info in parts[0].parts} <= drop.digests


# -- snapshots ---------------------------------------------------------------------------------------


def test_a_snapshot_is_written_every_so_many_rounds_and_announced_with_its_manifest() -> None:
    peer = trained(every=2)
    through(peer, 1)
    assert peer.poll(WriteSnapshot) == []
    through(peer, 2)
    assert peer.poll(WriteSnapshot) == [WriteSnapshot(2)]
    mine = snapshot(2)
    peer.core.snapshot_written(mine)
    [digest] = peer.say().snapshots.values()
    peer.hear(says(2, round=2, snapshots={2: digest}))
    [append] = peer.poll(Append)
    assert isinstance(append.body, Snapshot)
    peer.follow(append.body)
    assert peer.say().snapshots == {2: digest}
    assert peer.poll(Append, 1.0) == []


@pytest.mark.parametrize("here", [False, True])
def test_a_slow_peer_writes_what_others_recorded_already_unless_it_is_here(here: bool) -> None:
    """From each peer's disk alone the run can be brought back, so each writes every snapshot."""
    content = {d for b in snapshot(1).files for d in b.chunks} if here else set()
    peer = trained(every=1, have=content)
    peer.follow(opened(), committed(), snapshot(1))
    peer.core.applied(1, BASE, loaded=False)
    assert peer.poll(WriteSnapshot) == ([] if here else [WriteSnapshot(1)])


# -- stewards ----------------------------------------------------------------------------------------


def stewards(*numbers: int) -> list[Peer]:
    """Peers that all see the same: enough tokens for round 1."""
    peers = [trained(n) for n in numbers]
    for peer in peers:
        peer.hear(*(says(n) for n in numbers if n != peer.n))
    return peers


def test_each_further_peer_in_line_waits_longer() -> None:
    first, second, third = stewards(1, 2, 3)
    assert len(first.poll(Append, 0.0)) == 1
    for peer, rank in ((second, 1), (third, 2)):
        assert peer.poll(Append, 0.0) == []
        assert peer.poll(Append, rank * RANK_S - 0.01) == []
        [append] = peer.poll(Append, rank * RANK_S)
        assert isinstance(append.body, Open)


@pytest.mark.parametrize(("first_has", "place"), [((0,), LACKING), ((0, 1), 1.0)])
def test_who_lacks_a_result_hardly_counts_in_line_for_the_commit(
    first_has: tuple[int, ...], place: float
) -> None:
    second = in_round(2, members=(1, 2, 3))
    mine = result(0), result(1)
    for info in mine:
        second.core.result(1, 0, info, 0.0)
    second.hear(
        says(1, attempt=0, held=held(*(mine[part] for part in first_has))),
        says(3, attempt=0, held=held(*mine)),
    )
    second.say()
    assert second.poll(Append, 0.0) == []
    assert second.poll(Append, place * RANK_S - 0.01) == []
    [append] = second.poll(Append, place * RANK_S)
    assert isinstance(append.body, Commit)


def test_followers_are_in_line_and_joiners_are_not() -> None:
    peer = trained(5)
    peer.hear(says(1, phase="joining"), says(2, phase="following"), says(3, tokens=200))
    assert peer.poll(Append, 0.0) == []
    assert peer.poll(Append, RANK_S) == []
    assert len(peer.poll(Append, 2 * RANK_S)) == 1


def test_a_decision_that_changes_starts_the_wait_anew() -> None:
    _, second = stewards(1, 2)
    second.poll(Append, 0.0)
    second.hear(says(1, tokens=0.0), now=0.5)
    assert second.poll(Append, RANK_S) == []
    second.hear(says(1, tokens=100.0), now=1.0)
    assert second.poll(Append, 1.0) == []
    assert second.poll(Append, 1.0 + RANK_S - 0.01) == []
    assert len(second.poll(Append, 1.0 + RANK_S)) == 1


def test_who_has_just_come_decides_nothing_before_it_has_heard_the_others() -> None:
    """A restarted peer has its state at once; it must not take all for gone, and open the round anew."""
    peer = trained(2, listened=False)
    peer.follow(opened(members=(1, 3)))
    for now in (0.0, 2.0, EXPIRY_S - 0.1):
        peer.listen(0.0, now)
        assert peer.poll(Append, now) == []
        assert peer.core.reason == "just come: listening for others before deciding anything"
    peer.listen(EXPIRY_S, EXPIRY_S)
    peer.say(EXPIRY_S)
    [append] = peer.poll(Append, EXPIRY_S)
    assert append.body.reason.startswith("no member of round 1 is left; opened again with peer2")


def test_one_append_at_a_time() -> None:
    first, _ = stewards(1, 2)
    [append] = first.poll(Append, 0.0)
    assert first.poll(Append, 1.0) == []
    first.core.appended(True, "")
    assert first.poll(Append, 2.0) == [], "the record itself has not come yet"
    first.say(3.5)
    first.hear(says(2), now=3.5)
    assert len(first.poll(Append, ANSWER_S)) == 1, "the answer is taken as lost"
    first.follow(append.body, now=ANSWER_S + 0.1)
    assert first.poll(Append, ANSWER_S + 0.2) == []


def test_an_append_that_was_not_taken_is_tried_again_after_a_pause() -> None:
    """Or as soon as the record comes that was first; while the hub is away nobody hammers at it."""
    first, _ = stewards(1, 2)
    assert len(first.poll(Append, 0.0)) == 1
    first.core.appended(False, "the hub is away")
    assert first.notes(0.1) == ["append not taken: the hub is away"]
    assert first.poll(Append, AGAIN_S - 0.01) == []
    [append] = first.poll(Append, AGAIN_S)
    first.core.appended(False, "another record was first")
    first.follow(opened(7), now=AGAIN_S + 0.1)
    assert first.poll(Append, AGAIN_S + 0.1) == [append]


def test_what_all_skip_is_not_written_again_at_once() -> None:
    """A record of ours that does not stand: the next would be the same."""
    first, _ = stewards(1, 2)
    assert len(first.poll(Append, 0.0)) == 1
    first.follow(opened(7), now=0.1, author=1)
    first.say(3.5)
    first.hear(says(2), now=3.5)
    assert first.poll(Append, ANSWER_S - 0.1) == []
    assert len(first.poll(Append, ANSWER_S)) == 1


def test_while_the_hub_is_away_nobody_counts_as_gone() -> None:
    """Else each peer would think itself alone, and commit what it alone holds once the hub is back."""
    peer = in_round()
    peer.core.cut_done(1, 0, 60.0)
    for part in range(2):
        peer.core.reduced(1, 0, part, result(part), ())
    for now in (1.0, 5.0, 9.0, 20.0):
        peer.say(now, echoes=False)
        assert peer.poll(Append, now) == []
    peer.say(20.0)
    assert peer.poll(Append, 20.0) == []
    peer.hear(says(2, held=(result(0), result(1))), now=21.0)
    peer.say(21.0)
    [append] = peer.poll(Append, 21.0)
    assert isinstance(append.body, Commit)
    assert append.body.reason == "all 2 parts held by two members"


def test_the_time_without_hub_does_not_count_as_a_round_that_is_stuck() -> None:
    peer = in_round()
    peer.core.cut_done(1, 0, 60.0)
    patience_s = 3 * 4.0 + 5
    peer.say(1.0)
    peer.say(patience_s + 2)
    peer.hear(says(2), now=patience_s + 2)
    assert peer.poll(Append, patience_s + 2) == []


def test_who_leaves_is_no_steward_and_no_member() -> None:
    first, second = stewards(1, 2)
    first.core.leaving = True
    assert first.say().phase == "leaving"
    assert first.poll(Append, 10.0) == []
    second.hear(first.say())
    second.say(tokens=300.0)
    [append] = second.poll(Append, 0.0)
    assert isinstance(append.body, Open)
    assert append.body.members == (member(2),)


def test_who_leaves_still_records_what_it_evaluated_whatever_else_is_to_be_decided() -> None:
    first, second = stewards(1, 2)
    for peer in (first, second):
        peer.core.applied(0, BASE, loaded=False)
        peer.core.snapshot_written(snapshot(0))
        peer.core.leaving = True
    for one, other in ((first, second), (second, first)):
        one.hear(other.say())
    body = Evaluation(0, BASE, (("loss", 2.5),), "by peer1")
    first.core.evaluating.done(body)
    assert first.poll(Append, 0.0) == [Append(body)]
    assert second.poll(Append, 10.0) == [], "and nothing of what others may decide"


def test_a_leaver_stays_for_the_round_it_is_a_member_of() -> None:
    peer = in_round()
    assert not peer.core.may_leave
    peer.core.leaving = True
    assert peer.poll(Cut) == [Cut(1, 0)], "its last work counts"
    peer.follow(committed())
    assert peer.core.may_leave
    peer.follow(opened(2, (2, 3), (0, 1)))
    assert peer.core.may_leave


def test_the_end_is_over_once_the_last_round_is_applied() -> None:
    peer = in_round()
    parts = committed()
    for info in parts.parts:
        peer.core.result(1, 0, info, 0.2)
    peer.follow(parts, Finish(1, "enough tokens"))
    assert not peer.core.over
    assert "run over: enough tokens" in peer.notes()
    peer.core.applied(1, "f" * 64, loaded=False)
    assert peer.core.over
    assert peer.poll(Append, 9.0) == []
    peer.core.poll(9.0)
    assert peer.core.activity == "the run is over: enough tokens"


# -- time --------------------------------------------------------------------------------------------


def test_a_busy_core_wants_to_be_polled_more_often_than_an_idle_one() -> None:
    idle = trained()
    idle.say(tokens=0.0)
    idle.core.poll(0.0)
    assert idle.core.deadline(0.0) == 1.0
    waiting = stewards(1, 2)[1]
    waiting.core.poll(0.0)
    assert waiting.core.deadline(0.0) == TICK_S
    assert in_round().core.deadline(0.0) == TICK_S
    behind = trained()
    behind.follow(opened(), committed())
    assert behind.core.deadline(0.0) == TICK_S


def test_a_reassignment_is_followed_and_told() -> None:
    peer = in_round()
    peer.core.poll(0.0)
    peer.core.cut_done(1, 0, 60.0)
    peer.core.poll(0.0)
    peer.follow(moved((1, 0)), now=1.0)
    effects = peer.core.poll(1.0)
    assert Note("round 1: somebody died") in effects
    push = PushContribution(1, 0, 1, 40.0, 8)
    assert peer.core.contributed(push, member(2)).ok


def test_a_lone_peer_goes_through_a_round_by_itself() -> None:
    """The whole dialogue of a run of one, effect by effect."""
    peer = trained()
    peer.say(tokens=200.0)
    [append] = peer.poll(Append)
    peer.follow(append.body)
    peer.core.appended(True, "")
    assert peer.poll(Cut) == [Cut(1, 0)]
    peer.core.cut_done(1, 0, 200.0)
    infos: list[PartInfo] = []
    for reduce in sorted(peer.poll(Reduce), key=lambda reduce: reduce.part):
        infos.append(result(reduce.part, (0, 200.0)))
        peer.core.reduced(1, 0, reduce.part, infos[-1], ())
    peer.say(tokens=0.0)
    [commit] = peer.poll(Append)
    whole = Commit(1, 0, tuple(infos), 200, None, "all 2 parts held by the only member left")
    assert commit.body == whole.abridged()
    peer.follow(commit.body)
    assert peer.poll(Apply) == [Apply(whole)]
