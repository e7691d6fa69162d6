"""A failing scenario becomes small, and still fails in the same way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from potluck.peer.dataplane import DataPlane
from potluck.peer.layout import Carry
from potluck.protocol import exchange
from potluck.testing.scenario import CALM, HEAVY, Scenario, fault, parse, scenario
from potluck.testing.shrink import failure_of, shrink
from potluck.wire.records import Commit


def test_what_needs_no_fault_is_shrunk_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = DataPlane.apply

    def drifting(self: DataPlane, commit: Commit, raws: Any, index: int | None) -> Carry:
        carry = apply(self, commit, raws, index)
        self.theta[0] += np.float32(index == 0)
        return carry

    monkeypatch.setattr(DataPlane, "apply", drifting)
    told: list[str] = []
    shrunk = shrink(scenario(3, replace(HEAVY, peers=5, duration_s=40.0)), told.append)
    found = shrunk.scenario
    assert shrunk.failure.broke == "a peer has state # after round #, others #"
    assert (found.faults, found.world.peers, found.world.codec) == ((), 2, "fp32")
    assert found.world.duration_s < 20
    assert told[-1].startswith("0 faults, 2 peers after ")
    assert failure_of(parse(str(found)))[0] is not None


def test_the_fault_that_is_needed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes a dead reducer's part over, and nobody opens a stuck round again."""
    from potluck.protocol import steward
    from potluck.protocol.steward import Decision

    monkeypatch.setattr(steward, "_replace", lambda *_: Decision(None, "never"))
    monkeypatch.setattr(steward, "_reopen", lambda *_, **__: Decision(None, "never"))
    lines = [f"at {at} crash peer{1 + at % 4}" for at in (14, 15)]
    more = [f"at {at} stall peer{1 + at % 4} for 1" for at in range(3, 40, 3)]
    faults = sorted((fault(line) for line in [*lines, *more]), key=lambda one: one.at)
    found = next(
        one
        for seed in range(20)
        for one in [Scenario(seed, replace(CALM, peers=4, duration_s=70.0), tuple(faults))]
        if failure_of(one)[0] is not None
    )
    shrunk = shrink(found)
    assert shrunk.failure.broke == "no commit for # s"
    assert 1 <= len(shrunk.scenario.faults) <= 2
    assert all(one.form == "crash {peer}" for one in shrunk.scenario.faults)
    assert shrink(shrunk.scenario).scenario == shrunk.scenario


def test_shrinking_gives_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "fault", lambda *_: 1 / 0)
    found = scenario(5, replace(HEAVY, peers=3, duration_s=30.0))
    one, other = shrink(found), shrink(found)
    assert one.scenario == other.scenario
    assert one.failure.broke.startswith("a core fails with ZeroDivisionError")


def test_what_does_not_fail_is_not_shrunk() -> None:
    with pytest.raises(ValueError, match="breaks nothing"):
        shrink(scenario(1, replace(CALM, peers=1, duration_s=5.0, calm_s=5.0)))
