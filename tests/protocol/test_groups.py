"""One open round of groups at one peer: what is given goes through who gathers, and comes back the same way.

Nine members in three groups (0 3 6, 1 4 7, 2 5 8), peer n at place n. Part 0 is reduced by 0, in round 1
gathered by 4 and 5, and by 3 if the reducer is of another group.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from potluck.protocol.effects import (
    Combine,
    Cut,
    Effect,
    Fetch,
    Note,
    Reduce,
    SendContribution,
    SendPartial,
    SendResult,
)
from potluck.protocol.errand import RETRY_S
from potluck.protocol.exchange import LOOK_S, Exchange
from potluck.protocol.incoming import PUSH_S
from potluck.protocol.swarm import Swarm
from potluck.protocol.view import MAX_WEIGHT, OpenRound
from potluck.wire.messages import Answer
from potluck.wire.records import PartInfo

from .support import BASE, committed, member, only, peer_id, present, result, says, update

GRACE_S = 4.0
EVERYONE = range(9)
YES, SOON = Answer(True), Answer(False, "not here", retry=True)


def round_of(reducers: Sequence[int], groups: int = 3, members: Sequence[int] = EVERYONE) -> OpenRound:
    return OpenRound(1, 0, tuple(member(n) for n in members), tuple(reducers), BASE, GRACE_S, groups)


def exchange(me: int, reducers: Sequence[int] = (0,), groups: int = 3) -> Exchange:
    return Exchange(round_of(reducers, groups), member(me), 0.0)


def cut(
    me: int, swarm: Swarm, *, weight: float = 60.0, reducers: Sequence[int] = (0,)
) -> tuple[Exchange, list[Effect]]:
    """A member after its cut, and what follows from that."""
    ex = exchange(me, reducers)
    assert Cut(1, 0) in ex.poll(swarm, 0.0)
    ex.cut_done(weight)
    return ex, ex.poll(swarm, 0.0)


def without(*gone: int) -> Swarm:
    return present(*(n for n in EVERYONE if n not in gone))


def targets(effects: list[Effect], part: int = 0) -> list[str]:
    return [send.to for send in only(effects, SendContribution) if send.part == part]


def gives(ex: Exchange, *numbers: int, weight: float = 10.0) -> None:
    for n in numbers:
        assert ex.contributed(0, member(n), weight).ok


def combine(*contributors: int) -> Combine:
    return Combine(1, 0, 0, contributors)


def partial(lead: int | None, *abstained: int, to: int = 0) -> SendPartial:
    return SendPartial(1, 0, 0, lead, abstained, peer_id(to))


def gathered(me: int, *others: int, swarm: Swarm, now: float = 0.0) -> Exchange:
    """A member whose group's mean, its own contribution in it, is on its way to the reducer."""
    ex, _ = cut(me, swarm)
    gives(ex, *others)
    everybody = tuple(sorted((me, *others)))
    assert only(ex.poll(swarm, now), Combine) == [combine(*everybody)]
    ex.combined(0, everybody)
    assert only(ex.poll(swarm, now), SendPartial) == [partial(everybody[0])]
    return ex


# -- who gives to whom -------------------------------------------------------------------------------


def test_a_contribution_goes_to_the_reducer_of_the_own_group_or_to_who_gathers_for_it() -> None:
    due = {0: None, 3: 0, 6: 0, 1: 4, 4: None, 7: 4, 2: 5, 5: None, 8: 5}
    for me, to in due.items():
        assert targets(cut(me, without())[1]) == ([] if to is None else [peer_id(to)]), me


def test_at_another_part_another_one_gathers() -> None:
    _, effects = cut(1, without(), reducers=(0, 0, 0, 0))
    assert [targets(effects, part) for part in range(4)] == [[peer_id(4)], [peer_id(7)], [], [peer_id(4)]]


def test_without_groups_all_give_to_the_reducer() -> None:
    for me in range(1, 9):
        ex = exchange(me, groups=1)
        ex.cut_done(60.0)
        assert targets(ex.poll(without(), 0.0)) == [peer_id(0)]


