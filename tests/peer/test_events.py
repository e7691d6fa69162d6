"""What happens in a run is seen in the network thread and told in the one that trains."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from potluck.errors import RunOver, UsageError
from potluck.peer.course import Course
from potluck.peer.events import MAX_WAITING, Event, Events, Watcher
from potluck.protocol.core import PeerCore
from potluck.protocol.steward import Rules
from potluck.recipe import Recipe
from potluck.wire.records import Body, Evaluation, Finish
from tests.protocol.support import BASE, Ledger, committed, genesis, member, opened, says


def test_events_are_told_in_order_by_who_tells_them() -> None:
    events, told = Events(), []
    events.on("round", lambda event: told.append((event.reason, threading.current_thread().name)))
    events.on("peer", lambda event: told.append((event.reason, "peer")))
    other = threading.Thread(target=lambda: [events.post(Event("round", f"r{n}", n)) for n in range(3)])
    other.start()
    other.join()
    events.post(Event("peer", "bert is here", 2, "bert"))
    assert told == []
    events.tell()
    me = threading.current_thread().name
    assert told == [("r0", me), ("r1", me), ("r2", me), ("bert is here", "peer")]
    events.tell()
    assert len(told) == 4


def test_who_asks_later_hears_what_comes_later() -> None:
    events, told = Events(), list[Event]()
    events.post(Event("round", "before", 1))
    events.on("round", told.append)
    events.post(Event("problem", "nobody asked", 1))
    events.post(Event("round", "after", 2))
    events.tell()
    assert [event.reason for event in told] == ["after"]


def test_a_callback_that_fails_is_told_in_words_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events, told = Events(), list[Event]()

    def fails(event: Event) -> None:
        raise ValueError("no such metric")

    events.on("round", fails)
    events.on("round", told.append)
    for n in (1, 2):
        events.post(Event("round", "all parts held", n))
    with caplog.at_level(logging.ERROR, "potluck"):
        events.tell()
    assert [event.round for event in told] == [1, 2]
    assert len(caplog.records) == 2
    said = caplog.records[0].getMessage()
    assert said == "a callback for 'round' events failed, and the run goes on: ValueError: no such metric"


def test_a_callback_may_end_the_training() -> None:
    events, told = Events(), list[Event]()

    def enough(event: Event) -> None:
        if event.round == 2:
            raise RunOver("good enough")

    events.on("round", enough)
    events.on("over", told.append)
    for n in (1, 2):
        events.post(Event("round", "", n))
    events.post(Event("over", "left", 2))
    with pytest.raises(RunOver, match="good enough"):
        events.tell()
    events.tell()
    assert len(told) == 1, "and what comes after is still told"


def test_a_callback_that_comes_to_a_boundary_is_not_called_within_itself() -> None:
    events, told = Events(), list[int]()

    def steps(event: Event) -> None:
        events.tell()
        told.append(event.round)

    events.on("round", steps)
    for n in (1, 2):
        events.post(Event("round", "", n))
    events.tell()
    assert told == [1, 2]


def test_there_are_no_other_events_and_they_do_not_pile_up() -> None:
    events, told = Events(), list[Event]()
    with pytest.raises(
        UsageError, match="no 'rounds' events; there are round, evaluation, peer, over, problem"
    ):
        events.on("rounds", print)  # type: ignore[arg-type]
    events.on("round", told.append)
    for n in range(MAX_WAITING + 5):
        events.post(Event("round", "", n))
    events.tell()
    assert [told[0].round, len(told)] == [5, MAX_WAITING]


class Watched:
    """A core, and what its watcher posts."""

    def __init__(self) -> None:
        rules = Rules(200, 3.0, 0, 0, 1000)
        self.core = PeerCore(member(1), rules, trains=True, have=set(), snapshot_every=100)
        self.ledger, self.now, self.told = Ledger(), 0.0, list[Event]()
        events = Events()
        for kind in ("round", "evaluation", "peer", "over", "problem"):
            events.on(kind, self.told.append)  # type: ignore[arg-type]
        self.watcher = Watcher(self.core, events, Course(Recipe(), None, lambda: 0.0))
        self.events = events

    def follow(self, *bodies: Body) -> None:
        for body in bodies:
            self.core.followed(self.ledger.add(body), self.now)

    def hear(self, n: int, **more: Any) -> None:
        self.core.heard(says(n, **more), self.now)

    def look(self) -> list[tuple[Any, ...]]:
        self.watcher.look(self.now)
        self.events.tell()
        told, self.told[:] = [(e.kind, e.round, e.reason) for e in self.told], []
        return told


def begun() -> Watched:
    watched = Watched()
    watched.follow(genesis())
    watched.core.applied(0, BASE, loaded=False)
    watched.core.poll(0.0)
    watched.core.announcement(says(1), 0.0)
    return watched


def test_nothing_is_told_before_the_state_is_here() -> None:
    watched = Watched()
    watched.follow(genesis())
    watched.hear(2)
    assert watched.look() == []
    watched.core.applied(0, BASE, loaded=False)
    watched.core.poll(0.0)
    assert watched.look() == [], "who was there before is no news"


def test_a_round_is_told_when_it_is_applied_not_when_it_is_committed() -> None:
    watched = begun()
    assert watched.look() == []
    watched.follow(opened(), committed(tokens=70))
    assert watched.look() == []
    watched.core.applied(1, "s1", loaded=False)
    watched.watcher.look(0.0)
    watched.events.tell()
    assert watched.told == [Event("round", "all parts held", 1, tokens=70, loss=None)]
    watched.told.clear()
    assert watched.look() == []


def test_an_evaluation_is_told_once_with_its_figures_and_whether_it_is_the_best() -> None:
    watched = begun()
    watched.follow(Evaluation(0, BASE, (("loss", 3.0),), "by peer2 in 1.0 s"))
    assert watched.look() == [], "what was there before is no news"
    watched.follow(opened(), committed())
    watched.core.applied(1, "s1", loaded=False)
    for loss in (2.0, 1.0):
        watched.follow(Evaluation(1, BASE, (("loss", loss),), "by peer1 in 1.0 s"))
    watched.watcher.look(0.0)
    watched.events.tell()
    assert watched.told[1:] == [Event("evaluation", "by peer1 in 1.0 s", 1, metrics={"loss": 2.0}, best=True)]
    watched.told.clear()
    assert watched.look() == []


def test_who_comes_and_goes_is_told_with_the_reason() -> None:
    watched = begun()
    watched.look()
    watched.hear(2)
    watched.hear(3)
    assert sorted(watched.look()) == [("peer", 0, "peer2 is here"), ("peer", 0, "peer3 is here")]
    watched.hear(2, beat=1, phase="gone")
    assert watched.look() == [("peer", 0, "peer2 left")]
    for second in range(1, 6):
        watched.now = float(second)
        watched.core.swarm.echo(watched.now)
    assert watched.look() == [("peer", 0, "peer3 is gone: it is not heard any more")]


def test_the_end_is_told_once_and_after_its_last_round() -> None:
    watched = begun()
    watched.look()
    watched.follow(opened(), committed(), Finish(1, "round 1 committed, the last one asked for"))
    assert watched.look() == []
    watched.core.applied(1, "s1", loaded=False)
    assert watched.look() == [
        ("round", 1, "all parts held"),
        ("over", 1, "round 1 committed, the last one asked for"),
    ]
    assert watched.look() == []


def test_problems_are_told_as_they_are_said() -> None:
    watched = begun()
    watched.watcher.problem("the disk is full; trying again")
    assert watched.look() == [("problem", 0, "the disk is full; trying again")]


def test_a_core_marks_what_is_amiss() -> None:
    from potluck.protocol.effects import Note

    watched = begun()
    watched.follow(opened(base="f" * 64))
    notes = [effect for effect in watched.core.poll(0.0) if isinstance(effect, Note)]
    assert [note.problem for note in notes if "elsewhere: taking the state" in note.text] == [True]
    assert [note.problem for note in notes if "opened" in note.text] == [False]
