"""The steward's decisions, each with the words that users read."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from potluck.protocol.steward import (
    PATIENT_S,
    SETTLE_S,
    Decision,
    Rules,
    Times,
    agree_on_snapshot,
    decide,
)
from potluck.protocol.swarm import EXPIRY_S, Swarm
from potluck.protocol.view import MAX_WEIGHT, RunView
from potluck.wire.codec import decode
from potluck.wire.messages import Progress
from potluck.wire.records import (
    Body,
    Chain,
    Commit,
    Entry,
    Finish,
    Grant,
    Held,
    Open,
    PartInfo,
    Reassign,
    Record,
    Snapshot,
    manifest,
)

from .support import (
    BASE,
    committed,
    genesis,
    heard,
    known,
    member,
    moved,
    opened,
    peer_id,
    result,
    says,
    snapshot,
    view_of,
)

RULES = Rules(round_tokens=200, grace_s=3.0, end_tokens=0, end_rounds=0, round_bytes=1000)
START = Times(committed=0.0, opened=0.0)
R0, R1 = result(0), result(1)


KNOWN = known(R0, R1)


def decided(
    view: RunView,
    swarm: Swarm,
    now: float = 1.0,
    rules: Rules = RULES,
    times: Times = START,
    here: dict[str, PartInfo] = KNOWN,
) -> Decision:
    decision = decide(view, swarm, rules, times, now, here)
    if decision.body is not None:
        # Whatever is decided can be written, read, and stands where it is written.
        record: Record = decode(Chain().next("0" * 64, decision.body), Record)
        assert record.body == decision.body
        assert len(decision.body.reason) <= 2000
    if isinstance(decision.body, Commit):
        return Decision(decision.body.spelt_out(), decision.reason)
    return decision


def holding(n: int, *infos: PartInfo | Held, **more: Any) -> Progress:
    return says(n, held=infos, **more)


# -- begin -------------------------------------------------------------------------------------------


def test_nothing_is_decided_before_the_first_record_and_after_the_last() -> None:
    swarm = heard(says(1, tokens=1e9))
    assert decided(RunView(), swarm) == Decision(None, "waiting for the run's first record")
    over = view_of(genesis(), Finish(0, "enough tokens"))
    assert decided(over, swarm) == Decision(None, "the run is over: enough tokens")


def test_a_round_opens_when_the_swarm_has_done_its_tokens() -> None:
    view = view_of(genesis())
    few = decided(view, heard(says(1), says(2, tokens=99.0)))
    assert few == Decision(None, "199 of 200 tokens done by 2 of 2 peers")
    opens = decided(view, heard(says(2), says(1), says(3, phase="following"), says(4, phase="joining")))
    assert opens.reason == "200 of 200 tokens done by peer1, peer2"
    assert opens.body == Open(1, 0, (member(1), member(2)), (0, 1), BASE, 3.0, opens.reason)


LEAST = Rules(200, 3.0, 0, 0, 1000, least_steps=30)


def test_a_round_is_no_shorter_than_the_least_steps() -> None:
    """As a swarm grows, its tokens are done in fewer steps each."""
    view = view_of(genesis())
    short = heard(says(1, tokens=150.0, steps=29), says(2, tokens=150.0, steps=30))
    waits = decided(view, short, rules=LEAST)
    said = "300 of 200 tokens done by 2 of 2 peers, 29.5 of at least 30 steps each"
    assert waits == Decision(None, said)
    assert isinstance(decided(view, short).body, Open)
    opens = decided(view, heard(*(says(n, tokens=150.0, steps=30) for n in (1, 2))), rules=LEAST)
    assert isinstance(opens.body, Open)
    assert opens.reason == "300 of 200 tokens done by peer1, peer2, 30.0 of at least 30 steps each"
    assert decided(view, heard(says(1, tokens=199.0, steps=300)), rules=LEAST).body is None, (
        "tokens count too"
    )


def test_who_says_that_it_did_all_in_no_step_holds_up_no_round_for_ever() -> None:
    liar = says(9, tokens=1e12, steps=0)
    honest = [says(n, tokens=100.0, steps=45) for n in range(1, 6)]
    assert isinstance(decided(view_of(genesis()), heard(liar, *honest), rules=LEAST).body, Open)


@pytest.mark.parametrize("others", [0, 1, 5])
def test_slow_peers_and_newcomers_keep_no_round_from_its_least_steps(others: int) -> None:
    """Each counts by its tokens, and they have few."""
    slow = [says(n, tokens=10.0, steps=1) for n in range(2, 2 + others)]
    fresh = says(9, tokens=0.0, steps=0)
    swarm = heard(says(1, tokens=450.0, steps=45), *slow, fresh)
    opens = decided(view_of(genesis()), swarm, rules=LEAST)
    assert isinstance(opens.body, Open)
    assert len(opens.body.members) == 2 + others


@pytest.mark.parametrize("idle_s", [0.0, 30.0])
def test_when_there_is_no_more_data_a_round_may_be_shorter(idle_s: float) -> None:
    """Even if one that stands still has some of it: who waits for data does no further step."""
    first = replace(genesis(), blocks=10, epochs=1)
    shares = ((member(1), 6), (member(2), 4))
    view = view_of(first, Grant((), shares, "data"), opened(), committed())
    at_end, stands = (
        says(1, round=1, tokens=250.0, steps=5, waiting=True),
        says(2, round=1, tokens=0.0, idle_s=idle_s),
    )
    decision = decided(view, heard(at_end, stands), now=SETTLE_S, rules=LEAST)
    assert isinstance(decision.body, Open) == (idle_s > 0), decision.reason
    both = heard(at_end, says(2, round=1, tokens=20.0, steps=2, waiting=True))
    assert isinstance(decided(view, both, now=SETTLE_S, rules=LEAST).body, Open)
    busy = heard(at_end, says(2, round=1, tokens=20.0, steps=2))
    assert decided(view, busy, now=SETTLE_S, rules=LEAST).body is None


def test_while_there_is_data_to_lease_who_waits_for_it_goes_on_to_the_least_steps() -> None:
    first = replace(genesis(), blocks=10, epochs=1)
    view = view_of(first, Grant((), ((member(1), 6),), "data"), opened(), committed())
    swarm = heard(says(1, round=1, tokens=250.0, steps=5, waiting=True))
    assert decided(view, swarm, now=SETTLE_S, rules=LEAST).body is None


def test_the_run_ends_with_its_tokens_whatever_its_rounds_are() -> None:
    view = view_of(genesis(), opened(), committed())
    ended = decided(view, heard(says(1, round=1)), rules=Rules(200, 3.0, 100, 0, 1000, least_steps=30))
    assert isinstance(ended.body, Finish)


def test_a_joiner_is_waited_for_by_the_work_of_a_round_of_least_steps() -> None:
    """Which has more tokens than the recipe's: a tenth of its training is longer."""
    view = view_of(genesis(), opened(), committed())
    joiner = says(3, phase="joining", round=-1, eta_s=100.0, state="", name="carol")
    for steps, waits in ((30, True), (32, True), (34, False)):
        trainers = [says(n, round=1, tokens=20.0 * steps, steps=steps, tokens_per_s=0.5) for n in (1, 2)]
        found = decided(view, heard(*trainers, joiner), now=SETTLE_S, rules=LEAST)
        assert (found.body is None) == waits, (steps, found.reason)


