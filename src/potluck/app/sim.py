"""``potluck sim``: swarms in virtual time, for anyone who wants to see what faults do, or a failure again."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from potluck.app.output import Output, count
from potluck.errors import UsageError
from potluck.testing.scenario import PRESETS, Scenario, World, large, parse, scenario, small
from potluck.testing.shrink import failure_of, shrink
from potluck.testing.simulator import InvariantBroken, Outcome, Simulation

TOKENS_A_PEER = 1000
"""Tokens of a round for each peer: about ten seconds' work of a simulated one."""

PEERS = 6
"""Peers of one world, unless told otherwise."""

CALM_S = 60.0
"""After the faults, the time in which everybody has to get to the head."""

CHUNK = 20
"""Seeds that a worker process takes at a time."""


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for: options of ``potluck sim``, by their names."""

    seed: int
    peers: int | None
    minutes: float
    faults: str
    scenario: Path | None
    seeds: int
    within: float | None
    jobs: int
    shrink: bool
    show: bool


def simulate(out: Output, wanted: Wanted) -> int:
    """Run what is wanted and say what came of it; the exit code is 1 if an invariant was broken.

    Raises:
        UsageError: the scenario can't be read or is none, or there are no such faults.
    """
    if wanted.seeds:
        return _simulate_many(out, wanted)
    peers = wanted.peers or PEERS
    again = f"potluck sim --seed {wanted.seed} --peers {peers} --minutes {wanted.minutes:g}"
    again += f" --faults {wanted.faults}"
    if wanted.scenario is not None:
        found, again = read_scenario(wanted.scenario), f"potluck sim --scenario {wanted.scenario}"
    else:
        found = scenario(wanted.seed, world_of(peers, wanted.minutes, wanted.faults))
    if wanted.show:
        _lines(out, str(found))
        return 0
    return _simulate(out, found, wanted.shrink, again)


def read_scenario(path: Path) -> Scenario:
    """The scenario in a file.

    Raises:
        UsageError: it can't be read, or is none.
    """
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error


def world_of(peers: int, minutes: float, faults: str) -> World:
    """The world that the options describe.

    Raises:
        UsageError: there is no such preset of faults.
    """
    if faults not in PRESETS:
        raise UsageError(f"there are no faults {faults!r}: choose from {', '.join(PRESETS)}")
    preset = PRESETS[faults]
    # The faults of a swarm of 20 and fewer are those of the preset; in a larger one each peer has as many.
    return replace(
        preset.scaled(max(1.0, peers / 20)),
        peers=peers,
        duration_s=60.0 * minutes,
        calm_s=CALM_S,
        round_tokens=TOKENS_A_PEER * peers,
    )


def _simulate(out: Output, found: Scenario, shrinks: bool, again: str) -> int:
    sim = Simulation(found.seed, found.world, found.faults)
    out.status("simulating")
    try:
        outcome = sim.run()
    except InvariantBroken as broken:
        return _failed(out, found, broken, shrinks, again)
    minutes = sim.now / 60
    fields = figures(outcome, minutes)
    text = (
        f"{count(outcome.rounds, 'round')} in {minutes:.1f} minutes; {outcome.reopened} opened again, "
        f"{outcome.reassigned} reassigned, longest gap {outcome.longest_s:.0f} s"
    )
    out.say("faults", f"{len(found.faults)} faults; {outcome.crashes} deaths, {outcome.joins} joined")
    out.say(
        "traffic",
        f"each peer and minute: {fields['messages_a_peer_minute']:,.0f} messages and "
        f"{fields['bytes_a_peer_minute']:,.0f} bytes to others, "
        f"{fields['announcements_a_peer_minute']:,.0f} announcements; "
        f"{fields['hub_messages_s']:,.0f} hub messages a second",
    )
    out.say("events", f"{outcome.events:,} events; every invariant held")
    out.summary(text, None, seed=found.seed, peers=found.world.peers, faults=len(found.faults), **fields)
    return 0


def figures(outcome: Outcome, minutes: float) -> dict[str, float | int]:
    """What a simulation measured. A peer's figures are a minute of one peer's life."""
    lives = max(outcome.lives_s / 60, 1e-9)
    hub = outcome.announcements + outcome.deliveries
    return {
        "minutes": round(minutes, 3),
        "rounds": outcome.rounds,
        "reopened": outcome.reopened,
        "reassigned": outcome.reassigned,
        "crashes": outcome.crashes,
        "joins": outcome.joins,
        "tokens": outcome.tokens,
        "longest_gap_s": round(outcome.longest_s, 3),
        "events": outcome.events,
        "messages_a_peer_minute": round(outcome.requests / lives, 2),
        "bytes_a_peer_minute": round(outcome.request_bytes / lives, 1),
        "announcements_a_peer_minute": round(outcome.announcements / lives, 2),
        "announcement_bytes": round(outcome.announcement_bytes / max(outcome.announcements, 1), 1),
        "hub_messages_s": round(hub / max(minutes * 60, 1e-9), 1),
    }


def _failed(out: Output, found: Scenario, broken: InvariantBroken, shrinks: bool, again: str) -> int:
    """Say what broke, how to see it again, and the smallest scenario that breaks it."""
    said = str(broken).partition("\n")[0]
    out.say("broken", said)
    out.next("to see it again", again)
    if shrinks:
        shrunk = shrink(found, out.status)
        found, said = shrunk.scenario, str(shrunk.failure).partition("\n")[0]
        out.say("shrunk", f"the smallest scenario found in {shrunk.runs} runs fails so: {said}")
        _lines(out, str(found))
    out.summary(
        f"an invariant is broken: {broken.broke}",
        ("to see that again, put its lines in FILE", "potluck sim --scenario FILE") if shrinks else None,
        broke=broken.broke,
        scenario=str(found),
    )
    return 1


def _lines(out: Output, text: str) -> None:
    """A scenario, as it goes into a file."""
    if out.json:
        out.say("scenario", text)
        return
    for line in text.splitlines():
        out.say("scenario", line)


# -- many seeds --------------------------------------------------------------------------------------


def _world(seed: int, peers: int | None) -> World:
    return small(seed) if peers is None else large(seed, peers)


def _one(seed: int, peers: int | None) -> tuple[int, int, float, str]:
    """Rounds, events, longest gap of the world of a seed, and what it breaks."""
    sim = Simulation(seed, _world(seed, peers))
    try:
        sim.run()
    except InvariantBroken as broken:
        return sim.outcome.rounds, sim.outcome.events, sim.outcome.longest_s, broken.broke
    return sim.outcome.rounds, sim.outcome.events, sim.outcome.longest_s, ""


def _simulate_many(out: Output, wanted: Wanted) -> int:
    """The worlds of many seeds; of the first that fails all that is said of one."""
    ran, rounds, events, longest_s, failed = 0, 0, 0, 0.0, list[int]()
    for seed, (some, many, gap_s, broke) in _results(wanted):
        ran, rounds, events, longest_s = ran + 1, rounds + some, events + many, max(longest_s, gap_s)
        out.status(f"{seed - wanted.seed + 1} of {wanted.seeds} seeds, {len(failed)} failed")
        if broke:
            failed.append(seed)
            out.say("failed", f"seed {seed}: {broke}", seed=seed, broke=broke)
    short = f" of {wanted.seeds:,}" if ran < wanted.seeds else ""
    late = f", as {wanted.within:g} minutes are over" if short else ""
    out.say(
        "seeds",
        f"{ran:,}{short} seeds{late}, {len(failed)} failed; {rounds:,} rounds, longest gap {longest_s:.0f} s",
        seeds=ran,
        failed=failed,
        rounds=rounds,
        events=events,
        longest_gap_s=round(longest_s, 3),
    )
    if not failed:
        out.summary("every invariant held", seeds=ran, rounds=rounds, events=events)
        return 0
    first = failed[0]
    again = f"potluck sim --seed {first} --seeds 1" + (f" --peers {wanted.peers}" if wanted.peers else "")
    found = scenario(first, _world(first, wanted.peers))
    broken, _ = failure_of(found)
    assert broken is not None, "the same scenario gives the same run"
    return _failed(out, found, broken, wanted.shrink, again)


def _results(wanted: Wanted) -> Iterator[tuple[int, tuple[int, int, float, str]]]:
    """The outcome of each seed, in order, until the time is over."""
    seeds = range(wanted.seed, wanted.seed + wanted.seeds)
    until = math.inf if wanted.within is None else time.monotonic() + 60 * wanted.within
    if wanted.jobs == 1:
        for seed in seeds:
            yield seed, _one(seed, wanted.peers)
            if time.monotonic() > until:
                return
        return
    chunk = max(1, min(CHUNK, wanted.seeds // (16 * wanted.jobs)))
    chunks = iter([seeds[at : at + chunk] for at in range(0, len(seeds), chunk)])
    some = partial(_some, peers=wanted.peers)
    with ProcessPoolExecutor(wanted.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = deque(pool.submit(some, one) for one in islice(chunks, 2 * wanted.jobs))
        while pending:
            yield from pending.popleft().result()
            if time.monotonic() < until:
                pending.extend(pool.submit(some, one) for one in islice(chunks, 1))


def _some(seeds: Sequence[int], peers: int | None) -> list[tuple[int, tuple[int, int, float, str]]]:
    return [(seed, _one(seed, peers)) for seed in seeds]
