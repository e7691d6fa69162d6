"""One open round at one peer: who sends what to whom, who is waited for, and until when."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from potluck.protocol.effects import Cut, Effect, Fetch, Note, Reduce, SendContribution, SendResult
from potluck.protocol.errand import RETRY_S
from potluck.protocol.exchange import PATIENCE, Exchange
from potluck.protocol.incoming import PUSH_S
from potluck.protocol.swarm import EXPIRY_S, Swarm
from potluck.protocol.view import MAX_WEIGHT, OpenRound
from potluck.wire.records import PartInfo

from .support import BASE, committed, member, only, peer_id, present, result, says, update

GRACE_S = 4.0


def round_of(members: Sequence[int], reducers: Sequence[int], attempt: int = 0) -> OpenRound:
    everyone = tuple(member(n) for n in members)
    return OpenRound(1, attempt, everyone, tuple(reducers), BASE, GRACE_S)


def exchange(me: int = 1, members: Sequence[int] = (1, 2, 3), reducers: Sequence[int] = (0, 1)) -> Exchange:
    return Exchange(round_of(members, reducers), member(me), 0.0)


def cut(part: Exchange, swarm: Swarm, now: float = 0.0, weight: float = 60.0) -> list[Effect]:
    """Let the peer cut, and return what follows from that."""
    assert Cut(1, 0) in part.poll(swarm, now)
    part.cut_done(weight)
    return part.poll(swarm, now)


# -- contributing ------------------------------------------------------------------------------------


def test_a_member_cuts_once_and_sends_each_part_to_its_reducer() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    assert ex.poll(swarm, 0.0) == [Cut(1, 0)]
    assert ex.poll(swarm, 0.1) == []
    assert ex.weight is None
    ex.cut_done(60.0)
    assert ex.weight == 60.0
    assert ex.poll(swarm, 0.1) == [SendContribution(1, 0, 1, peer_id(2))]
    assert ex.poll(swarm, 0.2) == []


def test_who_is_no_member_neither_cuts_nor_sends_nor_fetches() -> None:
    ex = exchange(me=9)
    assert ex.index is None
    assert ex.poll(present(1, 2, 3, held=(result(0),)), 10.0) == []


def test_who_is_no_member_but_follows_fetches_results_at_once_to_be_in_the_next_round() -> None:
    ex = exchange(me=9)
    wanted = result(0)
    [fetch] = ex.poll(present(1, 2, 3, held=(wanted,)), 0.5, follows=True)
    assert isinstance(fetch, Fetch)
    assert (fetch.digest, fetch.size) == (wanted.digest, wanted.size)
    ex.fetched(wanted.digest, wanted, 1.0)
    assert ex.poll(present(1, 2, 3, held=(wanted,)), 1.5, follows=True) == []


def test_a_contribution_is_sent_again_until_it_is_answered() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    send = SendContribution(1, 0, 1, peer_id(2))
    assert cut(ex, swarm) == [send]
    ex.sent(1, peer_id(2), None, False, True, 1.0)
    assert ex.poll(swarm, 1.0 + RETRY_S - 0.01) == []
    assert ex.poll(swarm, 1.0 + RETRY_S) == [send]
    ex.sent(1, peer_id(2), None, True, False, 2.0)
    assert only(ex.poll(swarm, 3.9), SendContribution) == []


def test_a_contribution_refused_for_good_is_not_sent_again() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    ex.sent(1, peer_id(2), None, False, False, 1.0)
    assert only(ex.poll(swarm, 3.9), SendContribution) == []


def test_nothing_is_sent_to_a_reducer_that_is_gone_or_for_a_part_whose_result_is_here() -> None:
    ex = exchange(me=1)
    assert cut(ex, present(1, 3)) == []
    ex.result(result(1))
    assert only(ex.poll(present(1, 2, 3), 0.0), SendContribution) == []


def test_contributions_go_again_to_a_new_reducer() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    ex.sent(1, peer_id(2), None, True, False, 0.5)
    ex.follow(round_of((1, 2, 3), (0, 2)), 1.0)
    assert ex.poll(swarm, 1.0) == [SendContribution(1, 0, 1, peer_id(3))]


# -- being offered contributions ---------------------------------------------------------------------


def test_what_is_not_welcome_is_refused_in_words() -> None:
    ex = exchange(me=1)
    assert ex.offered(2, member(2)).reason == "round 1 has no such part or member"
    assert ex.offered(0, member(9)).reason == "round 1 has no such part or member"
    assert ex.offered(0, member(2, "restarted")).reason == "round 1 has no such part or member"
    elsewhere = ex.offered(1, member(2))
    assert (elsewhere.ok, elsewhere.retry) == (False, True), "the reassignment may not be known here yet"
    assert elsewhere.reason == "round 1 part 1 is not reduced here"
    assert ex.contributed(0, member(2), 40.0).ok
    second = ex.contributed(0, member(2), 40.0)
    assert (second.ok, second.retry) == (False, False)
    assert second.reason == "round 1 part 0: a second contribution of one member"


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, 2.0 * MAX_WEIGHT])
def test_a_weight_that_is_no_number_of_tokens_is_refused(weight: float) -> None:
    ex = exchange(me=1)
    answer = ex.contributed(0, member(2), weight)
    assert answer.reason == f"round 1 part 0: weight {weight} is no number of tokens"
    assert ex.contributed(0, member(2), 40.0).ok, "it may still give a sound one"


def test_late_is_late() -> None:
    ex, swarm = exchange(me=1), present(1, 2)
    cut(ex, swarm)
    assert ex.contributed(0, member(2), 40.0).ok
    assert Reduce(1, 0, 0, (0, 1)) in ex.poll(swarm, 0.5)
    assert ex.contributed(0, member(3), 10.0).reason == "round 1 part 0 was reduced already: late"
    ex.reduced(0, result(0))
    assert ex.contributed(0, member(3), 10.0).reason == "round 1 part 0 was reduced already: late"


# -- reducing ----------------------------------------------------------------------------------------


def test_a_part_is_reduced_at_once_when_everybody_gave_or_abstained() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    assert only(cut(ex, swarm), Reduce) == []
    assert ex.contributed(0, member(3), 10.0).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == []
    assert ex.contributed(0, member(2), 0.0).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == [Reduce(1, 0, 0, (0, 2))]
    assert only(ex.poll(swarm, 0.2), Reduce) == []


def test_a_reducer_that_has_nothing_to_give_still_reduces() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    assert cut(ex, swarm, weight=0.0) == [SendContribution(1, 0, 1, peer_id(2))], "to say that nothing comes"
    for n in (2, 3):
        assert ex.contributed(0, member(n), 10.0).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == [Reduce(1, 0, 0, (1, 2))]


def test_nothing_is_reduced_while_nobody_gave_anything() -> None:
    ex = exchange(me=1)
    assert cut(ex, present(1), weight=0.0) == []
    assert ex.poll(present(1, at=100.0), 100.0) == []


def test_who_lives_is_waited_for_until_the_grace_period_ends() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    assert ex.contributed(0, member(2), 40.0).ok
    update(swarm, 3.0, says(1), says(2), says(3))
    assert only(ex.poll(swarm, GRACE_S - 0.01), Reduce) == []
    effects = ex.poll(swarm, GRACE_S)
    assert only(effects, Reduce) == [Reduce(1, 0, 0, (0, 1))]
    assert Note("round 1 part 0: reduced without peer3, not heard in 4 s") in effects


def test_who_is_dead_is_not_waited_for() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    assert ex.contributed(0, member(2), 40.0).ok
    update(swarm, 1.0, says(1), says(2))
    update(swarm, 1.0, says(3, session="t"))
    assert only(ex.poll(swarm, 1.0), Reduce) == [Reduce(1, 0, 0, (0, 1))], (
        "a restarted peer is another member"
    )


def test_a_contribution_of_who_died_since_counts() -> None:
    ex, swarm = exchange(me=1, members=(1, 2)), present(1, 2)
    cut(ex, swarm)
    assert ex.contributed(0, member(2), 40.0).ok
    update(swarm, EXPIRY_S, says(1))
    assert only(ex.poll(swarm, EXPIRY_S), Reduce) == [Reduce(1, 0, 0, (0, 1))]


def test_a_part_that_comes_to_us_has_a_grace_period_of_its_own() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    ex.follow(round_of((1, 2, 3), (0, 0)), 10.0)
    update(swarm, 12.0, says(1), says(2), says(3))
    assert [r.part for r in only(ex.poll(swarm, 13.9), Reduce)] == [0], "the other's time was up long ago"
    assert [r.part for r in only(ex.poll(swarm, 14.0), Reduce)] == [1]


def test_a_part_whose_result_is_held_is_not_reduced_again() -> None:
    """The old reducer died after its result had got here."""
    ex, swarm = exchange(me=1), present(1, 3)
    cut(ex, swarm)
    ex.result(result(1))
    ex.follow(round_of((1, 2, 3), (0, 0)), 1.0)
    update(swarm, 9.0, says(1), says(3))
    assert [r.part for r in only(ex.poll(swarm, 9.0), Reduce)] == [0]


def test_garbage_is_left_out_and_its_sender_is_not_waited_for() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    for n in (2, 3):
        assert ex.contributed(0, member(n), 10.0).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == [Reduce(1, 0, 0, (0, 1, 2))]
    info = result(0, (0, 60.0), (2, 10.0))
    ex.reduced(0, info, (1,))
    assert ex.held == (info,)


def test_when_all_was_garbage_the_part_waits_for_something_better() -> None:
    ex, swarm = exchange(me=1, members=(1, 2)), present(1, 2)
    cut(ex, swarm, weight=0.0)
    assert ex.contributed(0, member(2), 10.0).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == [Reduce(1, 0, 0, (1,))]
    ex.reduced(0, None, (1,))
    assert ex.poll(swarm, 9.0) == []
    assert ex.contributed(0, member(2), 10.0).ok
    assert only(ex.poll(swarm, 9.0), Reduce) == [Reduce(1, 0, 0, (1,))]


def test_a_reduction_that_failed_is_tried_again_with_the_same_members() -> None:
    ex, swarm = exchange(me=1, members=(1, 2)), present(1, 2)
    cut(ex, swarm)
    assert ex.contributed(0, member(2), 10.0).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == [Reduce(1, 0, 0, (0, 1))]
    ex.reduced(0, None)
    assert only(ex.poll(swarm, 0.2), Reduce) == [Reduce(1, 0, 0, (0, 1))]


# -- results -----------------------------------------------------------------------------------------


def reduced(me: int = 1) -> tuple[Exchange, Swarm, PartInfo]:
    ex, swarm = exchange(me=me), present(1, 2, 3)
    cut(ex, swarm)
    for n in (2, 3):
        assert ex.contributed(0, member(n), 10.0).ok
    ex.poll(swarm, 0.1)
    info = result(0, (0, 60.0), (1, 10.0), (2, 10.0))
    ex.reduced(0, info)
    return ex, swarm, info


def test_a_reducer_pushes_its_result_to_every_member_that_lives_and_lacks_it() -> None:
    ex, swarm, info = reduced()
    update(swarm, 0.5, says(2, held=(info,)))
    push = SendResult(1, 0, 0, info.digest, peer_id(3))
    assert only(ex.poll(swarm, 0.5), SendResult) == [push]
    assert only(ex.poll(swarm, 0.6), SendResult) == []
    ex.sent(0, peer_id(3), info.digest, False, True, 1.0)
    assert only(ex.poll(swarm, 1.0 + RETRY_S), SendResult) == [push]
    ex.sent(0, peer_id(3), info.digest, True, False, 2.0)
    assert only(ex.poll(swarm, 3.0), SendResult) == []


def test_nobody_pushes_what_another_reduced() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    ex.result(result(1))
    assert only(ex.poll(swarm, 1.0), SendResult) == []


def test_results_of_two_reducers_are_both_held_and_the_second_is_not_reduced_by_us() -> None:
    ex = exchange(me=3)
    old, new = result(0, label="old"), result(0, label="new")
    ex.result(old)
    ex.result(new)
    assert set(ex.held) == {old, new}
    assert list(ex.held) == sorted(ex.held, key=lambda info: info.digest)


def test_a_description_that_can_not_be_is_not_taken_and_a_later_one_changes_nothing() -> None:
    ex = exchange(me=3)
    for bad in (
        result(0, (7, 1.0)),
        result(9),
        result(0, (0, math.inf)),
        replace(result(0), contributors=()),
    ):
        ex.result(bad)
    assert ex.held == ()
    ex.result(result(0))
    ex.result(replace(result(0), contributors=((1, 1.0),)))
    assert ex.held == (result(0),)


def test_what_its_reducer_is_pushing_is_not_fetched_as_well() -> None:
    """Nor are the others of that reducer, which come after it."""
    ex, swarm = exchange(me=1, reducers=(1, 1)), present(1, 2, 3)
    cut(ex, swarm)
    one, other = result(0), result(1)
    update(swarm, 0.0, says(1), says(2, held=(one, other)), says(3))
    assert only(ex.poll(swarm, 0.0), Fetch) == []
    ex.coming(one.digest, member(2), True, 0.9 * PUSH_S)
    assert only(ex.poll(swarm, 3 * PUSH_S), Fetch) == []
    ex.result(one)
    ex.coming(one.digest, member(2), False, 3 * PUSH_S)
    update(swarm, 3.5 * PUSH_S, says(1), says(2, held=(one, other)), says(3))
    assert only(ex.poll(swarm, 3.9 * PUSH_S), Fetch) == []
    assert [f.digest for f in only(ex.poll(swarm, 4 * PUSH_S), Fetch)] == [other.digest]


def test_results_of_who_still_pushes_contributions_are_not_fetched() -> None:
    """They go the same way after these. The next push begins before the last one is kept."""
    ex, swarm = exchange(me=1, reducers=(1, 1)), present(1, 2, 3)
    cut(ex, swarm)
    one = result(0)
    update(swarm, 0.0, says(1), says(2, held=(one,)), says(3))
    ex.coming("", member(2), True, 0.5 * PUSH_S)
    ex.coming("", member(2), True, 0.9 * PUSH_S)
    ex.coming("", member(2), False, PUSH_S)
    assert only(ex.poll(swarm, 3 * PUSH_S), Fetch) == []
    ex.coming("", member(2), False, 3 * PUSH_S)
    update(swarm, 3.5 * PUSH_S, says(1), says(2, held=(one,)), says(3))
    assert only(ex.poll(swarm, 3.9 * PUSH_S), Fetch) == []
    assert [f.digest for f in only(ex.poll(swarm, 4 * PUSH_S), Fetch)] == [one.digest]


def test_who_pushes_for_ever_is_not_waited_for_for_ever() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    info, now = result(1), PATIENCE * GRACE_S
    update(swarm, 0.0, says(3, held=(info,)))
    assert only(ex.poll(swarm, 0.0), Fetch) == []
    ex.coming(info.digest, member(2), True, 0.0)
    update(swarm, now, says(1), says(2), says(3, held=(info,)))
    assert only(ex.poll(swarm, now), Fetch) == []
    assert [f.source for f in only(ex.poll(swarm, now + 0.1), Fetch)] == [peer_id(3)]


def test_after_the_commit_a_part_that_is_on_its_way_is_awaited() -> None:
    ex, swarm = exchange(me=1, reducers=(1, 1)), present(1, 2, 3)
    cut(ex, swarm)
    one, other = result(0), result(1)
    ex.coming(one.digest, member(2), True, 1.0)
    ex.committed(committed(1, one, other))
    assert ex.awaits(5.0)
    ex.result(one)
    ex.coming(one.digest, member(2), False, 5.0)
    assert ex.awaits(5.0 + 0.9 * PUSH_S)
    assert not ex.awaits(5.0 + PUSH_S)
    ex.result(result(1, label="another"))
    assert ex.held == (one,), "what was not committed is no result any more"
    ex.result(other)
    assert not ex.awaits(5.0)


def test_a_member_fetches_what_another_holds_and_no_push_brought() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    info = result(1)
    update(swarm, 1.0, says(2, held=(info,)))
    assert ex.poll(swarm, 1.0) == []
    assert ex.poll(swarm, 1.0 + PUSH_S - 0.01) == []
    fetch = Fetch(info.digest, info.size, peer_id(2))
    assert ex.poll(swarm, 1.0 + PUSH_S) == [fetch]
    assert ex.poll(swarm, 2.5) == []
    ex.fetched(info.digest, info, 2.6)
    assert ex.held == (info,)
    assert ex.poll(swarm, 3.5) == []


def test_after_a_failure_it_is_fetched_from_the_next_holder() -> None:
    ex, swarm = exchange(me=1), present(1, 2, 3)
    cut(ex, swarm)
    info, now, asked = result(1), 0.0, []
    for _ in range(4):
        update(swarm, now, says(1), says(2, held=(info,)), says(3, held=(info,)))
        for fetch in only(ex.poll(swarm, now), Fetch):
            asked.append(fetch.source)
            ex.fetched(info.digest, None, now)
        now += PUSH_S
    assert asked == [peer_id(2), peer_id(3), peer_id(2)]


def test_what_is_in_a_result_counts_whatever_part_it_was_announced_for() -> None:
    """An announcement names content; whose and which part it is of stands in the content."""
    ex, swarm = exchange(me=1, members=(1, 2), reducers=(1, 1)), present(1, 2)
    cut(ex, swarm)
    info = result(1)
    update(swarm, 0.0, says(2, held=(replace(info.held, part=0),)))
    ex.poll(swarm, 0.0)
    assert ex.held == ()
    assert [f.digest for f in only(ex.poll(swarm, PUSH_S), Fetch)] == [info.digest]
    ex.fetched(info.digest, info, PUSH_S)
    assert ex.held == (info,)
    assert ex.known == {info.digest: info}
    update(swarm, 2.0, says(2, held=(replace(info.held, part=0),)))
    assert only(ex.poll(swarm, 2.0), Fetch) == [], "once is enough"


@pytest.mark.parametrize("more", [{"round": 1}, {"attempt": 1}])
def test_what_is_held_of_another_round_is_not_fetched(more: dict[str, int]) -> None:
    ex = exchange(me=1)
    cut(ex, present(1, 2, 3))
    swarm = present(2, held=(result(1),), **more)
    ex.poll(swarm, 1.0)
    assert only(ex.poll(swarm, 3.0), Fetch) == []


def test_a_fetch_nobody_asked_for_changes_nothing() -> None:
    ex = exchange(me=1)
    ex.fetched("f" * 64, result(0), 1.0)
    assert ex.held == ()
