"""Where training and network meet: carries, cuts, and every token counted once."""

from __future__ import annotations

import math
import queue
import threading

import numpy as np
import pytest

from potluck.peer import handover as module
from potluck.peer.handover import EMA, CutRequest, Handover
from potluck.peer.layout import Carry, Vector, carried

N = 8
ZERO = np.zeros(N, np.float32)


class Model:
    """A model of eight parameters, and the cuts that were taken of it."""

    def __init__(self, fragments: int = 1) -> None:
        self.local: Vector = ZERO.copy()
        self.cuts: list[tuple[CutRequest, Vector, float, int]] = []
        self.reads = 0
        self.handover = Handover(lambda *cut: self.cuts.append(cut), fragments)

    def step(self, tokens: float = 10.0, loss: float | None = None) -> None:
        self.handover.stepped(tokens, loss)
        self.handover.exchange(self.read, self.take)

    def read(self, _: CutRequest) -> Vector:
        self.reads += 1
        return self.local.copy()

    def take(self, carries: list[Carry], wanted: CutRequest | None) -> Vector | None:
        self.local = carried(self.local, carries)
        return self.local.copy() if wanted else None


def request(attempt: int = 0, round_: int = 1) -> CutRequest:
    return CutRequest(round_, attempt, 0)


def weights(model: Model) -> list[float]:
    return [weight for _, _, weight, _ in model.cuts]


def shared(value: float, *, included: bool = False, loaded: bool = False) -> Carry:
    theta = np.full(N, value, np.float32)
    return Carry(theta, None if loaded else ZERO, included)


# -- tokens ------------------------------------------------------------------------------------------


def test_a_cut_counts_what_was_done_since_the_last_one_that_counted() -> None:
    model = Model()
    model.step()
    model.step()
    assert (model.handover.work.tokens, model.handover.work.steps) == (20, 2)
    model.handover.request(request())
    model.step()
    assert weights(model) == [30]
    assert (model.handover.work.tokens, model.handover.work.steps) == (0, 0)
    model.handover.offer(shared(1, included=True))
    model.handover.request(request(round_=2))
    model.step()
    assert weights(model) == [30, 10]
    assert model.handover.work.total_tokens == 40


def test_what_was_not_included_counts_in_the_next_cut() -> None:
    model = Model()
    model.handover.request(request())
    model.step()
    model.handover.offer(shared(1))
    model.step()
    model.handover.request(request(round_=2))
    model.step()
    assert weights(model) == [10, 30]
    model.handover.offer(shared(2, included=True))
    model.handover.request(request(round_=3))
    model.step()
    assert weights(model) == [10, 30, 10], "the carry itself tells that it was included"


def test_a_round_opened_again_counts_the_same_work_once() -> None:
    model = Model()
    model.handover.request(request())
    model.step()
    model.handover.request(request(attempt=1))
    model.step()
    model.handover.request(request(attempt=2))
    model.step()
    assert weights(model) == [10, 20, 30]
    model.handover.offer(shared(1, included=True))
    model.handover.request(request(round_=2))
    model.step()
    assert weights(model) == [10, 20, 30, 10]


def test_a_cut_of_a_fragment_counts_its_share_of_what_is_behind_its_difference() -> None:
    model = Model(fragments=2)
    for round_ in (1, 2, 3, 4):
        model.handover.request(request(round_=round_))
        model.step(12.0)
        model.handover.offer(shared(round_, included=round_ != 2))
    assert weights(model) == [6, 12, 12, 24], "since round -1, 0, 1 and, as the second one was missed, 0"
    model.step(12.0)
    model.handover.reset(ZERO)
    for round_ in (5, 6):
        model.handover.request(request(round_=round_))
        model.step(12.0)
        model.handover.offer(shared(round_, included=True))
    assert weights(model)[4:] == [0, 6], "what was done before is gone from all of them"


def test_a_newer_request_replaces_one_not_yet_met() -> None:
    model = Model()
    model.handover.request(request())
    model.handover.request(request(attempt=1))
    model.step()
    assert [cut.attempt for cut, *_ in model.cuts] == [1]
    model.step()
    assert len(model.cuts) == 1