def test_when_who_gathers_dies_the_next_one_of_the_group_gets_it() -> None:
    ex, effects = cut(1, without())
    assert targets(effects) == [peer_id(4)]
    ex.sent(0, peer_id(4), None, True, False, 0.1)
    assert targets(ex.poll(without(4), 1.0)) == [peer_id(7)]
    assert targets(ex.poll(without(4), 1.1)) == []
    assert targets(ex.poll(without(), 2.0)) == [], "who was only thought dead has it already"


def test_of_a_group_that_is_alone_the_last_one_gathers_for_itself() -> None:
    ex, effects = cut(1, without(4, 7))
    assert targets(effects) == []
    assert only(effects, Combine) == [combine(1)]
    ex.combined(0, (1,))
    assert only(ex.poll(without(4, 7), 0.1), SendPartial) == [partial(1)]


def test_only_the_own_group_may_give_to_who_gathers() -> None:
    ex = exchange(4)
    assert ex.offered(0, member(1)).ok
    assert ex.offered(0, member(7)).ok
    for stranger in (0, 2, 3, 5, 6, 8):
        answer = ex.offered(0, member(stranger))
        assert (answer.ok, answer.retry, answer.reason) == (False, True, "round 1 part 0 is not reduced here")


def test_a_reducer_takes_contributions_of_anybody_for_it_may_be_new() -> None:
    ex = exchange(0)
    assert all(ex.offered(0, member(n)).ok for n in EVERYONE)


# -- gathering ---------------------------------------------------------------------------------------


def test_who_gathers_waits_for_its_group_and_sends_on_one_mean() -> None:
    swarm = without()
    ex, effects = cut(4, swarm)
    gives(ex, 1)
    assert only(effects + ex.poll(swarm, 0.1), Combine) == []
    gives(ex, 7)
    assert only(ex.poll(swarm, 0.2), Combine) == [combine(1, 4, 7)]
    assert ex.poll(swarm, 0.3) == []
    ex.combined(0, (1, 4, 7))
    assert ex.poll(swarm, 0.4) == [partial(1)]
    ex.partial_sent(0, 1, peer_id(0), SOON, 1.0)
    assert ex.poll(swarm, 1.0 + RETRY_S) == [partial(1)]
    ex.partial_sent(0, 1, peer_id(0), YES, 2.0)
    assert ex.poll(swarm, 3.0) == []


def test_who_is_dead_is_not_waited_for() -> None:
    swarm = without(7)
    ex, _ = cut(4, swarm)
    gives(ex, 1)
    assert only(ex.poll(swarm, 0.1), Combine) == [combine(1, 4)]


def test_who_lives_is_waited_for_half_of_the_grace_period_and_makes_a_second_mean_later() -> None:
    swarm = without()
    ex, _ = cut(4, swarm)
    gives(ex, 1)
    assert only(ex.poll(swarm, GRACE_S / 2 - 0.01), Combine) == []
    assert only(ex.poll(swarm, GRACE_S / 2), Combine) == [combine(1, 4)]
    ex.combined(0, (1, 4))
    assert only(ex.poll(swarm, 2.1), SendPartial) == [partial(1)]
    gives(ex, 7)
    assert only(ex.poll(swarm, 2.2), Combine) == [combine(7)]
    ex.combined(0, (7,))
    assert only(ex.poll(swarm, 2.3), SendPartial) == [partial(7)]


def test_what_comes_while_a_mean_is_made_is_in_the_next_one() -> None:
    swarm = without()
    ex, _ = cut(4, swarm)
    gives(ex, 1)
    assert only(ex.poll(swarm, 2.0), Combine) == [combine(1, 4)]
    gives(ex, 7)
    assert only(ex.poll(swarm, 2.1), Combine) == []
    ex.combined(0, (1, 4))
    assert only(ex.poll(swarm, 2.2), Combine) == [combine(7)]


def test_who_gives_nothing_is_told_to_the_reducer_with_the_mean() -> None:
    swarm = without()
    ex, _ = cut(4, swarm)
    gives(ex, 1)
    gives(ex, 7, weight=0.0)
    assert only(ex.poll(swarm, 0.1), Combine) == [combine(1, 4)]
    ex.combined(0, (1, 4))
    assert only(ex.poll(swarm, 0.2), SendPartial) == [partial(1, 7)]