def test_the_names_of_a_large_swarm_are_counted_instead() -> None:
    opens = decided(view_of(genesis()), heard(*(says(n, tokens=50.0) for n in range(1, 8))))
    assert opens.reason == "350 of 200 tokens done by 7 peers"


def test_one_that_has_just_come_is_a_member_before_its_first_tokens() -> None:
    view = view_of(genesis(), opened(), committed())
    swarm = heard(says(1, round=1, tokens=300), says(2, round=1, tokens=0))
    opens = decided(view, swarm, now=SETTLE_S)
    assert isinstance(opens.body, Open)
    assert opens.body.members == (member(1), member(2))


def test_who_is_behind_drifted_or_stands_still_is_no_member() -> None:
    view = view_of(genesis(), opened(), committed())
    swarm = heard(
        says(1, round=1, tokens=300),
        says(2, round=1, state="f" * 64, tokens=300),
        says(3, round=1, tokens=300, idle_s=30),
        says(4, round=0, tokens=300),
        says(5, round=1, phase="leaving", tokens=300),
    )
    opens = decided(view, swarm, now=SETTLE_S)
    assert isinstance(opens.body, Open)
    assert opens.body.members == (member(1),)


def test_the_next_round_waits_a_little_for_peers_that_still_apply_the_last_one() -> None:
    view = view_of(genesis(), opened(), committed())
    swarm = heard(says(1, round=1, tokens=300), says(2, round=0))
    waits = decided(view, swarm, now=SETTLE_S - 0.1)
    assert waits == Decision(None, "peer2 still applying round 1")
    assert isinstance(decided(view, swarm, now=SETTLE_S).body, Open)