def test_a_loaded_state_and_a_reset_drop_local_work() -> None:
    for drop in (
        lambda handover: handover.offer(shared(5, loaded=True)),
        lambda handover: handover.reset(np.full(N, 5, np.float32)),
    ):
        model = Model()
        model.handover.request(request())
        model.step()
        model.step()
        drop(model.handover)
        assert model.handover.work.tokens == model.handover.work.steps == 0
        model.handover.request(request(round_=2))
        model.handover.exchange(model.read, model.take)
        assert weights(model) == [10, 0]
        np.testing.assert_array_equal(model.local, 5)


# -- states ------------------------------------------------------------------------------------------


def test_new_states_are_taken_before_the_cut_and_in_order() -> None:
    model = Model()
    model.local += 1
    model.handover.offer(Carry(np.full(N, 10, np.float32), ZERO))
    model.handover.offer(Carry(np.full(N, 100, np.float32), np.full(N, 10, np.float32)))
    model.handover.request(request())
    model.step()
    np.testing.assert_array_equal(model.local, 101)
    np.testing.assert_array_equal(model.cuts[0][1], 101)


def test_a_loaded_state_makes_those_before_it_void() -> None:
    model = Model()
    model.handover.offer(shared(1))
    model.handover.offer(shared(7, loaded=True))
    model.handover.offer(Carry(np.full(N, 8, np.float32), np.full(N, 7, np.float32)))
    model.step()
    np.testing.assert_array_equal(model.local, 8)


def test_with_nothing_to_do_the_model_is_not_even_read() -> None:
    model = Model()
    model.step()
    assert model.reads == 0
    model.handover.request(request())
    model.step()
    assert model.reads == 1
    model.step()
    assert model.reads == 1


def test_a_request_can_be_withdrawn_until_it_is_met() -> None:
    model = Model()
    assert model.handover.withdraw() is None
    model.handover.request(request())
    assert model.handover.withdraw() == request()
    model.step()
    assert model.cuts == []
    model.handover.request(request(attempt=1))
    model.step()
    assert model.handover.withdraw() is None


def test_what_came_before_training_began_is_taken_once() -> None:
    model = Model()
    model.handover.offer(shared(3, loaded=True))
    [carry] = model.handover.wait_first()
    np.testing.assert_array_equal(carry.theta, 3)
    assert model.handover.wait_first() == []


# -- means -------------------------------------------------------------------------------------------