def test_when_a_whole_group_gives_nothing_the_reducer_is_told_so() -> None:
    swarm = without()
    ex, effects = cut(4, swarm, weight=0.0)
    assert only(effects, SendPartial) == []
    gives(ex, 1, 7, weight=0.0)
    effects = ex.poll(swarm, 0.1)
    assert (only(effects, Combine), only(effects, SendPartial)) == ([], [partial(None, 1, 4, 7)])
    assert only(ex.poll(swarm, 0.2), SendPartial) == []


def test_who_sent_garbage_is_left_out_and_told_as_giving_nothing() -> None:
    swarm = without()
    ex, _ = cut(4, swarm)
    gives(ex, 1, 7)
    assert only(ex.poll(swarm, 0.1), Combine) == [combine(1, 4, 7)]
    ex.combined(0, (1, 4), refused=(7,))
    effects = ex.poll(swarm, 0.2)
    assert only(effects, Combine) == []
    assert only(effects, SendPartial) == [partial(1, 7)]
    ex.partial_sent(0, 1, peer_id(0), YES, 0.3)
    assert only(ex.poll(swarm, 9.0), Combine) == []


def test_nothing_is_sent_on_to_a_reducer_that_is_dead() -> None:
    swarm = without(0)
    ex, _ = cut(4, swarm)
    gives(ex, 1, 7)
    assert ex.poll(swarm, 9.0) == []


# -- two that gather ---------------------------------------------------------------------------------


def test_who_takes_over_combines_what_comes_to_it_and_the_reducer_says_whom_it_has() -> None:
    """The one before died, and had sent on some of it."""
    ex = gathered(7, 1, swarm=without(4))
    ex.partial_sent(0, 1, peer_id(0), Answer(False, "counted", known=(1,)), 1.0)
    assert only(ex.poll(without(4), 1.0), Combine) == [combine(7)]
    ex.combined(0, (7,))
    assert only(ex.poll(without(4), 1.1), SendPartial) == [partial(7)]


def test_who_takes_over_has_nothing_to_do_when_the_one_before_sent_on_all() -> None:
    ex = gathered(7, 1, swarm=without(4))
    ex.partial_sent(0, 1, peer_id(0), Answer(False, "counted", known=(1, 7)), 1.0)
    assert ex.poll(without(4), 9.0) == []


def test_what_comes_to_one_that_is_not_its_turn_is_sent_on_at_once_without_its_own() -> None:
    """The sender takes for dead whom we do not."""
    swarm = without()
    ex, effects = cut(7, swarm)
    assert targets(effects) == [peer_id(4)]
    gives(ex, 1)
    assert only(ex.poll(swarm, 0.1), Combine) == [combine(1)]
    ex.combined(0, (1,))
    assert only(ex.poll(swarm, 0.2), SendPartial) == [partial(1)]


def test_who_gathers_and_is_followed_by_another_does_not_send_its_own_twice() -> None:
    ex = gathered(7, 1, swarm=without(4))
    ex.partial_sent(0, 1, peer_id(0), YES, 0.5)
    effects = ex.poll(without(), 1.0)
    assert only(effects, Combine) == []
    assert targets(effects) == [peer_id(4)], "the reducer counts it once, whoever sends it on"


# -- reducing ----------------------------------------------------------------------------------------


def take(ex: Exchange, *numbers: int, silent: Sequence[int] = (), by: int | None = None) -> Answer:
    """The mean of what some gave comes from who gathered it."""
    sender = by if by is not None else min(numbers)
    return ex.partial(0, member(sender), dict.fromkeys(numbers, 10.0), silent)


def test_a_reducer_waits_for_its_group_and_for_the_means_of_the_others() -> None:
    swarm = without()
    ex, _ = cut(0, swarm)
    gives(ex, 3, 6)
    assert take(ex, 1, 4, 7).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == []
    assert take(ex, 2, 5, silent=[8]).ok
    assert only(ex.poll(swarm, 0.2), Reduce) == [Reduce(1, 0, 0, (0, 3, 6), (1, 2))]