@pytest.mark.parametrize(
    "swarm",
    [heard(), heard(says(1, phase="following")), heard(says(1, phase="joining")), heard(says(1, state=""))],
)
def test_without_a_peer_that_trains_nothing_opens(swarm: Swarm) -> None:
    assert decided(view_of(genesis()), swarm) == Decision(None, "waiting for a peer that trains")


def test_parts_stay_with_their_reducers() -> None:
    view = view_of(genesis(), opened(reducers=(1, 0)), committed())
    opens = decided(view, heard(says(1, round=1), says(2, round=1)))
    assert isinstance(opens.body, Open)
    assert opens.body.reducers == (1, 0)


@pytest.mark.parametrize(
    ("more", "grace_s"),
    [
        ({}, 3.0),
        ({"step_s": 0.5}, 4.0),
        ({"uplink": 1000.0}, 5.0),
        ({"step_s": 1.0, "uplink": 1000.0}, 7.0),
        ({"step_s": 1e9}, 3.0 + PATIENT_S),
        ({"step_s": math.inf}, 3.0 + PATIENT_S),
        ({"step_s": math.nan}, 3.0),
        ({"step_s": -5.0}, 3.0),
        ({"uplink": 1e-300}, 3.0 + PATIENT_S),
        ({"uplink": math.nan}, 3.0),
        ({"downlink": 1000.0}, 5.0),
        ({"uplink": 500.0, "downlink": 1000.0}, 7.0),
        ({"uplink": 1000.0, "downlink": 250.0}, 11.0),
        ({"rtt_s": 0.25}, 4.0),
        ({"rtt_s": math.nan}, 3.0),
    ],
)
def test_grace_follows_steps_and_links_within_bounds(more: dict[str, float], grace_s: float) -> None:
    opens = decided(view_of(genesis()), heard(says(1), says(2, **more)))
    assert isinstance(opens.body, Open)
    assert opens.body.grace_s == grace_s
    assert view_of(genesis(), opens.body).open is not None


LINKED = Rules(round_tokens=200, grace_s=3.0, end_tokens=0, end_rounds=0, round_bytes=1000)


def linked(n: int, rate: float, **more: Any) -> Progress:
    return says(n, **{"round": 1, "tokens": 300, "uplink": rate, "downlink": 2 * rate} | more)


def after_an_even_round(parts: int = 8, members: int = 4) -> RunView:
    reducers = tuple(part % members for part in range(parts))
    first = opened(members=range(1, members + 1), reducers=reducers)
    return view_of(genesis(parts), first, committed(1, *(result(part) for part in range(parts))))


def test_parts_move_from_a_thin_link_and_the_record_says_why() -> None:
    swarm = heard(*(linked(n, 5000.0) for n in (1, 2, 3)), linked(4, 500.0))
    opens = decided(after_an_even_round(), swarm, now=SETTLE_S, rules=LINKED)
    assert isinstance(opens.body, Open)
    assert opens.body.reducers == (0, 1, 2, 0, 0, 1, 2, 1)
    assert opens.body.reason == (
        "1,200 of 200 tokens done by peer1, peer2, peer3, peer4; by their links peer4 (0.0005 MB/s) reduces "
        "0 of 8, not 2, peer1 (0.005 MB/s) reduces 3 of 8, not 2, peer2 (0.005 MB/s) reduces 3 of 8, not 2: "
        "about 2.0 s on the wire instead of 3.0"
    )
    # The thin link has its own contribution to carry, and twice the time for it.
    assert opens.body.grace_s == 3.0 + 2 * 2.0
    view = after_an_even_round()
    view.last_plan = {part: member(m + 1) for part, m in enumerate(opens.body.reducers)}
    again = decided(view, swarm, now=SETTLE_S, rules=LINKED)
    assert isinstance(again.body, Open)
    assert again.body.reducers == opens.body.reducers
    assert "links" not in again.body.reason


def test_with_the_parts_where_they_are_a_thin_link_gets_more_time() -> None:
    swarm = heard(*(linked(n, 5e6) for n in (1, 2, 3)), linked(4, 500.0, downlink=0.0))
    opens = decided(after_an_even_round(), swarm, now=SETTLE_S, rules=LINKED)
    assert isinstance(opens.body, Open)
    assert opens.body.reducers == (0, 1, 2, 3) * 2, "an older release says nothing of its downlink"
    assert opens.body.grace_s == 3.0 + 2 * 2.0 * 1.5


