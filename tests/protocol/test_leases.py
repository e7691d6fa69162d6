"""Who has which data: the fold, and the steward's decisions on it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from potluck.protocol import leasing
from potluck.protocol.leases import Leases, count, take
from potluck.protocol.leasing import DOUBT_S, PAUSE_S, Granted, lease_out
from potluck.protocol.swarm import EXPIRY_S, Swarm
from potluck.protocol.view import RunView
from potluck.wire.messages import Progress
from potluck.wire.records import Body, Finish, Grant, Member

from .support import Ledger, committed, genesis, member, opened, result, says

ONE, TWO, THREE = member(1), member(2), member(3)


# -- the fold ----------------------------------------------------------------------------------------


def test_free_positions_go_out_lowest_first_and_what_comes_back_before_new_ones() -> None:
    leases = Leases(100, 1)
    assert leases.lease(ONE, 10) == [(0, 10)]
    assert leases.lease(TWO, 5) == [(10, 15)]
    assert leases.include(ONE, 3) == [(0, 3)]
    assert leases.release(ONE) == 7
    assert leases.lease(TWO, 10) == [(3, 10), (15, 18)]
    assert leases.held(TWO) == ((10, 15), (3, 10), (15, 18))
    assert (leases.total(ONE), leases.total(TWO), leases.free) == (10, 15, 82)
    assert leases.holders() == [TWO]


def test_the_data_ends_and_is_done_when_all_of_it_is_included() -> None:
    leases = Leases(4, 2)
    assert leases.lease(ONE, 6) == [(0, 6)]
    assert leases.lease(TWO, 6) == [(6, 8)]
    assert leases.lease(THREE, 1) == []
    leases.include(TWO, 2)
    assert not leases.done
    leases.include(ONE, 9)
    assert (leases.done, leases.included, leases.holders()) == (True, [(0, 8)], [])


def test_without_epochs_there_is_no_end() -> None:
    leases = Leases(4, 0)
    assert leases.lease(ONE, 1000) == [(0, 1000)]
    leases.include(ONE, 1000)
    assert (leases.free, leases.done) == (None, False)


@given(st.lists(st.tuples(st.sampled_from("lri"), st.integers(1, 3), st.integers(0, 9)), max_size=60))
def test_every_position_is_in_one_place(steps: list[tuple[str, int, int]]) -> None:
    """Against plain sets: free, leased and included are all of the data, and no two of them overlap."""
    leases, total = Leases(20, 3), 60
    free, held, included = set(range(total)), {n: [] for n in (1, 2, 3)}, set()  # type: ignore[var-annotated]
    for step, n, number in steps:
        if step == "l":
            got = sorted(free)[:number]
            held[n] += got
            free -= set(got)
            assert [p for span in leases.lease(member(n), number) for p in range(*span)] == got
        elif step == "r":
            free |= set(held[n])
            assert leases.release(member(n)) == len(held[n])
            held[n] = []
        else:
            included |= set(held[n][:number])
            held[n] = held[n][number:]
            leases.include(member(n), number)
        assert leases.free == len(free)
        assert {p for span in leases.included for p in range(*span)} == included
        assert all([p for s in leases.held(member(m)) for p in range(*s)] == held[m] for m in held)


@given(st.lists(st.integers(1, 5)), st.integers(0, 30))
def test_taking_from_spans(sizes: list[int], number: int) -> None:
    spans = [(10 * i, 10 * i + size) for i, size in enumerate(sizes)]
    everything = [p for span in spans for p in range(*span)]
    taken = take(spans, number)
    assert [p for span in taken for p in range(*span)] == everything[:number]
    assert [p for span in spans for p in range(*span)] == everything[number:]
    assert count(taken) == min(number, len(everything))


# -- the ledger --------------------------------------------------------------------------------------


class Run:
    """A run's view and what it thinks of further records."""

    def __init__(self, *bodies: Body, blocks: int = 100, epochs: int = 1) -> None:
        self.view, self._ledger = RunView(), Ledger()
        for body in (replace(genesis(), blocks=blocks, epochs=epochs), *bodies):
            assert self.follow(body) is None

    def follow(self, body: Body) -> str | None:
        return self.view.follow(self._ledger.add(body))

    @property
    def leases(self) -> Leases:
        assert self.view.leases is not None
        return self.view.leases


def grant(*leased: tuple[int, int], released: tuple[int, ...] = ()) -> Grant:
    return Grant(tuple(member(n) for n in released), tuple((member(n), c) for n, c in leased), "they want it")


def test_a_commit_includes_the_oldest_blocks_of_its_contributors() -> None:
    run = Run(grant((1, 10), (2, 10)), opened())
    assert run.follow(replace(committed(), blocks=((0, 4), (1, 10)))) is None
    assert run.leases.included == [(0, 4), (10, 20)]
    assert run.view.moved == {ONE: [(0, 4)], TWO: [(10, 20)]}
    assert run.leases.held(ONE) == ((4, 10),)


def test_a_commit_counts_no_more_than_was_leased() -> None:
    run = Run(grant((1, 3)), opened())
    assert run.follow(replace(committed(), blocks=((0, 50), (1, 50)))) is None
    assert run.leases.included == [(0, 3)]


@pytest.mark.parametrize("blocks", [((1, 2), (0, 2)), ((0, 1), (0, 1)), ((2, 1),)])
def test_a_commit_with_data_of_nobody_in_it_is_skipped(blocks: tuple[tuple[int, int], ...]) -> None:
    run = Run(grant((1, 10)), opened())
    refused = run.follow(replace(committed(), blocks=blocks))
    assert refused is not None
    assert refused.startswith("it counts data blocks of")
    assert run.leases.included == []