def test_late_ones_of_a_group_make_a_second_mean_that_counts_as_well() -> None:
    swarm = without()
    ex, _ = cut(0, swarm)
    gives(ex, 3, 6)
    for some in ((1, 4), (2, 5, 8), (7,)):
        assert only(ex.poll(swarm, 0.1), Reduce) == []
        assert take(ex, *some).ok
    assert only(ex.poll(swarm, 0.2), Reduce) == [Reduce(1, 0, 0, (0, 3, 6), (1, 2, 7))]


def test_a_group_of_which_nobody_is_heard_is_waited_for_until_the_grace_period_ends() -> None:
    swarm = without()
    ex, _ = cut(0, swarm)
    gives(ex, 3, 6)
    assert take(ex, 1, 4, 7).ok
    update(swarm, 3.0, *(says(n) for n in EVERYONE))
    assert only(ex.poll(swarm, GRACE_S - 0.01), Reduce) == []
    effects = ex.poll(swarm, GRACE_S)
    assert only(effects, Reduce) == [Reduce(1, 0, 0, (0, 3, 6), (1,))]
    assert Note("round 1 part 0: reduced without peer2, peer5, peer8, not heard in 4 s") in effects


def test_a_reducer_with_only_means_of_others_reduces_those() -> None:
    swarm = without(3, 6)
    ex, _ = cut(0, swarm, weight=0.0)
    assert take(ex, 1, 4, 7).ok
    assert take(ex, silent=[2, 5, 8], by=5).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == [Reduce(1, 0, 0, (), (1,))]


def test_a_mean_with_anybody_who_is_counted_already_is_refused_and_named() -> None:
    ex = exchange(0)
    assert take(ex, 1, 4).ok
    again = take(ex, 1, 4, 7, by=7)
    assert (again.ok, again.retry, again.known) == (False, False, (1, 4))
    assert again.reason == "round 1 part 0: 2 of 3 are counted already"
    assert take(ex, 7).ok
    gives(ex, 3)
    assert take(ex, 3, 6).known == (3,), "it gave straight to us"
    twice = ex.contributed(0, member(4), 10.0)
    assert twice.reason == "round 1 part 0: a second contribution of one member"


@pytest.mark.parametrize("some", [(1, 2), (0, 3), (2, 5), (4, 1), (1, 10)])
def test_a_mean_of_others_than_the_senders_group_each_once_is_refused(some: tuple[int, ...]) -> None:
    answer = exchange(0).partial_offered(0, member(4), dict.fromkeys(some, 10.0))
    assert answer == Answer(False, "round 1 part 0: not members of one group, each once")


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, 2.0 * MAX_WEIGHT])
def test_a_mean_with_a_weight_that_is_no_number_of_tokens_is_refused(weight: float) -> None:
    answer = exchange(0).partial_offered(0, member(4), {1: 10.0, 4: weight})
    assert answer == Answer(False, "round 1 part 0: a weight that is no number of tokens")


def test_a_mean_is_refused_by_who_is_no_reducer_and_of_who_is_no_member() -> None:
    assert take(exchange(1), 2, 5) == Answer(False, "round 1 part 0 is not reduced here", retry=True)
    assert take(exchange(0, groups=1), 1, 4) == Answer(
        False, "round 1 part 0 is not reduced here", retry=True
    )
    strange = Answer(False, "round 1 has no such part or member")
    assert exchange(0).partial_offered(1, member(1), {1: 10.0}) == strange
    assert exchange(0).partial_offered(0, member(9), {9: 10.0}) == strange
    assert exchange(0).partial_offered(0, member(1, "restarted"), {1: 10.0}) == strange


def test_a_mean_that_comes_after_the_reduction_is_late() -> None:
    swarm = without(1, 4, 7)
    ex, _ = cut(0, swarm)
    gives(ex, 3, 6)
    assert take(ex, 2, 5, 8).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == [Reduce(1, 0, 0, (0, 3, 6), (2,))]
    late = Answer(False, "round 1 part 0 was reduced already: late")
    assert take(ex, 1, 4) == late
    ex.reduced(0, result(0))
    assert take(ex, 1, 4) == late