def test_in_a_round_with_groups_links_move_nothing() -> None:
    swarm, rules = (
        heard(*(linked(n, 5000.0) for n in (1, 2, 3)), linked(4, 500.0)),
        Rules(200, 3.0, 0, 0, 1000, 3),
    )
    opens = decided(after_an_even_round(), swarm, now=SETTLE_S, rules=rules)
    assert isinstance(opens.body, Open)
    assert (opens.body.groups, opens.body.reducers) == (2, (0, 1, 2, 3) * 2)
    assert opens.body.grace_s == 3.0 + 2 * 2.0 + EXPIRY_S


@pytest.mark.parametrize("lie", [1e12, 1e-12, math.nan, math.inf, -1.0])
def test_who_lies_about_its_link_neither_gets_everything_nor_stops_anything(lie: float) -> None:
    swarm = heard(*(linked(n, 5000.0) for n in (1, 2, 3)), linked(4, lie))
    opens = decided(after_an_even_round(), swarm, now=SETTLE_S, rules=LINKED)
    assert isinstance(opens.body, Open)
    assert opens.body.reducers.count(3) <= 6
    assert view_of(genesis(8), replace(opens.body, round=1)).open is not None
    assert 3.0 <= opens.body.grace_s <= 3.0 + PATIENT_S


def test_a_dead_reducers_parts_go_past_a_thin_link() -> None:
    view = view_of(genesis(8), opened(members=(1, 2, 3, 4), reducers=(0, 0, 0, 1, 1, 1, 2, 2)))
    fast = [linked(n, 5000.0, round=0) for n in (1, 2)]
    mends = decided(view, heard(*fast, linked(4, 500.0, round=0)), rules=LINKED)
    assert mends.body == Reassign(1, 0, ((6, 0), (7, 1)), mends.reason)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        (Rules(200, 3.0, 100, 0, 1000), "100 tokens trained, 100 were asked for"),
        (Rules(200, 3.0, 0, 1, 1000), "round 1 committed, the last one asked for"),
    ],
)
def test_the_run_ends_at_its_goal(rules: Rules, reason: str) -> None:
    swarm = heard(says(1, round=1, tokens=1e6))
    ends = decided(view_of(genesis(), opened(), committed()), swarm, rules=rules)
    assert ends == Decision(Finish(1, reason), reason)
    assert not isinstance(decided(view_of(genesis()), swarm, rules=rules).body, Finish)


@pytest.mark.parametrize(("peers", "flat", "groups"), [(9, 9, 1), (9, 3, 3), (32, 32, 1), (33, 32, 6)])
def test_a_round_of_many_members_has_groups(peers: int, flat: int, groups: int) -> None:
    swarm, rules = heard(*(says(n) for n in range(peers))), Rules(200, 3.0, 0, 0, 1000, flat)
    opens = decided(view_of(genesis()), swarm, rules=rules)
    assert isinstance(opens.body, Open)
    assert (len(opens.body.members), opens.body.groups) == (peers, groups)
    view = view_of(genesis(), opens.body)
    assert view.open is not None
    assert view.open.groups == groups


# -- commit ------------------------------------------------------------------------------------------


def test_a_round_is_committed_once_two_members_hold_every_part() -> None:
    view = view_of(genesis(), opened())
    one = decided(view, heard(holding(1, R0, R1), holding(2, R0)))
    assert one == Decision(None, "round 1: 1 of 2 parts not yet held by 2; reduced by peer2")
    both = decided(view, heard(holding(1, R0, R1), holding(2, R1, R0)))
    assert both.reason == "all 2 parts held by two members"
    assert both.body == Commit(1, 0, (R0, R1), 100, None, both.reason)
    assert view.follow(_entry(view, both)) is None


def test_the_only_member_left_commits_alone() -> None:
    view = view_of(genesis(), opened())
    swarm = heard(holding(1, R0, R1))
    commits = decided(view, swarm)
    assert isinstance(commits.body, Commit)
    assert commits.reason == "all 2 parts held by the only member left"


def test_a_commit_says_who_is_not_in_it_and_why() -> None:
    lone = tuple(result(p, (0, 60.0)) for p in range(2))
    view = view_of(genesis(), opened(members=(1, 2, 3)))
    swarm = heard(holding(1, *lone), holding(2, *lone))
    commits = decided(view, swarm, here=known(*lone))
    peer3 = peer_id(3)[:8]
    assert commits.reason == f"all 2 parts held by two members; without peer2 (late), {peer3} (gone)"


