"""What becomes, at who gathers for a group, of what the group gave: what is combined, sent, and sent anew."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from potluck.protocol.errand import RETRY_S, Errand
from potluck.protocol.gathering import Gathering
from potluck.wire.messages import Answer

YES, NO, SOON = Answer(True), Answer(False, "late"), Answer(False, "not here", retry=True)
NOBODY: frozenset[int] = frozenset()


def gathered(*members: int) -> Gathering:
    """One partial of these is here."""
    gathering = Gathering()
    combine(gathering, members)
    return gathering


def combine(gathering: Gathering, members: Iterable[int]) -> None:
    gathering.begin(members)
    gathering.combined(members, ())


def silent(*members: int) -> frozenset[int]:
    return frozenset(members)


# -- errands -----------------------------------------------------------------------------------------


def test_an_errand_is_due_until_it_is_under_way_or_done_and_again_some_time_after_it_failed() -> None:
    errand = Errand()
    assert errand.due(0.0)
    errand.flying = True
    assert not errand.due(9.0)
    errand.ended(False, 9.0)
    assert not errand.due(9.0 + RETRY_S - 0.01)
    assert errand.due(9.0 + RETRY_S)
    errand.ended(True, 10.0)
    assert not errand.due(99.0)


# -- combining ---------------------------------------------------------------------------------------


def test_what_is_in_a_partial_is_not_combined_again() -> None:
    gathering = Gathering()
    assert gathering.fresh([2, 5, 8]) == {2, 5, 8}
    gathering.begin([2, 5])
    assert gathering.combining
    assert gathering.fresh([2, 5, 8]) == {8}
    gathering.combined([2, 5], [])
    assert not gathering.combining
    assert gathering.fresh([2, 5, 8]) == {8}


def test_a_partial_of_nobody_is_none() -> None:
    """All that was combined was garbage."""
    gathering = Gathering()
    gathering.begin([2, 5])
    gathering.combined([], [2, 5])
    assert not gathering.combining
    assert gathering.partials == {}
    assert gathering.due(NOBODY, 0.0) == []


def test_who_sent_garbage_is_not_combined_again() -> None:
    gathering = Gathering()
    gathering.begin([2, 5])
    gathering.combined([5], [2])
    assert gathering.fresh([5]) == set()
    assert gathering.partials[5].contributors == {5}


# -- sending -----------------------------------------------------------------------------------------


def test_a_partial_is_sent_once_and_again_after_it_failed() -> None:
    gathering = gathered(5, 2)
    assert gathering.due(NOBODY, 0.0) == [2]
    assert gathering.due(NOBODY, 9.0) == []
    gathering.sent(2, SOON, 9.0)
    assert gathering.due(NOBODY, 9.0 + RETRY_S - 0.01) == []
    assert gathering.due(NOBODY, 9.0 + RETRY_S) == [2]
    gathering.sent(2, YES, 10.0)
    assert gathering.due(NOBODY, 99.0) == []


def test_a_partial_refused_for_good_is_not_sent_again() -> None:
    gathering = gathered(2, 5)
    gathering.due(NOBODY, 0.0)
    gathering.sent(2, NO, 1.0)
    assert gathering.due(NOBODY, 99.0) == []


def test_what_comes_later_makes_another_partial() -> None:
    gathering = gathered(2, 5)
    assert gathering.due(NOBODY, 0.0) == [2]
    combine(gathering, [8])
    assert gathering.due(NOBODY, 0.0) == [8]
    gathering.sent(2, SOON, 0.0)
    gathering.sent(8, SOON, 0.0)
    assert gathering.due(NOBODY, RETRY_S) == [2, 8]


def test_some_that_are_counted_already_are_left_out_and_the_rest_is_combined_anew() -> None:
    gathering = gathered(2, 5, 8)
    gathering.due(NOBODY, 0.0)
    gathering.sent(2, Answer(False, "counted", known=(2, 11)), 1.0)
    assert gathering.partials == {}
    assert gathering.fresh([2, 5, 8, 11]) == {5, 8, 11}, "11 never was in it: the reducer may not have it yet"
    combine(gathering, [5, 8])
    assert gathering.due(NOBODY, 1.0) == [5]


def test_when_all_are_counted_already_there_is_nothing_left_to_send() -> None:
    gathering = gathered(2, 5)
    gathering.due(NOBODY, 0.0)
    gathering.sent(2, Answer(False, "counted", known=(2, 5)), 1.0)
    assert gathering.fresh([2, 5]) == set()
    assert gathering.due(NOBODY, 99.0) == []


def test_an_answer_to_what_is_no_partial_any_more_changes_nothing() -> None:
    gathering = gathered(2, 5)
    gathering.sent(8, Answer(False, "counted", known=(2, 5)), 1.0)
    assert gathering.due(NOBODY, 1.0) == [2]


# -- who gives nothing -------------------------------------------------------------------------------


def test_who_gives_nothing_is_told_with_a_partial_and_not_again() -> None:
    gathering = gathered(2, 5)
    assert gathering.due(silent(8), 0.0) == [2]
    gathering.sent(2, YES, 0.1)
    assert gathering.due(silent(8), 1.0) == []


def test_who_gives_nothing_is_told_alone_when_nobody_gives_anything() -> None:
    gathering = Gathering()
    assert gathering.due(NOBODY, 0.0) == []
    assert gathering.due(silent(8), 0.0) == [None]
    assert gathering.due(silent(8), 0.1) == []
    gathering.sent(None, SOON, 0.2)
    assert gathering.due(silent(8), 0.2 + RETRY_S - 0.01) == []
    assert gathering.due(silent(8), 0.2 + RETRY_S) == [None]
    gathering.sent(None, YES, 1.0)
    assert gathering.due(silent(8), 99.0) == []


def test_each_who_is_silent_later_is_told_once_what_is_under_way_has_arrived() -> None:
    gathering = Gathering()
    assert gathering.due(silent(8), 0.0) == [None]
    assert gathering.due(silent(8, 11), 0.1) == []
    gathering.sent(None, YES, 0.2)
    assert gathering.due(silent(8, 11), 0.2 + RETRY_S) == [None]
    gathering.sent(None, YES, 1.0)
    assert gathering.due(silent(8, 11), 99.0) == []


def test_what_was_told_with_a_partial_that_was_not_taken_is_told_again() -> None:
    gathering = gathered(2, 5)
    assert gathering.due(silent(8), 0.0) == [2]
    gathering.sent(2, Answer(False, "counted", known=(2, 5)), 0.1)
    assert gathering.due(silent(8), 0.1 + RETRY_S) == [None]


# -- whatever the reducer says -----------------------------------------------------------------------


@given(st.data())
def test_in_the_end_each_is_counted_once_whoever_gathered_it_before(data: st.DataObject) -> None:
    """The reducer takes no partial with anybody that it has; answers may be lost, and others gather too."""
    members = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True).map(sorted))
    gathering, counted, now = Gathering(), list[int](), 0.0
    here: set[int] = set()
    for step in range(60):
        now += RETRY_S
        calm = step > 40
        if not calm and data.draw(st.integers(0, 4)) == 0:
            counted += [i for i in members[:1] if i not in counted]
        here |= set(members) if calm else {i for i in members if data.draw(st.booleans())}
        fresh = gathering.fresh(here)
        if fresh and not gathering.combining:
            combine(gathering, sorted(fresh))
        for lead in gathering.due(NOBODY, now):
            assert lead is not None
            given = gathering.partials[lead].contributors
            known = tuple(sorted(given.intersection(counted)))
            if not known:
                counted += sorted(given)
            lost = not calm and data.draw(st.booleans())
            answer = SOON if lost else Answer(not known, known=known)
            gathering.sent(lead, answer, now)
    assert sorted(counted) == members