def test_word_of_who_gives_nothing_counts_for_the_own_group_and_not_against_who_gave() -> None:
    swarm = without(6)
    ex, _ = cut(0, swarm)
    gives(ex, 3)
    assert take(ex, 1, silent=[4, 2, 3], by=1).ok
    assert take(ex, 5, silent=[5, 8], by=5).ok
    update(swarm, 3.9, *(says(n) for n in EVERYONE if n != 6))
    assert only(ex.poll(swarm, GRACE_S - 0.01), Reduce) == [], "2 and 7 are still waited for"
    assert take(ex, 7).ok
    assert take(ex, 2).ok
    assert only(ex.poll(swarm, GRACE_S - 0.01), Reduce) == [Reduce(1, 0, 0, (0, 3), (1, 2, 5, 7))]


def test_a_mean_that_is_garbage_is_left_out_and_not_waited_for() -> None:
    swarm = without()
    ex, _ = cut(0, swarm)
    gives(ex, 3, 6)
    assert take(ex, 1, 4, 7).ok
    assert take(ex, 2, 5, 8).ok
    assert only(ex.poll(swarm, 0.1), Reduce) == [Reduce(1, 0, 0, (0, 3, 6), (1, 2))]
    ex.reduced(0, None, refused=(1, 4, 7))
    assert only(ex.poll(swarm, 0.2), Reduce) == [Reduce(1, 0, 0, (0, 3, 6), (2,))]


# -- another reducer ---------------------------------------------------------------------------------


def test_a_new_reducer_gets_the_mean_anew() -> None:
    ex = gathered(4, 1, 7, swarm=without())
    ex.partial_sent(0, 1, peer_id(0), YES, 0.5)
    ex.follow(round_of((2,)), 10.0)
    swarm = present(*range(1, 9), at=10.0)
    assert only(ex.poll(swarm, 10.0), Combine) == [combine(1, 4, 7)]
    ex.combined(0, (1, 4, 7))
    assert only(ex.poll(swarm, 10.1), SendPartial) == [partial(1, to=2)]


def test_a_group_that_is_not_the_reducers_any_more_gathers() -> None:
    ex, effects = cut(6, without())
    assert targets(effects) == [peer_id(0)]
    ex.follow(round_of((2,)), 1.0)
    assert targets(ex.poll(without(0), 1.0)) == [peer_id(3)]
    third, effects = cut(3, without())
    assert third.offered(0, member(6)).retry
    third.follow(round_of((2,)), 1.0)
    gives(third, 6)
    assert only(third.poll(without(0), 1.1), Combine) == [combine(3, 6)]


def test_a_reducer_of_the_own_group_gets_it_straight_and_what_was_gathered_stays() -> None:
    ex = gathered(4, 1, 7, swarm=without())
    ex.follow(round_of((7,)), 1.0)
    effects = ex.poll(without(0), 1.0)
    assert targets(effects) == [peer_id(7)]
    assert only(effects, Combine) == only(effects, SendPartial) == []
    assert ex.offered(0, member(1)).reason == "round 1 part 0: a second contribution of one member"


def test_who_gathered_and_is_the_reducer_now_has_its_group_already() -> None:
    swarm = present(*range(1, 9), at=1.0)
    ex = gathered(4, 1, 7, swarm=without())
    ex.follow(round_of((4,)), 1.0)
    assert take(ex, 3, 6).ok
    assert only(ex.poll(swarm, 1.1), Reduce) == []
    assert take(ex, 2, 5, 8).ok
    assert only(ex.poll(swarm, 1.2), Reduce) == [Reduce(1, 0, 0, (1, 4, 7), (2, 3))]


def test_a_new_reducer_means_a_new_half_of_the_grace_period() -> None:
    ex, _ = cut(4, without())
    gives(ex, 1)
    ex.follow(round_of((2,)), 1.9)
    swarm = present(*range(1, 9), at=1.9)
    assert only(ex.poll(swarm, 1.9 + GRACE_S / 2 - 0.01), Combine) == []
    assert only(ex.poll(swarm, 1.9 + GRACE_S / 2), Combine) == [combine(1, 4)]


