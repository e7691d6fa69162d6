"""The boundary of a peer that has two ranks, here threads: what rank 0's handover has is done by both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from potluck.errors import RunOver, StoreError, UsageError
from potluck.peer.handover import CutRequest, Handover
from potluck.peer.layout import Carry, Stretch, Vector
from potluck.peer.speaker import Listener, Speaker, Standing
from potluck.peer.told import Done, Read, Wait
from potluck.peer.trainer import Trainer
from tests.peer.ranks import Rank, everywhere

SIZE = 8


class Two:
    """Two ranks with copies of one model, and what happens to them."""

    def __init__(self) -> None:
        self.cuts: list[tuple[CutRequest, Vector, float, int]] = []
        self.handover = Handover(lambda *cut: self.cuts.append(cut))
        self.sides: dict[int, Speaker | Listener] = {}
        self.models: dict[int, nn.Linear] = {}
        self.trainers: dict[int, Trainer] = {}
        self.standing = Standing(3, 0.5, 900.0)

    def on(self, *acts: Callable[[Trainer, Speaker | Listener], object]) -> None:
        """Both ranks do each of it; in between, what is done on rank 0 is done before both go on."""

        def act(rank: Rank) -> None:
            model = nn.Linear(3, 2)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(0.25)
            side = Speaker(self.handover, rank, lambda: self.standing) if rank.speaks else Listener(rank)  # type: ignore[arg-type]
            trainer = Trainer(model, side, rank)  # type: ignore[arg-type]
            self.sides[rank.rank], self.models[rank.rank] = side, model
            self.trainers[rank.rank] = trainer
            for one in acts:
                one(trainer, side)

        everywhere(2, act)

    def values(self) -> list[Vector]:
        with torch.no_grad():
            return [torch.cat([p.reshape(-1) for p in self.models[r].parameters()]).numpy() for r in (0, 1)]


def step(tokens: float, loss: float | None = None) -> Callable[[Trainer, Speaker | Listener], object]:
    def act(trainer: Trainer, side: Speaker | Listener) -> None:
        side.stepped(tokens if isinstance(side, Speaker) else tokens / 2, loss)
        trainer.meet()

    return act


def test_tokens_of_a_step_are_those_of_all_ranks() -> None:
    two = Two()
    two.on(step(4, 2.0), step(6))
    assert (two.handover.work.total_tokens, two.handover.work.steps, two.handover.work.loss) == (15, 2, 2.0)
    assert two.sides[1].standing == Standing(3, 0.5, 900.0)
    assert not two.cuts


def test_a_cut_and_a_new_state_are_of_all_ranks() -> None:
    two = Two()
    theta = np.arange(SIZE, dtype=np.float32)
    two.handover.offer(Carry(theta, np.full(SIZE, 0.125, np.float32), stretches=(Stretch(slice(2, 7)),)))
    two.handover.request(CutRequest(1, 0, 0))
    two.on(step(4))
    expected = np.full(SIZE, 0.25, np.float32)
    expected[2:7] = theta[2:7] + np.float32(0.125)
    [(request, local, weight, _)] = two.cuts
    assert (request.round, weight) == (1, 6)
    for values in (local, *two.values()):
        np.testing.assert_array_equal(values, expected)


def test_a_request_alone_is_met() -> None:
    two = Two()
    two.handover.request(CutRequest(1, 0, 0))
    two.on(step(4), step(4))
    [(_, local, weight, _)] = two.cuts
    np.testing.assert_array_equal(local, np.full(SIZE, 0.25))
    assert weight == 6


def test_a_request_that_is_taken_back_between_roll_and_boundary_leaves_nobody_waiting() -> None:
    two = Two()
    two.handover.request(CutRequest(1, 0, 0))

    def act(trainer: Trainer, side: Speaker | Listener) -> None:
        side.stepped(1, None)
        if isinstance(side, Speaker):
            two.handover.withdraw()
        trainer.meet()

    two.on(act, step(4))
    assert not two.cuts
    assert two.handover.work.steps == 2


def test_what_comes_after_the_roll_waits_for_the_next() -> None:
    two = Two()

    def act(trainer: Trainer, side: Speaker | Listener) -> None:
        side.stepped(1, None)
        if isinstance(side, Speaker):
            two.handover.request(CutRequest(1, 0, 0))
        trainer.meet()
        assert not two.cuts

    two.on(act, step(2))
    assert len(two.cuts) == 1


def test_copies_that_differ_are_noticed_when_progress_is_given() -> None:
    two = Two()
    two.handover.request(CutRequest(1, 0, 0))

    def drift(trainer: Trainer, side: Speaker | Listener) -> None:
        if isinstance(side, Listener):
            with torch.no_grad():
                two.models[1].weight.add_(1e-3)

    with pytest.raises(UsageError, match="rank 1 of this peer has other parameters than rank 0"):
        two.on(drift, step(1))
    assert not two.cuts


def test_a_callback_that_ends_the_training_ends_it_on_all_ranks_at_once() -> None:
    two, told = Two(), []

    def enough(trainer: Trainer, side: Speaker | Listener) -> None:
        def boundary() -> None:
            told.append(side.rank)
            raise RunOver("enough")

        if isinstance(side, Speaker):
            trainer.at_boundary = boundary
        step(1)(trainer, side)
        assert side.ended is None, "the others are in the middle of the next step"
        step(1)(trainer, side)
        assert side.ended == "enough"

    two.on(enough)
    assert told == [0, 0]
    assert two.handover.over is None


def test_both_ranks_get_the_same_blocks_and_the_end() -> None:
    two, got = Two(), {0: [], 1: []}
    two.handover.leased(((5, 8),))

    def blocks(trainer: Trainer, side: Speaker | Listener) -> None:
        mine = got[0 if isinstance(side, Speaker) else 1]
        mine += [side.next_block(0.01) for _ in range(4)]
        trainer.meet()

    def end(trainer: Trainer, side: Speaker | Listener) -> None:
        if isinstance(side, Speaker):
            two.handover.over = "enough"
        assert side.over is None

    two.on(blocks, step(1), end, step(1))
    assert got[0] == got[1] == [5, 6, 7, None]
    assert [two.sides[rank].over for rank in (0, 1)] == ["enough", "enough"]


def test_what_ended_the_network_is_raised_on_all_ranks() -> None:
    two, said = Two(), []
    two.handover.failure = StoreError("the disk is full")

    def act(trainer: Trainer, side: Speaker | Listener) -> None:
        try:
            side.stepped(1, None)
            said.append(side.failure)
        except StoreError as error:
            said.append(error)

    two.on(act)
    assert [str(error) for error in said] == ["the disk is full"] * 2


def test_ranks_join_and_leave_as_rank_0_tells() -> None:
    two, given = Two(), np.arange(SIZE, dtype=np.float32)
    read: list[Vector] = []

    def join(trainer: Trainer, side: Speaker | Listener) -> None:
        if isinstance(side, Listener):
            done = side.obey(trainer)
            assert (done.invite, done.blocks) == ("invite", 4)
            assert side.standing == two.standing
            return
        side.ranks.tell(Wait())
        side.ranks.tell(Read())
        read.append(trainer.read())
        side.write(trainer, given)
        side.joined(Done("invite", "recipe", 4))

    two.handover.request(CutRequest(1, 0, 0))
    two.on(join, lambda trainer, side: side.meet_last(trainer))
    np.testing.assert_array_equal(read[0], np.full(SIZE, 0.25))
    for values in two.values():
        np.testing.assert_array_equal(values, given)
    assert len(two.cuts) == 1
