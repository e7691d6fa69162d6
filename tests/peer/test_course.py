"""How far a run is, between commits as well."""

from __future__ import annotations

from typing import Any

import pytest

from potluck.peer.course import AHEAD_S, Course
from potluck.protocol.view import RunView
from potluck.recipe import End, Recipe, Rounds
from tests.protocol.support import committed, genesis, opened, says, view_of


class Here:
    """A peer's course, its own work and its clock."""

    def __init__(self, data: int | None = None, **end: int) -> None:
        self.now, self.mine = 0.0, 0.0
        recipe = Recipe(rounds=Rounds(tokens=1000), end=End(**end))
        self.course = Course(recipe, data, lambda: self.mine, lambda: self.now)
        self.view: RunView = view_of(genesis())

    def hears(self, *tokens: float, speed: float = 0.0, phase: str = "training") -> None:
        others: list[Any] = [
            says(n, tokens=done, tokens_per_s=speed, phase=phase) for n, done in enumerate(tokens, 2)
        ]
        self.course.seen(self.view, others)

    def commits(self, tokens: int) -> None:
        self.view = view_of(genesis(), opened(), committed(tokens=tokens))


def test_tokens_are_what_is_committed_and_what_all_did_since() -> None:
    here = Here(tokens=10_000)
    assert (here.course.tokens, here.course.done) == (0, 0)
    here.mine = 100
    assert here.course.tokens == 100, "its own at once"
    here.hears(300, 200)
    assert here.course.tokens == 600
    here.commits(1000)
    here.mine = 50
    here.hears(20, 30)
    assert here.course.tokens == 1100
    assert here.course.done == pytest.approx(0.11)


def test_it_never_goes_back() -> None:
    here = Here(tokens=1000)
    here.mine = 400
    here.hears(300)
    assert here.course.tokens == 700
    here.mine = 0
    here.hears(0)
    assert (here.course.tokens, here.course.done) == (700, 0.7), "what is in the exchange is not lost"
    here.commits(1000)
    here.hears(500)
    assert here.course.done == 1


def test_others_go_on_at_their_speed_for_a_moment() -> None:
    here = Here()
    here.hears(100, 100, speed=10.0)
    here.now = 1.0
    assert here.course.tokens == 220
    here.now = 60.0
    assert here.course.tokens == 200 + 20 * AHEAD_S, "a hub that is away tells nothing"


def test_who_only_follows_does_nothing() -> None:
    here = Here()
    here.hears(500, phase="following")
    assert here.course.tokens == 0


def test_a_run_of_so_many_rounds_counts_the_open_one_by_its_tokens() -> None:
    here = Here(rounds=4)
    here.mine = 500
    assert here.course.done == 0.125
    here.mine = 5000
    assert here.course.done == 0.25, "a round is no more than one"
    here.commits(1000)
    here.mine = 0
    here.hears()
    assert here.course.done == 0.25


def test_a_run_that_ends_with_its_data_counts_blocks() -> None:
    here = Here(data=10, epochs=1)
    here.view = view_of(genesis())
    here.hears()
    assert here.course.done == 0
    from potluck.protocol.leases import Leases

    here.view.leases = Leases(10, 1)
    here.view.leases.included = [(0, 3), (5, 7)]
    here.hears()
    assert here.course.done == 0.5


def test_a_run_without_an_end_is_never_done() -> None:
    here = Here()
    here.mine = 1e9
    assert here.course.done == 0
