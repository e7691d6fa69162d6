"""The queue of data that is leased to one trainer."""

from __future__ import annotations

from potluck.data.leases import LeaseQueue


def queue(*spans: tuple[int, int]) -> LeaseQueue:
    made = LeaseQueue()
    made.lease(spans)
    return made


def taken(data: LeaseQueue, number: int) -> list[int | None]:
    return [data.take() for _ in range(number)]


def test_blocks_come_in_the_order_of_their_leases() -> None:
    data = queue((7, 9), (2, 4))
    assert (data.leased, data.left) == (4, 4)
    assert taken(data, 5) == [7, 8, 2, 3, None]
    assert data.left == 0
    data.lease([(20, 21)])
    assert (data.leased, data.left) == (5, 1)
    assert data.take() == 20


def test_what_is_taken_is_done_with_the_step() -> None:
    data = queue((0, 5))
    taken(data, 2)
    assert (data.done, data.trained()) == (0, [])
    data.stepped()
    data.take()
    assert (data.done, data.trained()) == (2, [0, 1])


def test_commits_take_out_the_oldest() -> None:
    data = queue((0, 3), (8, 12))
    taken(data, 5)
    data.stepped()
    data.take()
    data.included(4)
    assert (data.done, data.trained(), data.left) == (1, [9], 1)
    data.stepped()
    assert data.trained() == [9, 10]
    assert taken(data, 2) == [11, None]


def test_a_model_that_was_replaced_trains_on_them_again() -> None:
    data = queue((0, 4))
    taken(data, 3)
    data.stepped()
    data.included(1)
    data.rewind()
    assert (data.done, data.left) == (0, 3)
    assert data.take() == 1


def test_what_went_to_others_is_gone_and_does_not_count() -> None:
    data = queue((0, 4))
    taken(data, 2)
    data.revoke()
    data.lease([(9, 10)])
    data.stepped()
    assert (data.done, data.left, data.leased) == (0, 1, 5)
    assert taken(data, 2) == [9, None]


def test_a_commit_of_more_than_is_here_takes_all() -> None:
    data = queue((0, 2))
    data.take()
    data.included(5)
    assert (data.left, data.done, data.take()) == (0, 0, None)