def test_the_answer_of_the_reducer_before_is_not_that_of_the_new_one() -> None:
    """It was alive, and followed the ledger a little later than we."""
    swarm = without()
    ex = gathered(4, 1, 7, swarm=swarm)
    ex.follow(round_of((2,)), 1.0)
    assert only(ex.poll(swarm, 1.0), Combine) == [combine(1, 4, 7)]
    ex.combined(0, (1, 4, 7))
    assert only(ex.poll(swarm, 1.0), SendPartial) == [partial(1, to=2)]
    ex.partial_sent(0, 1, peer_id(2), SOON, 1.1)
    ex.partial_sent(0, 1, peer_id(0), YES, 1.2)
    assert only(ex.poll(swarm, 2.0), SendPartial) == [partial(1, to=2)]


# -- spreading ---------------------------------------------------------------------------------------

INFO = result(0, *((n, 10.0) for n in EVERYONE))


def reduced() -> Exchange:
    ex, _ = cut(0, without())
    gives(ex, 3, 6)
    assert take(ex, 1, 4, 7).ok
    assert take(ex, 2, 5, 8).ok
    assert only(ex.poll(without(), 0.1), Reduce)
    ex.reduced(0, INFO)
    return ex


def holder(me: int, info: PartInfo = INFO) -> Exchange:
    ex, _ = cut(me, without())
    ex.result(info)
    return ex


def pushed(effects: list[Effect]) -> list[str]:
    return sorted(push.to for push in only(effects, SendResult))


def test_a_reducer_gives_the_result_to_its_group_and_to_one_of_each_other() -> None:
    ex = reduced()
    assert pushed(ex.poll(without(), 0.2)) == [peer_id(n) for n in (3, 4, 5, 6)]
    assert ex.poll(without(), 0.3) == []
    ex.sent(0, peer_id(4), INFO.digest, False, True, 1.0)
    assert pushed(ex.poll(without(4), 1.0 + RETRY_S)) == [peer_id(7)], "who spreads it for a dead one"


def test_who_gathers_for_a_group_gives_the_result_to_that() -> None:
    assert pushed(holder(4).poll(without(), 0.2)) == [peer_id(1), peer_id(7)]
    assert pushed(holder(5).poll(without(2), 0.2)) == [peer_id(8)]
    for me in (1, 2, 6, 7, 8):
        assert pushed(holder(me).poll(without(), 0.2)) == [], me
    assert pushed(holder(7).poll(without(4), 0.2)) == [peer_id(1)]
    assert pushed(holder(3).poll(without(0), 0.2)) == [peer_id(6)], "the reducer died, and 3 has its result"


def test_nobody_else_spreads_a_result_in_the_group_of_a_reducer_that_lives() -> None:
    swarm = without()
    assert pushed(holder(3).poll(swarm, 0.2)) != [], "it may be that of an earlier one, whose part this was"
    update(swarm, 0.2, says(0, held=(INFO,)))
    assert pushed(holder(3).poll(swarm, 0.2)) == []


def test_nothing_is_given_to_who_says_that_it_has_it_or_is_past_it() -> None:
    swarm = without()
    update(swarm, 0.1, says(3, held=(INFO,)), says(4, round=1), says(5, attempt=1, held=(INFO,)))
    assert pushed(reduced().poll(swarm, 0.2)) == [peer_id(5), peer_id(6)]


def test_after_the_commit_the_result_that_counts_is_spread_on_and_no_other() -> None:
    other = result(0, (0, 10.0), label="other")
    ex = holder(4)
    ex.result(other)
    ex.committed(committed(1, INFO))
    assert ex.held == (INFO,)
    assert {push.digest for push in only(ex.spread(without(), 0.2), SendResult)} == {INFO.digest}
    lacks = holder(4, other)
    lacks.committed(committed(1, INFO))
    assert lacks.held == ()
    assert lacks.spread(without(), 0.2) == []
    lacks.result(INFO)
    assert pushed(lacks.spread(without(), 0.3)) == [peer_id(1), peer_id(7)], "it came after the commit"


def test_two_holders_are_known_at_once_and_the_others_with_their_next_beat() -> None:
    swarm = without()
    assert [n for n in EVERYONE if exchange(n).vouches(0, swarm, 0.0)] == [0, 4]
    assert [n for n in EVERYONE if exchange(n).vouches(0, without(4), 0.0)] == [0, 7]
    assert [n for n in EVERYONE if exchange(n, (8,)).vouches(0, swarm, 0.0)] == [3, 8]
    assert all(exchange(n, groups=1).vouches(0, swarm, 0.0) for n in EVERYONE)