def test_a_commit_counts_each_contributor_once_and_weighs_their_losses() -> None:
    partly = result(1, (0, 60.0))
    view = view_of(genesis(), opened())
    swarm = heard(holding(1, R0, partly, loss=2.0), holding(2, R0, partly, loss=3.0))
    commits = decided(view, swarm, here=known(R0, partly))
    assert isinstance(commits.body, Commit)
    assert commits.body.tokens == 100
    assert commits.body.loss == pytest.approx(2.0 * 0.6 + 3.0 * 0.4)


@pytest.mark.parametrize("loss", [None, math.nan, math.inf])
def test_a_loss_that_is_no_number_does_not_count(loss: float | None) -> None:
    view = view_of(genesis(), opened())
    swarm = heard(holding(1, R0, R1, loss=loss), holding(2, R0, R1, loss=3.0))
    commits = decided(view, swarm)
    assert isinstance(commits.body, Commit)
    assert commits.body.loss == 3.0
    none = decided(view, heard(holding(1, R0, R1, loss=loss), holding(2, R0, R1)))
    assert isinstance(none.body, Commit)
    assert none.body.loss is None


@pytest.mark.parametrize("more", [{"round": 1}, {"attempt": 1}, {"phase": "gone"}])
def test_what_is_held_of_another_round_or_by_who_left_does_not_count(more: dict[str, Any]) -> None:
    view = view_of(genesis(), opened(members=(1, 2, 3)))
    swarm = heard(holding(1, R0, R1), holding(2, R0, R1, **more), says(3))
    assert decided(view, swarm).body is None
    fourth = heard(holding(1, R0, R1), holding(2, R0, R1, **more), says(3), holding(4, R0, R1))
    assert isinstance(decided(view, fourth).body, Commit), "a witness need not be a member"


def test_of_two_results_the_more_held_one_counts_and_the_lower_digest_breaks_a_tie() -> None:
    view = view_of(genesis(parts=1), opened(members=(1, 2, 3), reducers=(0,)))
    a, b = sorted((result(0, (0, 60.0), label="a"), result(0, (0, 60.0), label="b")), key=lambda i: i.digest)
    here = known(a, b)
    tie = decided(view, heard(holding(1, a, b), holding(2, b, a), says(3)), here=here)
    assert isinstance(tie.body, Commit)
    assert tie.body.parts == (a,)
    more = decided(view, heard(holding(1, a, b), holding(2, b, a), holding(3, b)), here=here)
    assert isinstance(more.body, Commit)
    assert more.body.parts == (b,)


def test_only_results_whose_content_is_here_are_committed() -> None:
    """Who is in a result stands in it, and not in what is said of it."""
    view = view_of(genesis(), opened())
    swarm = heard(holding(1, R0, R1), holding(2, R0, R1))
    for here, lacking in (({}, 2), (known(R0), 1), (known(result(0, label="other"), R1), 1)):
        waits = decided(view, swarm, here=here)
        assert waits == Decision(None, f"round 1 is ready; {lacking} of its parts are not here yet")
    weights = replace(R0, contributors=((1, 7.0),))
    commits = decided(view, swarm, here=known(weights, R1))
    assert isinstance(commits.body, Commit)
    assert commits.body.parts == (weights, R1)


@pytest.mark.parametrize(
    "bad",
    [
        Held(7, R0.digest, 8),
        Held(2, R0.digest, 8),
        Held(0, R0.digest, 9),
        Held(0, "f" * 64, 8),
        Held(0, R1.digest, 8),
    ],
)
def test_garbage_in_announcements_neither_counts_nor_stops_anybody(bad: Held) -> None:
    view = view_of(genesis(), opened(members=(1, 2, 3)))
    alone = decided(view, heard(holding(1, bad), says(2), says(3)))
    assert alone.reason == "round 1: 2 of 2 parts not yet held by 2; reduced by peer1, peer2"
    swarm = heard(holding(1, bad, R0), holding(2, R0, R1), holding(3, R0, R1))
    commits = decided(view, swarm)
    assert isinstance(commits.body, Commit)
    assert commits.body.parts == (R0, R1)


def test_what_two_say_of_a_result_is_not_committed_against_what_stands_in_it() -> None:
    """Nobody could follow such a commit, and it would be written again and again."""
    view, lie = view_of(genesis(), opened(members=(1, 2, 3))), Held(0, R1.digest, 8)
    said = decided(view, heard(holding(1, lie, R1), holding(2, lie, R1), holding(3, R0, R1)))
    assert said.body is None or view.follow(_entry(view, said)) is None