def test_speed_and_loss_are_running_means(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 102.0, 103.0, 103.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    model = Model()
    model.step(10, 4.0)
    work = model.handover.work
    assert (work.step_s, work.tokens_per_s, work.loss) == (0.0, 0.0, 4.0), "one step has no duration yet"
    model.step(10, 2.0)
    work = model.handover.work
    assert (work.step_s, work.tokens_per_s) == (2.0, 5.0)
    assert work.loss == pytest.approx(4.0 + EMA * (2.0 - 4.0))
    model.step(10)
    work = model.handover.work
    assert work.step_s == pytest.approx(2.0 + EMA * (1.0 - 2.0))
    assert work.tokens_per_s == pytest.approx(5.0 + EMA * (10.0 - 5.0))
    assert work.loss == pytest.approx(3.8), "a step without a loss changes none"
    model.step(10)
    assert model.handover.work.step_s == work.step_s, "the clock did not move"


def test_a_trainer_is_idle_since_its_last_step_or_since_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    model = Model()
    now[0] = 13.0
    assert model.handover.idle_s == 0.0, "it waits for the state"
    assert not model.handover.begun
    model.handover.begin()
    assert model.handover.begun
    now[0] = 15.0
    assert model.handover.idle_s == 2.0
    model.step()
    now[0] = 19.0
    assert model.handover.idle_s == 4.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_passes_once_training_has_recovered(bad: float) -> None:
    model = Model()
    for loss in (4.0, bad):
        model.step(10, loss)
    assert not math.isfinite(model.handover.work.loss or 0)
    model.step(10, 3.0)
    assert model.handover.work.loss == 3.0


# -- leased data -------------------------------------------------------------------------------------


def take(model: Model, number: int = 1) -> list[int | None]:
    return [model.handover.next_block(0.0) for _ in range(number)]


def blocks(model: Model) -> list[int]:
    return [number for *_, number in model.cuts]


def test_a_cut_counts_the_data_that_is_in_no_commit_yet() -> None:
    model = Model()
    model.handover.leased(((5, 9),))
    assert take(model, 2) == [5, 6]
    model.handover.request(request())
    model.step()
    model.handover.included(2)
    model.handover.offer(shared(1, included=True))
    assert take(model) == [7]
    model.handover.request(request(round_=2))
    model.step()
    model.handover.request(request(attempt=1, round_=2))
    assert take(model) == [8]
    model.step()
    assert blocks(model) == [2, 1, 2]


def test_data_of_a_step_that_has_not_ended_does_not_count() -> None:
    model = Model()
    model.handover.leased(((0, 3),))
    take(model, 2)
    model.handover.request(request())
    model.handover.exchange(model.read, model.take)
    assert blocks(model) == [0]


def test_a_model_that_was_reset_trains_on_its_data_again() -> None:
    model = Model()
    model.handover.leased(((0, 9),))
    take(model, 3)
    model.handover.reset(np.full(N, 5, np.float32))
    model.handover.request(request())
    model.step()
    assert (weights(model), blocks(model)) == ([0], [0]), "the step that ended with the reset is lost as well"
    assert take(model) == [0]


def test_data_that_went_to_others_is_in_no_cut_even_before_the_reset_came() -> None:
    model = Model()
    model.handover.leased(((0, 9),))
    take(model, 3)
    model.step()
    model.handover.revoked()
    model.handover.leased(((20, 22),))
    model.handover.request(request())
    model.step()
    model.handover.reset(np.full(N, 5, np.float32))
    model.step()
    assert take(model) == [20]
    model.handover.request(request(round_=2))
    model.step()
    assert (weights(model), blocks(model)) == ([0, 10], [0, 1])


def test_what_a_trainer_wants_follows_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    model = Model()
    assert model.handover.demand == module.Demand(), "nobody reads leased data here"
    assert take(model) == [None]
    assert model.handover.demand == module.Demand(0, module.FIRST_LEASE, True)
    assert model.handover.idle_s == 0.0
    model.handover.leased(((0, 100),))
    for _ in range(3):
        take(model, 2)
        now[0] += 4.0
        model.step()
    need = 2 * (2 + int(module.HORIZON_S / 4.0))
    assert model.handover.demand == module.Demand(100, 0, False)
    take(model, 94 - need // 2 + 1)
    assert model.handover.demand == module.Demand(100, need - (need // 2 - 1), False)


def test_who_waits_for_data_asks_once_and_wakes_when_it_comes() -> None:
    model, asked, found = Model(), queue.Queue[bool](), queue.Queue[int | None]()
    model.handover.ask = lambda: asked.put(model.handover.demand.waiting)
    thread = threading.Thread(target=lambda: found.put(model.handover.next_block(30.0)))
    thread.start()
    assert asked.get(timeout=10) is True
    model.handover.leased(((3, 4),))
    assert found.get(timeout=10) == 3
    thread.join()
    assert not model.handover.demand.waiting
    assert take(model, 2) == [None, None]
    assert asked.get(timeout=0) is True
    assert asked.empty()


def test_who_waits_for_data_meets_a_cut_meanwhile() -> None:
    model = Model()
    model.handover.request(request())
    assert model.handover.next_block(30.0) is None
    model.handover.exchange(model.read, model.take)
    assert len(model.cuts) == 1


# -- threads -----------------------------------------------------------------------------------------


def test_no_token_is_lost_or_counted_twice_between_two_threads() -> None:
    """The network asks, includes and refuses as fast as it can while the trainer steps."""
    model, cuts, included = Model(), queue.Queue[float](), []
    model.handover = Handover(lambda cut, local, weight, blocks: cuts.put(weight))
    done = threading.Event()
    failures: list[BaseException] = []

    def network() -> None:
        try:
            for number in range(300):
                model.handover.request(request(round_=number))
                weight = cuts.get(timeout=30)
                if number % 3:
                    included.append(weight)
                model.handover.offer(shared(0, included=bool(number % 3)))
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=network)
    thread.start()
    steps = 0
    while not done.is_set():
        model.step(1.0)
        steps += 1
    thread.join()
    assert not failures
    model.handover.request(request(round_=1000))
    model.step(1.0)
    assert model.handover.work.total_tokens == steps + 1
    assert sum(included) + cuts.get(timeout=0) == steps + 1
    assert len(included) == 200