# -- fetching ----------------------------------------------------------------------------------------


def test_what_no_push_brought_is_fetched_from_the_own_group_and_from_reducers_only() -> None:
    ex, _ = cut(1, without())
    strangers = present(*EVERYONE)
    update(strangers, 0.0, *(says(n, held=(INFO,)) for n in (2, 3, 5, 6, 8)))
    for now in (0.5, 0.5 + PUSH_S, 9.0):
        assert only(ex.poll(strangers, now), Fetch) == []
    swarm, now, asked = present(*EVERYONE, at=20.0), 20.0, []
    update(swarm, now, *(says(n, held=(INFO,)) for n in (0, 2, 7)))
    while len(asked) < 4:
        for fetch in only(ex.poll(swarm, now), Fetch):
            assert fetch.digest == INFO.digest
            asked.append(fetch.source)
            ex.fetched(INFO.digest, None, now)
        now += LOOK_S
        update(swarm, now, *(says(n, held=(INFO,)) for n in (0, 2, 7)))
    assert set(asked) == {peer_id(0), peer_id(7)}
    assert asked[:2] == asked[2:], "each in turn"


def test_one_looks_for_what_others_hold_not_more_often_than_there_is_news() -> None:
    ex, _ = cut(1, without())
    swarm = without()
    update(swarm, 0.1, says(7, held=(INFO,)))
    assert ex.poll(swarm, LOOK_S) == []
    assert only(ex.poll(swarm, LOOK_S + PUSH_S), Fetch) == [Fetch(INFO.digest, INFO.size, peer_id(7))]
    ex.fetched(INFO.digest, None, LOOK_S + PUSH_S)
    assert only(ex.poll(swarm, LOOK_S + PUSH_S + LOOK_S - 0.01), Fetch) == []


# -- a whole round -----------------------------------------------------------------------------------


def settle(members: dict[int, Exchange], swarm: Swarm, now: float = 0.0) -> list[Effect]:
    """Whatever anybody does arrives at once; until there is nothing left to do."""
    done: list[Effect] = []
    while effects := [(n, effect) for n, ex in members.items() for effect in ex.poll(swarm, now)]:
        for n, effect in effects:
            done.append(effect)
            arrive(members, n, effect, now)
    return done


def arrive(members: dict[int, Exchange], n: int, effect: Effect, now: float) -> None:
    me, ex = member(n), members[n]
    match effect:
        case Cut():
            ex.cut_done(10.0)
        case SendContribution():
            answer = members[int(effect.to, 16)].contributed(effect.part, me, 10.0)
            ex.sent(effect.part, effect.to, None, answer.ok, answer.retry, now)
        case Combine():
            ex.combined(effect.part, effect.contributors)
        case SendPartial():
            assert effect.lead is not None
            some = ex._parts[effect.part].gathering.partials[effect.lead].contributors
            weights = dict.fromkeys(sorted(some), 10.0)
            answer = members[int(effect.to, 16)].partial(effect.part, me, weights, effect.abstained)
            ex.partial_sent(effect.part, effect.lead, effect.to, answer, now)
        case Reduce():
            state = ex._parts[effect.part]
            some = frozenset(effect.contributors).union(*(state.partials[lead] for lead in effect.partials))
            ex.reduced(effect.part, result(effect.part, *((i, 10.0) for i in sorted(some))))
        case SendResult():
            members[int(effect.to, 16)].result(ex.known[effect.digest])
            ex.sent(effect.part, effect.to, effect.digest, True, False, now)