def test_only_contributors_bring_data_in() -> None:
    run = Run(grant((1, 10), (2, 10)), opened())
    alone = (result(0, (0, 60.0)), result(1, (0, 60.0)))
    assert run.follow(replace(committed(1, *alone), blocks=((1, 5),))) is not None
    assert run.follow(replace(committed(1, *alone), blocks=((0, 5),))) is None


def test_a_member_of_the_open_round_keeps_its_data() -> None:
    run = Run(grant((1, 10), (2, 10), (3, 10)), opened())
    assert run.follow(grant(released=(2,))) == (
        "it releases a member of the open round, whose work may be in the next commit"
    )
    assert run.follow(grant(released=(3,))) is None
    assert run.leases.holders() == [ONE, TWO]


@pytest.mark.parametrize("body", [grant(), grant((1, 2), (1, 3)), grant((1, 2), released=(1,))])
def test_grants_that_make_no_sense_are_skipped(body: Grant) -> None:
    assert Run().follow(body) == "it does not name each member once"


def test_a_run_without_blocks_leases_nothing_and_one_that_is_over_neither() -> None:
    assert Run(blocks=0).follow(grant((1, 1))) == "this run leases no data"
    assert Run(Finish(0, "enough")).follow(grant((1, 1))) == "the run is over"


# -- the steward -------------------------------------------------------------------------------------


def wants(n: int, number: int = 10, **more: Any) -> Progress:
    return says(n, wants=number, **more)


def settled(*announcements: Progress) -> Swarm:
    """Everybody heard just now, by one that has listened for long enough."""
    swarm = Swarm()
    for beat in range(3):
        swarm.echo(beat * EXPIRY_S / 2)
    for progress in announcements:
        assert swarm.hear(progress, EXPIRY_S)
    return swarm


def decided(
    run: Run,
    swarm: Swarm,
    last: float = -9.0,
    now: float = EXPIRY_S,
    granted: dict[Member, float] | None = None,
) -> Grant | None:
    body = lease_out(run.view, swarm, Granted(last, granted or {}), now).body
    assert body is None or isinstance(body, Grant)
    return body


def test_who_wants_data_gets_it_and_the_reason_says_who() -> None:
    made = decided(Run(), settled(wants(1), wants(2, 5), says(3)))
    assert made is not None
    assert (made.released, made.leased) == ((), ((ONE, 10), (TWO, 5)))
    assert made.reason == "10 blocks to peer1, 5 blocks to peer2"


def test_a_grant_names_no_more_than_a_record_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "MOST_NAMED", 2)
    made = decided(Run(), settled(wants(1), wants(2), wants(3)))
    assert made is not None
    assert [member for member, _ in made.leased] == [ONE, TWO]


def test_nobody_gets_the_same_lease_twice() -> None:
    run = Run(grant((1, 10)))
    assert decided(run, settled(wants(1))) is None
    assert decided(run, settled(wants(1, leased=10))) is not None


def test_leases_are_gathered_for_a_while_unless_somebody_waits() -> None:
    run = Run()
    assert decided(run, settled(wants(1)), last=EXPIRY_S - PAUSE_S / 2) is None
    assert decided(run, settled(wants(1, waiting=True)), last=EXPIRY_S - PAUSE_S / 2) is not None


def test_towards_the_end_the_shares_get_small() -> None:
    run = Run(blocks=12)
    made = decided(run, settled(wants(1), wants(2), wants(3)))
    assert made is not None
    assert [n for _, n in made.leased] == [2, 1, 1]
    run = Run(grant((1, 11)), blocks=12)
    made = decided(run, settled(says(1), wants(2), wants(3)))
    assert made is not None
    assert made.leased == ((TWO, 1),)
    run = Run(grant((1, 12)), blocks=12)
    assert decided(run, settled(says(1), wants(2))) is None


def test_what_the_gone_had_goes_out_again_at_once() -> None:
    run = Run(grant((1, 10), (2, 10)), blocks=20)
    made = decided(run, settled(wants(1, leased=10)))
    assert made is not None
    assert (made.released, made.leased) == ((TWO,), ((ONE, 5),))
    assert made.reason.startswith("10 blocks of 00000000 (gone) are free again; 5 blocks to peer1")


def test_members_of_the_open_round_are_not_taken_for_gone() -> None:
    run = Run(grant((1, 10), (2, 10)), opened())
    assert decided(run, settled(says(1))) is None


def test_who_was_taken_for_gone_in_error_is_doubted_for_longer_each_time() -> None:
    """Else two stewards of which one hears it, and one does not, would take and give its data for ever."""
    run = Run(grant((1, 10)), grant(released=(1,)), grant((1, 10)))
    seen = {ONE: 0.0}
    assert decided(run, settled(says(2)), now=EXPIRY_S, granted=seen) is None
    waits_s = 2 * DOUBT_S[0]
    swarm = settled(says(2))
    assert decided(run, swarm, now=waits_s - 0.1, granted=seen) is None
    made = decided(run, swarm, now=waits_s, granted=seen)
    assert made is not None
    assert made.released == (ONE,)
    for _ in range(20):
        run.follow(grant(released=(1,)))
        run.follow(grant((1, 10)))
    assert decided(run, swarm, now=DOUBT_S[1] - 0.1, granted=seen) is None
    assert decided(run, swarm, now=DOUBT_S[1], granted=seen) is not None
