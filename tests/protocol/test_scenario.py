"""The language of faults: it reads what it writes, and each fault does what it says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import UsageError
from potluck.testing.scenario import (
    CALM,
    FORMS,
    HEAVY,
    LIGHT,
    PRESETS,
    Fault,
    Scenario,
    World,
    fault,
    kind,
    parse,
    scenario,
)
from potluck.testing.simulator import Outcome, Simulation, replay

QUIET = replace(CALM, peers=3, duration_s=30.0, calm_s=20.0)

numbers = st.floats(0, 1e9, allow_nan=False).map(lambda value: round(value, 3))
names = st.integers(1, 999_999).map(lambda number: f"peer{number}")
WORDS = {
    "peer": names,
    "place": names,
    "s": numbers,
    "factor": numbers,
    "rate": numbers,
    "offset": st.floats(0, 1e9).map(lambda value: float(round(value))),
}


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    form = draw(st.sampled_from(sorted(FORMS)))
    return Fault(draw(numbers), form, tuple(draw(WORDS[k]) for k in re.findall(r"\{(\w+)\}", form)))


@given(faults())
def test_every_fault_is_read_back_as_it_was_written(one: Fault) -> None:
    assert fault(str(one)) == one


ODD = World(delay_s=(0.5, 1.25), outer="average", loss=0.125, peers=1, fragments=3, mix=0.25)


@pytest.mark.parametrize("world", [*PRESETS.values(), ODD])
def test_what_is_made_up_from_a_seed_is_read_back(world: World) -> None:
    for seed in range(200):
        made = scenario(seed, world)
        assert parse(str(made)) == made


def test_made_up_scenarios_use_the_whole_language_but_for_what_breaks_promises() -> None:
    used = {one.form for seed in range(300) for one in scenario(seed, HEAVY).faults}
    assert set(FORMS) - used == {"kill {peer}", "clock {peer} {offset}", "miscount {peer}"}
    assert not scenario(1, CALM).faults
    assert len(scenario(1, LIGHT).faults) < len(scenario(1, HEAVY).faults)


def test_comments_units_and_order() -> None:
    text = """
    # nobody knows what time it is
    seed 9
    peers 2   # and a joiner
    delay_s 0.5 1
    at 20 join peer3
    at 5 cut hub -> peer2 for 3
    at 0 clock peer1 +2.5d
    """
    read = parse(text)
    assert (read.seed, read.world) == (9, replace(kind(World()), peers=2, delay_s=(0.5, 1.0)))
    assert [str(one) for one in read.faults] == [
        "at 0 clock peer1 +60h",
        "at 5 cut hub -> peer2 for 3",
        "at 20 join peer3",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("at 3 explode peer1", "no such fault"),
        ("at 3 crash peer0", "no such fault"),
        ("at 3 crash peer1 for", "no such fault"),
        ("at 3 cut hub hub for 2", "the hub is one place"),
        ("at -3 crash peer1", "no such fault"),
        ("peers 0", "it can't be so"),
        ("peers three", "invalid literal"),
        ("fragments 0", "it can't be so"),
        ("fragments 1.5", "invalid literal"),
        ("loss nan", "it can't be so"),
        ("codec zip", "it is fp32, bf16, int8, int4 or topk"),
        ("delay_s 1", "it takes two numbers"),
        ("seed", "list index"),
        ("crashes 5", "no such setting"),
    ],
)
def test_what_is_no_scenario_is_said_with_its_line(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"^line 2 of the scenario, .*{said}"):
        parse(f"peers 3\n{line}\n")


# -- what each does ----------------------------------------------------------------------------------


def outcome(*lines: str, world: World = QUIET, seed: int = 3) -> Outcome:
    return replay(Scenario(seed, world, tuple(fault(line) for line in lines)))


def said(found: Outcome, words: str, who: str = "") -> list[float]:
    """When something was said."""
    return [at for at, name, text in found.notes if words in text and name.startswith(who)]


def test_a_scenario_made_up_and_the_same_as_text_are_one_run() -> None:
    world = replace(HEAVY, duration_s=30.0, calm_s=20.0)
    sim = Simulation(12, world)
    assert sim.run().notes == replay(parse(str(sim.scenario))).notes


@pytest.mark.parametrize("offset", ["+1y", "+20s"])
def test_a_clock_that_is_off_changes_nothing(offset: str) -> None:
    def told(found: Outcome) -> list[tuple[float, str, str]]:
        return [(round(at, 3), who, text) for at, who, text in found.notes]

    assert told(outcome()) == told(outcome(f"at 0 clock peer2 {offset}", f"at 0 clock peer1 {offset}"))


def test_a_peer_crashes_and_comes_back_as_another_life() -> None:
    found = outcome("at 10 crash peer2 for 4")
    assert found.crashes == 1
    assert min(said(found, "caught up", "peer2/2")) > 14
    assert not said(outcome("at 10 crash peer2"), "caught up", "peer2/2")


@pytest.mark.parametrize("keeps", [0, 1])
def test_who_leaves_in_good_order_and_comes_back_takes_up_what_it_had_not_sent(keeps: int) -> None:
    leaves = [f"at {at} leave peer{1 + number % 3} for 4" for number, at in enumerate(range(8, 60, 8))]
    world = replace(QUIET, codec="topk", keeps=keeps, duration_s=60.0)
    for seed in range(3):
        found = outcome(*leaves, world=world, seed=seed)
        assert (found.left, found.crashes) == (7, 0)
        assert found.taken_up == len(said(found, "kept in residuals.safetensors")) >= 6
        assert not said(found, "dropped")


def test_a_crash_spares_the_last_holder_and_a_kill_does_not() -> None:
    alone = replace(QUIET, peers=1)
    assert outcome("at 10 crash peer1", world=alone).crashes == 0
    sim = Simulation(3, replace(alone, calm_s=0.0), [fault("at 29.9 kill peer1")])
    assert sim.run().crashes == 1


def test_a_joiner_has_the_name_it_was_given() -> None:
    assert min(said(outcome("at 10 join peer9"), "caught up", "peer9")) > 10


def test_a_pause_and_a_stall_stop_what_they_say() -> None:
    assert not [at for at in said(outcome("at 10 pause peer2 for 12"), "", "peer2") if 10 < at < 22]
    assert [at for at in said(outcome("at 10 stall peer2 for 12"), "committed", "peer2") if 10 < at < 22]


def test_a_one_way_cut_leaves_the_other_way() -> None:
    sim = Simulation(3, QUIET, [fault("at 1 cut peer1 -> peer2 for 5")])
    one, two = sim.peer_id("peer1"), sim.peer_id("peer2")
    seen: list[tuple[bool, bool]] = []
    for at in (0.5, 4.0, 7.0):
        sim.at(at, lambda: seen.append((sim.faults.cuts(one, two), sim.faults.cuts(two, one))))
    sim.run()
    assert seen == [(False, False), (True, False), (False, False)]


def test_while_one_peer_is_cut_from_the_hub_the_others_go_on() -> None:
    for way in ("cut peer2 hub", "cut peer2 -> hub", "cut hub -> peer2"):
        found = outcome(f"at 8 {way} for 25", world=replace(QUIET, duration_s=40.0))
        assert not [at for at in said(found, "committed", "peer2") if 8.2 < at < 33]
        assert [at for at in said(found, "committed", "peer1") if 8 < at < 33]


def test_a_full_disk_takes_nothing_until_it_has_room() -> None:
    sim = Simulation(3, QUIET, [fault("at 8 full disk peer2 for 10")])
    sizes: list[set[str]] = []
    for at in (8.1, 17.9, 25.0):
        sim.at(at, lambda: sizes.append(sim.peers[sim.peer_id("peer2")].store.digests()))
    sim.run()
    assert sizes[1] <= sizes[0]
    assert sizes[2] - sizes[0]


def test_a_torn_file_is_gone() -> None:
    gone: list[int] = []
    sim = Simulation(3, QUIET, [fault("at 8 torn file peer2")])
    sim.at(7.9, lambda: gone.append(len(sim.peers[sim.peer_id("peer2")].store.digests())))
    sim.at(8.01, lambda: gone.append(len(sim.peers[sim.peer_id("peer2")].store.digests())))
    sim.run()
    assert gone[1] == gone[0] - 1


def test_a_slow_peer_takes_its_time_over_each_step() -> None:
    tokens: dict[str, float] = {}
    for line in ("at 1 stall peer3 for 0", "at 5 slow peer2 20x for 25"):
        sim = Simulation(3, QUIET, [fault(line)])
        sim.at(30.0, lambda sim=sim, line=line: tokens.update({line: _trained(sim, "peer2")}))
        sim.run()
    usual, slow = tokens.values()
    assert slow < usual / 3


def _trained(sim: Simulation, name: str) -> float:
    return sum(life.tokens for member, life in sim.referee.lives.items() if member.peer == sim.peer_id(name))


def test_a_peer_that_counts_wrong_notices_and_rejoins() -> None:
    found = outcome("at 10 miscount peer2", world=replace(QUIET, peers=5))
    [noticed] = said(found, "taking the state from the others again")
    assert said(found, "taking the state from the others again", "peer2") == [noticed]
    after = [text for at, _, text in found.notes if at > noticed + 3 and " opened: " in text]
    assert "peer2" in after[1]


def test_everybody_restarts_from_one_disk() -> None:
    found = outcome("at 12 restart all from peer2")
    [died] = said(found, "caught up", "peer2/2")
    assert found.crashes == 3
    assert len([at for at in said(found, "committed", "peer1/2") if at > died]) >= 3


def test_who_is_mute_for_one_is_heard_by_the_other() -> None:
    sim = Simulation(3, QUIET, [fault("at 5 mute peer1 -> peer2 for 10")])
    heard: list[bool] = []

    def look() -> None:
        member = sim.peers[sim.peer_id("peer1")].me
        heard.extend(
            sim.peers[sim.peer_id(name)].core.swarm.lives(member, sim.now) for name in ("peer2", "peer3")
        )

    sim.at(12.0, look)
    sim.run()
    assert heard == [False, True]


@pytest.mark.parametrize("what", ["loss", "duplicate", "late"])
def test_bursts_begin_and_end(what: str) -> None:
    sim = Simulation(3, QUIET, [fault(f"at 5 {what} 0.3 for 5"), fault(f"at 8 {what} 0.2 for 5")])
    rates: list[float] = []
    for at in (4.0, 6.0, 11.0, 14.0):
        sim.at(at, lambda: rates.append(sim.faults.rates[what]))
    sim.run()
    assert rates == [0.0, 0.3, 0.2, 0.0]