@pytest.mark.parametrize("size", [5, 9, 10, 33, 100])
@pytest.mark.parametrize("gone", [(), (2,), (0, 3)])
def test_a_round_counts_all_that_live_once_and_everybody_gets_every_result(
    size: int, gone: tuple[int, ...]
) -> None:
    groups, reducers = round(size**0.5), (1, 4)
    open_ = round_of(reducers, groups, range(size))
    living = [n for n in range(size) if n not in gone]
    members = {n: Exchange(open_, member(n), 0.0) for n in living}
    done = settle(members, present(*living))
    for ex in members.values():
        assert [tuple(i for i, _ in info.contributors) for info in ex.held] == [tuple(living)] * 2
    sent = len(only(done, SendContribution)) + len(only(done, SendPartial))
    assert sent == len(reducers) * (len(living) - 1), "each but the reducer sends on one thing once"
    assert len(only(done, SendPartial)) <= len(reducers) * (groups - 1)
    assert len(only(done, SendResult)) <= len(reducers) * (len(living) + size // groups)


# -- whatever happens --------------------------------------------------------------------------------


class Nine:
    """Nine members, what lies at each, and what gets lost between them. Who reduces sees everybody."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calm = False
        self.ledger = [round_of((0, 4))]
        self.seen = [0] * 9
        self.members = [Exchange(self.ledger[0], member(n), 0.0) for n in EVERYONE]
        self.combined: dict[tuple[int, int, int], frozenset[int]] = {}
        self.taken: dict[tuple[int, int, int], frozenset[int]] = {}

    def chance(self) -> bool:
        return not self.calm and self.random.random() < 0.25

    def step(self, now: float) -> None:
        if self.chance():
            self.ledger.append(round_of((self.random.randrange(9), self.random.randrange(9))))
        for n, ex in enumerate(self.members):
            if self.seen[n] < len(self.ledger) - 1 and not self.chance():
                for open_ in self.ledger[self.seen[n] + 1 :]:  # as a peer follows records
                    ex.follow(open_, now)
                self.seen[n] = len(self.ledger) - 1
            gone = [m for m in EVERYONE if m != n and not ex.reduces_any and self.chance()]
            for effect in ex.poll(present(*(m for m in EVERYONE if m not in gone), at=now), now):
                self.happen(n, effect, now)

    def happen(self, n: int, effect: Effect, now: float) -> None:
        """It arrives unless it is lost, and then the answer may be lost."""
        ex, lost, silence = self.members[n], self.chance(), self.chance()
        match effect:
            case Cut():
                ex.cut_done(10.0)
            case SendContribution(part=part, to=to):
                answer = SOON if lost else self.members[int(to, 16)].contributed(part, member(n), 10.0)
                answer = SOON if silence else answer
                ex.sent(part, to, None, answer.ok, answer.retry, now)
            case Combine(part=part, contributors=some):
                self.combined[n, part, some[0]] = frozenset(some)
                ex.combined(part, some)
            case SendPartial(part=part, lead=lead, to=to):
                assert lead is not None
                some = tuple(sorted(self.combined[n, part, lead]))
                weights = dict.fromkeys(some, 10.0)
                target = self.members[int(to, 16)]
                answer = SOON if lost else target.partial(part, member(n), weights, effect.abstained)
                if answer.ok:
                    self.taken[int(to, 16), part, lead] = frozenset(some)
                ex.partial_sent(part, lead, to, SOON if silence else answer, now)
            case Reduce(part=part, contributors=given, partials=leads):
                everybody = [*given, *(i for lead in leads for i in self.taken[n, part, lead])]
                assert sorted(everybody) == list(EVERYONE), "each once"
                ex.reduced(part, result(part, *((i, 10.0) for i in EVERYONE)))
            case SendResult(part=part, digest=name, to=to):
                if not lost:
                    self.members[int(to, 16)].result(ex.known[name])
                ex.sent(part, to, name, not (lost or silence), lost or silence, now)


@settings(max_examples=150, deadline=None)
@example(98733)
@given(st.integers(0, 1 << 32))
def test_each_counts_once_whoever_gathers_and_reduces_and_whatever_is_lost(seed: int) -> None:
    """Members are taken for dead by some and not by others, parts change hands, messages and answers are
    lost; and then all is well for half of the grace period, and everybody gets a result with everybody in it.
    """
    nine = Nine(seed)
    for tick in range(6):
        nine.step(0.3 * tick)
    nine.calm = True
    for tick in range(60):
        nine.step(1.8 + 0.1 * tick)
    everyone = tuple((n, 10.0) for n in EVERYONE)
    for ex in nine.members:
        assert {info.part: info.contributors for info in ex.held} == {0: everyone, 1: everyone}
