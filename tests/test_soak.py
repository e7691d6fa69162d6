"""The soak's short form and that of faults, and the reckoning on lines that are written down here."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

pytest.importorskip("torch")

from bench import soak, wan
from bench.ledger import Account, account, same
from bench.stage import Actor

from potluck.data.blocks import samples_of
from potluck.recipe import Data, End, Recipe
from potluck.wire.records import Body, Entry, Grant, Member
from tests.protocol.support import Ledger, committed, genesis, member, opened
from tests.test_bench import lines_of, run_bench

MISSING = wan.missing()


def actor(name: str, *said: dict[str, Any], ended: float | None = None) -> Actor:
    one = Actor(name, "h1", SimpleNamespace(), Path(), list(said))  # type: ignore[arg-type]
    one.ended = ended
    return one


@pytest.mark.integration
@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_short_form() -> None:
    """Nothing lost, the same bits everywhere, no process left; goodput is not judged on a busy machine."""
    done = run_bench("-m", "bench.soak", "--short", timeout_s=380)
    bars = lines_of(done.stdout, "bar")
    expected = {"rounds_lost", "digests_equal", "blocks_exactly_once", "goodput", "memory_growth", "orphans"}
    assert set(bars) == expected
    assert bars["blocks_exactly_once"]["value"] == 1
    assert bars["rounds_lost"]["value"] == 0
    assert bars["digests_equal"]["value"] == 1
    assert bars["orphans"]["value"] == 0
    assert 0.2 < bars["goodput"]["value"] <= 1.05
    faults = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"fault"')]
    assert {"killed", "joined"} <= {fault["fault"] for fault in faults}
    assert not [name for name in wan._namespaces() if name.endswith("-watcher")]


@pytest.mark.integration
@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_a_fault_of_each_kind_is_measured() -> None:
    done = run_bench("-m", "bench.faults", "--trials", "1", timeout_s=380)
    bars = lines_of(done.stdout, "bar")
    assert set(bars) == {"kill_to_commit_s", "hub_kill_to_commit_s", "join_over_bound"}
    assert all(0 < bar["value"] < 60 for bar in bars.values())
    assert not [name for name in wan._namespaces() if name.endswith("-watcher")]


def test_digests_of_one_round_are_compared_and_a_difference_is_named() -> None:
    one = actor("a", {"round": 1, "state": "x"}, {"round": 2, "state": "y"}, {"round": 3, "state": "z"})
    other = actor("b", {"round": 1, "state": "x"}, {"round": 2, "state": "Y"}, {"round": 4, "state": "u"})
    assert soak.digests([one, other]) == (2, [2])
    assert soak.digests([one]) == (0, [])


def test_seconds_alive_are_those_in_which_it_could_train() -> None:
    one = actor("a", {"at": 10.0, "ready": True}, ended=50.0)
    assert soak.seconds_alive(one, 0.0, 100.0) == 40.0
    one.stopped = [[20.0, 25.0], [45.0, math.inf]]
    assert soak.seconds_alive(one, 0.0, 100.0) == 30.0
    assert soak.seconds_alive(one, 22.0, 30.0) == 5.0
    assert soak.seconds_alive(one, 60.0, 100.0) == 0.0
    assert soak.seconds_alive(actor("b"), 0.0, 100.0) == 0.0


def test_goodput_counts_from_commit_to_commit() -> None:
    peer = actor("p1", {"at": 0.0, "ready": True}, {"at": 9.0, "trained": 100}, {"at": 30.0, "trained": 900})
    commits = [{"at": at, "commit": n, "tokens": 400} for n, at in enumerate((5.0, 10.0, 20.0, 30.0))]
    stage = SimpleNamespace(actors=[peer], commits=lambda: commits)
    work = soak.goodput(stage, 7.0)  # type: ignore[arg-type]
    assert (work["seconds"], work["rounds"], work["committed"]) == (20.0, 2, 800)
    assert work["trained"] == 800
    assert work["possible"] == round(20 * soak.TOKENS_PER_S)


def test_rounds_lost_are_gaps_and_those_opened_again() -> None:
    commits = [{"commit": n} for n in (1, 2, 4)]
    watcher = actor("watcher", {"reopened": 2})
    stage = SimpleNamespace(commits=lambda: commits, watcher=watcher)
    assert soak.lost_rounds(stage) == 3  # type: ignore[arg-type]


def test_memory_growth_is_that_of_processes_that_lived_through_the_second_half() -> None:
    memory = soak.Memory()
    for at in range(0, 200, 5):
        memory.seen["long 1"].append((float(at), 1000 if at < 150 else 1100))
        if at < 150:
            memory.seen["killed 2"].append((float(at), 10**9))
    growth, detail = memory.growth(100.0, 200.0)
    assert growth == pytest.approx(0.1)
    assert set(detail) == {"long 1"}
    assert soak.Memory().growth(100.0, 200.0) == (0.0, {})


def data_ledger(*later: Body) -> list[Entry]:
    """Eight samples in blocks of two, gone through twice; one peer got five blocks, another three."""
    recipe = Recipe(data=Data(samples=8, block=2), end=End(epochs=2))
    first = replace(genesis(), recipe=recipe.to_toml(), blocks=4, epochs=2)
    grant = Grant((), ((member(1), 5), (member(2), 3)), "they want some")
    ledger = Ledger()
    return [ledger.add(body) for body in (first, grant, opened(), *later)]


def said(n: int, *positions: int) -> dict[Member, set[tuple[int, ...]]]:
    return {member(n): {tuple(samples_of(position, 8, 2, 0)) for position in positions}}


def test_the_ledger_tells_which_block_is_in_the_model_how_often() -> None:
    commit = replace(committed(), blocks=((0, 4), (1, 1)))
    told = said(1, 0, 1, 2, 3) | said(2, 5)
    found = account(data_ledger(commit), told)
    assert dict(found.included) == dict.fromkeys((0, 1, 2, 3, 5), 1)
    assert (found.blocks, found.passed, found.waiting, found.balanced) == (4, 1, 1, True)
    assert found.sound
    assert account(data_ledger(commit), said(1, 0, 1, 2, 3)).untrained == [5], "the other did not say so"
    assert not account(data_ledger(commit), said(1, 0, 1, 2) | said(2, 5)).sound
    assert not account(data_ledger(), told).sound, "no epoch has passed"


def test_a_block_that_is_in_the_model_twice_or_never_is_found() -> None:
    whole = Account(blocks=2, passed=2, balanced=True, included=Counter(range(4)))
    assert whole.sound
    twice = Account(blocks=2, passed=2, balanced=True, included=Counter([0, 1, 2, 3, 3]))
    assert (twice.twice, twice.sound) == ([3], False)
    assert not Account(blocks=2, passed=2, balanced=True, included=Counter([0, 1, 3])).sound
    assert not Account(blocks=2, passed=2, balanced=False, included=Counter(range(4))).sound


def test_ledgers_are_the_same_as_far_as_both_go() -> None:
    commit = replace(committed(), blocks=((0, 4),))
    assert same(data_ledger(), data_ledger(commit))
    assert not same(data_ledger(committed()), data_ledger(commit))
    assert not same([], data_ledger())