def test_one_peer_can_not_hold_a_part_twice() -> None:
    view = view_of(genesis(), opened())
    other = replace(R0.held, size=9)
    swarm = heard(holding(1, R0, R0, other, R1, R1), says(2))
    assert decided(view, swarm).reason == ("round 1: 2 of 2 parts not yet held by 2; reduced by peer1, peer2")


def test_the_tokens_of_a_commit_fit_a_record_whatever_weights_are_claimed() -> None:
    greedy = tuple(result(p, (0, float(MAX_WEIGHT)), (1, float(MAX_WEIGHT))) for p in range(2))
    view = view_of(genesis(), opened())
    commits = decided(view, heard(holding(1, *greedy), holding(2, *greedy)), here=known(*greedy))
    assert isinstance(commits.body, Commit)
    assert commits.body.tokens == MAX_WEIGHT


# -- mend --------------------------------------------------------------------------------------------


def test_a_dead_reducers_parts_go_to_members_that_live() -> None:
    view = view_of(genesis(parts=3), opened(members=(1, 2, 3), reducers=(0, 1, 0)))
    swarm = heard(says(1, beat=1))
    for n in (2, 3):
        assert swarm.hear(says(n), 3.0)
    waits = decided(view, swarm, now=3.5)
    assert waits.reason == "round 1: 3 of 3 parts not yet held by 2; reduced by peer1, peer2"
    mends = decided(view, swarm, now=EXPIRY_S)
    assert mends.reason == "peer1 died before its parts were held; peer2, peer3 reduces them now"
    assert mends.body == Reassign(1, 0, ((0, 2), (2, 1)), mends.reason)


def test_a_reducer_that_restarted_is_another_member() -> None:
    view = view_of(genesis(), opened())
    mends = decided(view, heard(says(1, session="t"), says(2)))
    assert isinstance(mends.body, Reassign)
    assert mends.body.moves == ((0, 1),)


def test_a_dead_reducers_result_that_somebody_holds_is_not_reduced_again() -> None:
    view = view_of(genesis(), opened(members=(1, 2, 3)))
    waits = decided(view, heard(holding(2, R0, R1), says(3)))
    assert waits.body is None
    assert waits.reason == f"round 1: 2 of 2 parts not yet held by 2; reduced by {peer_id(1)[:8]}, peer2"


def test_a_round_without_members_is_opened_again_with_who_trains() -> None:
    view = view_of(genesis(), opened())
    nobody = decided(view, heard(says(3, idle_s=30)))
    assert nobody == Decision(None, "no member of round 1 is left; waiting for a peer that trains")
    again = decided(view, heard(says(3, tokens=5), says(4, phase="joining")))
    assert again.reason == "no member of round 1 is left; opened again with peer3"
    assert again.body == Open(1, 1, (member(3),), (0, 0), BASE, 3.0, again.reason)


def test_a_round_of_which_nobody_left_had_anything_to_give_is_opened_again_at_once() -> None:
    view = view_of(genesis(), opened(members=(1, 2)))
    none = says(1, abstains=True, waiting=True, tokens=0)
    again = decided(view, heard(none))
    assert again.reason == "nobody who is left in round 1 had anything to give; opened again with peer1"
    both = heard(none, says(2, abstains=True, waiting=True, tokens=0))
    assert decided(view, both).body is None, "it would be the same round once more"
    works = heard(none, says(2, abstains=True, tokens=5))
    assert (
        decided(view, works).reason
        == "nobody who is left in round 1 had anything to give; opened again with peer2"
    )
    elsewhere = heard(none, says(2, abstains=True, waiting=True, tokens=0), says(3, tokens=5, round=-1))
    assert decided(view, elsewhere).body is None, "who has work could be no member"
    gives = heard(none, says(2))
    assert decided(view, gives).body is None
    # What the dead one gave was reduced: the round may yet get through, and its work counts.
    left = heard(says(1, abstains=True, waiting=True, tokens=0, held=(R0,)))
    assert isinstance(decided(view, left).body, Reassign)


def test_a_stuck_round_goes_on_with_who_has_work() -> None:
    view = view_of(genesis(), opened(members=(1, 2, 3)))
    idle = says(1, waiting=True, tokens=0)
    swarm = heard(idle, says(2, waiting=True, tokens=5), replace(idle, peer=peer_id(3)), at=17.1)
    again = decided(view, swarm, now=17.1)
    assert again.reason == "round 1 did not get through in 17 s; opened again with peer2"


