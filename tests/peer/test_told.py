"""What the ranks of a peer say to each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from potluck.errors import EnvironmentProblem, ProtocolError, StoreError, UsageError
from potluck.peer.handover import CutRequest
from potluck.peer.layout import Carry, Stretch
from potluck.peer.told import (
    Call,
    Deal,
    Doing,
    Done,
    Failed,
    Over,
    Read,
    Told,
    Wait,
    Write,
    agree,
    deal,
    error_of,
    failed,
    pack,
    undeal,
    unpack,
)

STRETCHES = (Stretch(slice(3, 9)), Stretch(slice(20, 40), 0.5))


def test_tokens_add_up_losses_are_averaged_and_the_rest_is_rank_0s() -> None:
    together = agree(
        [
            Call(Doing.STEP, 10, 2.0, news=1, threads=4, round=7, done=0.5),
            Call(Doing.STEP, 6, math.nan, threads=1),
            Call(Doing.STEP, 5, 4.0),
        ]
    )
    assert together == Call(Doing.STEP, 21, 3.0, news=1, threads=4, round=7, done=0.5)
    assert math.isnan(agree([Call(Doing.STEP, 1), Call(Doing.STEP, 1)]).loss)


def test_ranks_out_of_step_are_told_who_does_what() -> None:
    with pytest.raises(UsageError, match="rank 2 of this peer leaves the run while rank 0 ends a step"):
        agree([Call(Doing.STEP), Call(Doing.STEP), Call(Doing.LEAVE)])


def test_other_models_are_told() -> None:
    agree([Call(Doing.JOIN, sign=5), Call(Doing.JOIN, sign=5)])
    with pytest.raises(UsageError, match="rank 1 of this peer has another model than rank 0"):
        agree([Call(Doing.JOIN, sign=5), Call(Doing.JOIN, sign=6)])


def test_copies_that_nothing_keeps_in_step_are_told() -> None:
    agree([Call(Doing.CUT, sign=1e3), Call(Doing.CUT, sign=1e3 * (1 + 1e-12))])
    agree([Call(Doing.CUT, sign=math.nan)] * 2)  # it diverged; the handover sees to that
    for other in (1e3 * (1 + 1e-6), math.nan):
        with pytest.raises(UsageError, match="rank 1 of this peer has other parameters than rank 0"):
            agree([Call(Doing.CUT, sign=1e3), Call(Doing.CUT, sign=other)])


@pytest.mark.parametrize(
    "told",
    [
        Deal(),
        deal([Carry(np.ones(50, np.float32), None)], CutRequest(3, 1, 2, STRETCHES)),
        Wait(),
        Read(),
        Write(),
        Done("potluck:…", "recipe", 7, 3, 0.25, 900.0),
        Over("enough tokens"),
        Failed("StoreError", "the disk is full"),
    ],
    ids=lambda told: type(told).__name__,
)
def test_what_is_told_is_heard_whole_or_not_at_all(told: Told) -> None:
    raw = pack(told)
    assert unpack(raw) == told
    for cut in range(len(raw)):
        with pytest.raises(ProtocolError):
            unpack(raw[:cut])
    with pytest.raises(ProtocolError):
        unpack(raw + b"\0")


@pytest.mark.parametrize("request_", [None, CutRequest(3, 1, 2), CutRequest(3, 1, 2, STRETCHES)])
def test_another_rank_gets_the_same_without_values(request_: CutRequest | None) -> None:
    values = np.ones(50, np.float32)
    carries = [Carry(values, None), Carry(values, values), Carry(values, values, True, STRETCHES)]
    heard = unpack(pack(deal(carries, request_)))
    assert isinstance(heard, Deal)
    theirs, asked = undeal(heard)
    assert [(c.origin is None, c.stretches) for c in theirs] == [
        (c.origin is None, c.stretches) for c in carries
    ]
    assert all(c.theta.size == 0 for c in theirs)
    assert (asked is None) == (request_ is None)
    if asked is not None and request_ is not None:
        assert asked.stretches == request_.stretches


def test_an_error_of_rank_0s_is_the_same_error_on_the_others() -> None:
    ours = error_of(failed(StoreError("the disk is full")))
    assert type(ours) is StoreError
    assert str(ours) == "the disk is full"
    other = error_of(failed(ZeroDivisionError("division by zero")))
    assert type(other) is EnvironmentProblem
    assert (
        str(other) == "rank 0 of this peer failed, and with it the peer: ZeroDivisionError: division by zero"
    )