def test_a_stuck_round_is_opened_again_with_who_got_furthest() -> None:
    view = view_of(genesis(), opened(members=(1, 2, 3)))
    swarm = heard(holding(1, R0), holding(2, R0, R1), says(3), at=17.0)
    assert decided(view, swarm, now=17.0).body is None, "patience is three times grace and five seconds"
    again = decided(view, swarm, now=17.1)
    assert again.reason == "round 1 did not get through in 17 s; opened again with peer2"
    assert isinstance(again.body, Open)
    assert (again.body.attempt, again.body.members) == (1, (member(2),))


@pytest.mark.parametrize("everyone", [(1, 2, 3, 4), (1, 2, 3)])
def test_members_that_all_got_equally_far_are_halved_until_each_in_turn_goes_alone(
    everyone: tuple[int, ...],
) -> None:
    bodies: list[Body] = [genesis(), opened(members=everyone)]
    tried = []
    for attempt in range(6):
        swarm = heard(*(says(n, attempt=attempt) for n in everyone), at=18.0)
        again = decided(view_of(*bodies), swarm, now=18.0)
        assert isinstance(again.body, Open)
        tried.append(tuple(int(m.peer, 16) for m in again.body.members))
        bodies.append(again.body)
    assert tried[0] == (1, 2)
    assert {(n,) for n in everyone} <= set(tried[1:])


def test_two_that_hold_what_they_reduced_themselves_do_not_block_the_rest_for_ever() -> None:
    bodies = [genesis(), opened(members=(1, 2, 3)), opened(members=(1, 2), attempt=1)]
    swarm = heard(holding(1, R0, attempt=1), holding(2, R1, attempt=1), says(3, attempt=1), at=18.0)
    again = decided(view_of(*bodies), swarm, now=18.0)
    assert isinstance(again.body, Open)
    assert again.body.members == (member(2),)


def test_a_round_of_which_nobody_has_all_results_is_opened_again_in_the_end() -> None:
    view = view_of(genesis(), opened())
    swarm = heard(holding(1, R0, R1), holding(2, R0, R1), at=16.0)
    assert decided(view, swarm, now=17.0, here=known(R0)).body is None
    again = decided(view, swarm, now=17.1, here=known(R0))
    assert isinstance(again.body, Open)
    assert decided(view, swarm, now=17.1).reason == "all 2 parts held by two members"


def test_patience_counts_from_the_last_reassignment() -> None:
    view = view_of(genesis(), opened(), moved((0, 1)))
    swarm = heard(says(1), says(2), at=18.0)
    assert decided(view, swarm, now=18.0, times=Times(0.0, 5.0)).body is None
    assert isinstance(decided(view, swarm, now=18.0, times=Times(0.0, 0.5)).body, Open)


@pytest.mark.parametrize(
    ("round_", "eta_s", "done", "waits"),
    [
        (1, None, 210.0, True),
        (0, None, 210.0, True),
        (1, None, 291.0, False),
        (-1, None, 210.0, False),
        (-1, 1.5, 210.0, True),
        (-1, 1.6, 210.0, False),
        (-1, math.nan, 210.0, False),
    ],
)
def test_a_round_waits_a_moment_for_a_joiner_that_has_nearly_caught_up(
    round_: int, eta_s: float | None, done: float, waits: bool
) -> None:
    # 200 tokens make a round, and the two trainers do 60 of them a second.
    view = view_of(genesis(), opened(), committed())
    trainers = [says(n, round=1, tokens=done / 2, tokens_per_s=30.0) for n in (1, 2)]
    joiner = says(3, phase="joining", round=round_, eta_s=eta_s, state="", name="carol")
    decision = decided(view, heard(*trainers, joiner), now=SETTLE_S)
    assert (decision == Decision(None, "carol nearly caught up with round 1")) == waits
    assert isinstance(decision.body, Open) != waits


@pytest.mark.parametrize(("eta_s", "waits"), [(40.0, True), (41.0, False)])
def test_a_long_round_waits_for_a_tenth_of_its_training(eta_s: float, waits: bool) -> None:
    view = view_of(genesis(), opened(), committed())
    trainers = [says(n, round=1, tokens=105.0, tokens_per_s=0.25) for n in (1, 2)]
    joiner = says(3, phase="joining", round=-1, eta_s=eta_s, state="", name="carol")
    assert (decided(view, heard(*trainers, joiner), now=SETTLE_S).body is None) == waits


def test_the_last_of_the_data_waits_for_no_joiner() -> None:
    """No more work will be done, so no work tells that the moment is over."""
    first = replace(genesis(), blocks=1, epochs=1)
    view = view_of(first, Grant((), ((member(1), 1),), "data for peer1"), opened(), committed())
    swarm = heard(
        says(1, round=1, tokens=10.0, tokens_per_s=30.0, waiting=True),
        says(3, phase="joining", round=1, state="", name="carol"),
    )
    decision = decided(view, swarm, now=SETTLE_S)
    assert isinstance(decision.body, Open)
    assert decision.reason.startswith("the data is used up: the last 10 tokens")


# -- snapshots ---------------------------------------------------------------------------------------


def own(*rounds: int) -> dict[int, tuple[str, Snapshot]]:
    written = {round_: replace(snapshot(round_), reason="") for round_ in rounds}
    return {round_: (manifest(one), one) for round_, one in written.items()}


def test_a_snapshot_is_recorded_once_two_peers_wrote_the_same() -> None:
    mine = own(0)
    digest = mine[0][0]
    view = view_of(genesis())
    waits = Decision(None, "no newer snapshot is held by two peers")
    assert agree_on_snapshot(view, heard(says(1, snapshots={0: digest}), says(2)), mine, 1.0) == waits
    other = heard(says(1, snapshots={0: digest}), says(2, snapshots={0: "f" * 64}))
    assert agree_on_snapshot(view, other, mine, 1.0) == waits
    both = heard(says(1, snapshots={0: digest}), says(2, snapshots={0: digest}), says(3))
    agreed = agree_on_snapshot(view, both, mine, 1.0)
    assert agreed.reason == "2 of 3 peers wrote the same snapshot of round 0"
    assert agreed.body == replace(mine[0][1], reason=agreed.reason)


def test_a_peer_alone_records_its_snapshot_and_joiners_do_not_count() -> None:
    mine = own(0)
    swarm = heard(says(1, snapshots={0: mine[0][0]}), says(2, phase="joining"))
    agreed = agree_on_snapshot(view_of(genesis()), swarm, mine, 1.0)
    assert agreed.reason == "1 of 1 peers wrote the same snapshot of round 0"
    assert agree_on_snapshot(view_of(genesis()), heard(), mine, 1.0).body is None


def test_the_newest_agreed_snapshot_of_a_committed_round_is_recorded() -> None:
    mine = own(0, 1, 2)
    digests = {round_: digest for round_, (digest, _) in mine.items()}
    swarm = heard(says(1, snapshots=digests), says(2, snapshots=digests))
    view = view_of(genesis(), opened(), committed())
    agreed = agree_on_snapshot(view, swarm, mine, 1.0)
    assert isinstance(agreed.body, Snapshot)
    assert agreed.body.round == 1, "round 2 is not committed here yet"
    recorded = view_of(genesis(), opened(), committed(), agreed.body)
    assert agree_on_snapshot(recorded, swarm, mine, 1.0).body is None


@pytest.mark.parametrize(("fetching", "commits", "recorded"), [(0, 4, False), (1, 4, True), (0, 5, True)])
def test_a_snapshot_that_a_joiner_fetches_is_not_replaced_for_some_rounds(
    fetching: int, commits: int, recorded: bool
) -> None:
    # A snapshot has 7 bytes, a round one of 3: with the fifth there are more than of two snapshots.
    parts = (replace(result(0), size=1), replace(result(1), size=2))
    bodies: list[Body] = [genesis(), snapshot(0)]
    for round_ in range(1, commits + 1):
        bodies += [opened(round_), committed(round_, *parts)]
    bodies.append(snapshot(1))
    mine = own(commits)
    holders = [says(n, round=commits, snapshots={commits: mine[commits][0]}) for n in (1, 2)]
    joiner = says(3, phase="joining", round=-1, fetching=fetching, name="carol")
    decision = agree_on_snapshot(view_of(*bodies), heard(*holders, joiner), mine, 1.0)
    assert (decision.body is not None) == recorded
    if not recorded:
        told = "no newer snapshot is recorded: carol is fetching the one that it would replace"
        assert decision.reason == told
        assert agree_on_snapshot(view_of(*bodies), heard(*holders), mine, 1.0).body is not None


def _entry(view: RunView, decision: Decision) -> Entry:
    assert decision.body is not None
    return Entry(view.sequence + 1, "0" * 64, Record("0" * 64, "0" * 64, decision.body))
