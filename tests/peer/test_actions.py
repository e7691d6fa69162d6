"""What a peer's shell makes of groups: effects that become requests, and what others send."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from potluck.hub.ledger import MAX_RECORD_BYTES, MemoryLedger
from potluck.optim.state import state_digest
from potluck.peer.actions import EVALUATE_S, LINGER_S, Actions
from potluck.peer.layout import Carry, carried
from potluck.peer.links import Reply
from potluck.peer.meter import Meter
from potluck.peer.state import Contribution, Partial, PeerState, genesis_of
from potluck.protocol.core import PeerCore
from potluck.protocol.effects import (
    Append,
    Apply,
    Combine,
    Drop,
    Evaluate,
    Fetch,
    Note,
    Reduce,
    Revoked,
    SendPartial,
    WriteSnapshot,
)
from potluck.protocol.pacing import LEAST
from potluck.protocol.steward import Rules
from potluck.recipe import Outer, Recipe, Rounds
from potluck.store.blobs import read_blob
from potluck.store.contents import MemoryStore
from potluck.store.snapshots import load_snapshot
from potluck.testing.clock import run_virtual
from potluck.wire.codec import MAX_MESSAGE_BYTES, WIRE, digest
from potluck.wire.messages import Answer, Progress, PushPartial, PushResult
from potluck.wire.records import Chain, Commit, Evaluation, Finish, Held, Member, Open, PartInfo, TensorSpec
from potluck.wire.result import Tally, describe, pack

N = 12
RECIPE = Recipe(outer=Outer("average"), rounds=Rounds(codec="fp32", parts=1))
MEMBERS = tuple(Member(f"{n:064x}", "s") for n in range(9))
"""In three groups: 0 reduces the only part, 4 gathers for 1, 4 and 7."""


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


GENESIS = genesis_of("run", RECIPE, (TensorSpec("w", (N,)),), values(0), WIRE)


class Wire:
    """In place of links: what was asked of whom, and what they answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[Progress, Any, bytes | None]] = []
        self.reply = Reply(Answer(True))
        self.up, self.rtt_s = Meter(), 0.0
        self.paces: list[float] = []

    async def request(
        self, to: Progress, message: Any, body: bytes | None, want: int = 0, pace: float = 0.0
    ) -> Reply:
        self.paces.append(pace)
        self.asked.append((to, message, body))
        return self.reply


class Peer:
    """A member of round 1 with everything but a network."""

    def __init__(self, n: int) -> None:
        core = PeerCore(MEMBERS[n], Rules(200, 3.0, 0, 0, 100), trains=True, have=set(), snapshot_every=5)
        chain = Chain()
        base = PeerState(MemoryStore(), RECIPE, GENESIS)
        base.begin(values(0), np.zeros(N, np.float32), 0)
        for body in (GENESIS, Open(1, 0, MEMBERS, (0,), GENESIS.state, 4.0, "tokens done", 3)):
            if isinstance(body, Open):
                core.applied(0, GENESIS.state, loaded=False)
            core.followed(chain.follow(chain.sequence + 1, chain.next("0" * 64, body)), 0.0)
        for member in MEMBERS:
            address = (f"{member.peer[-1]}:1",)
            core.heard(Progress(peer=member.peer, session="s", addresses=address, phase="training"), 0.0)
        self.core, self.wire, self.notes = core, Wire(), list[str]()
        self.tasks: list[asyncio.Task[None]] = []
        self.actions = Actions(
            core,
            base,
            self.wire,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            chain,
            announce=lambda: None,
            note=self.notes.append,
            problem=self.notes.append,
            changed=lambda: None,
            spawn=lambda work: self.tasks.append(asyncio.get_running_loop().create_task(work)),
        )
        self.state = base

    async def carry_out(self, *effects: Any) -> None:
        for effect in effects:
            self.actions.start(effect)
        await asyncio.gather(*self.tasks)
        self.tasks.clear()

    def give(self, *numbers: int, blocks: int = 0) -> None:
        """What some of our group gave is here."""
        for n in numbers:
            raw = self.state._codec.encode(values(n))
            self.state.take(1, 0, 0, n, Contribution(10.0 + n, raw, blocks))


def peer(n: int) -> Callable[[Callable[[Peer], Coroutine[Any, Any, None]]], Callable[[], None]]:
    """A test of one peer, which is its first argument."""

    def wrap(test: Callable[[Peer], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        async def main() -> None:
            made = Peer(n)
            try:
                await test(made)
            finally:
                made.actions.close()

        def sync() -> None:
            asyncio.run(main())

        sync.__name__, sync.__doc__ = test.__name__, test.__doc__
        return sync

    return wrap


# -- gathering ---------------------------------------------------------------------------------------


@peer(4)
async def test_what_a_group_gave_goes_to_the_reducer_as_one_mean(made: Peer) -> None:
    made.give(1, 7, blocks=3)
    await made.carry_out(Combine(1, 0, 0, (1, 7)))
    await made.carry_out(SendPartial(1, 0, 0, 1, (4,), MEMBERS[0].peer))
    [(to, message, body)] = made.wire.asked
    assert to.peer == MEMBERS[0].peer
    assert body is not None
    assert message == PushPartial(1, 0, 0, ((1, 11.0), (7, 17.0)), ((1, 3), (7, 3)), (4,), len(body))
    mean = np.average([values(1), values(7)], axis=0, weights=[11.0, 17.0])
    np.testing.assert_allclose(np.frombuffer(body, "<f4"), mean, atol=1e-6)


@peer(4)
async def test_what_is_pushed_in_a_round_without_groups_has_a_pace(made: Peer) -> None:
    made.give(1)
    await made.carry_out(Combine(1, 0, 0, (1,)), SendPartial(1, 0, 0, 1, (), MEMBERS[0].peer))
    assert made.core.view.open is not None
    made.core.view.open = dataclasses.replace(made.core.view.open, groups=1)
    slow = Progress(peer=MEMBERS[0].peer, session="s", addresses=("0:1",), beat=9, uplink=40.0, downlink=40.0)
    made.core.heard(slow, 0.0)
    await made.carry_out(SendPartial(1, 0, 0, 1, (), MEMBERS[0].peer))
    assert made.wire.paces == [0.0, LEAST]


@peer(4)
async def test_that_nobody_of_a_group_gives_anything_goes_without_bytes(made: Peer) -> None:
    await made.carry_out(SendPartial(1, 0, 0, None, (1, 4, 7), MEMBERS[0].peer))
    [(_, message, body)] = made.wire.asked
    assert (message, body) == (PushPartial(1, 0, 0, (), (), (1, 4, 7), 0), b"")


@peer(4)
async def test_who_sent_garbage_to_who_gathers_is_named(made: Peer) -> None:
    made.give(1)
    made.state.take(1, 0, 0, 7, Contribution(17.0, b"garbage"))
    assert made.core.exchange is not None
    made.core.exchange._parts[0].gathering.begin((1, 7))
    await made.carry_out(Combine(1, 0, 0, (1, 7)))
    assert made.core.exchange._parts[0].abstained == {7}
    found = made.state.partial(1, 0, 0, 1)
    assert found is not None
    assert found.contributors == ((1, 11.0),)


@peer(4)
async def test_whom_the_reducer_has_already_is_left_out_of_the_next_mean(made: Peer) -> None:
    gathering = made.core.exchange._parts[0].gathering if made.core.exchange else None
    assert gathering is not None
    made.give(1, 7)
    gathering.begin((1, 7))
    await made.carry_out(Combine(1, 0, 0, (1, 7)))
    made.wire.reply = Reply(Answer(False, "1 of 2 are counted already", known=(1,)))
    await made.carry_out(SendPartial(1, 0, 0, 1, (), MEMBERS[0].peer))
    assert gathering.fresh((1, 7)) == {7}


# -- reducing ----------------------------------------------------------------------------------------


def partial(*numbers: int) -> tuple[PushPartial, bytes]:
    raw = np.mean([values(n) for n in numbers], axis=0, dtype=np.float32).astype("<f4").tobytes()
    return PushPartial(1, 0, 0, tuple((n, 10.0) for n in numbers), (), (), len(raw)), raw


@peer(0)
async def test_a_mean_that_is_welcome_is_kept_and_reduced_with_the_rest(made: Peer) -> None:
    push, raw = partial(1, 4, 7)
    assert await made.actions.take_partial(push, MEMBERS[4], raw) == Answer(True)
    made.give(3)
    await made.carry_out(Reduce(1, 0, 0, (3,), (1,)))
    assert made.core.exchange is not None
    [info] = made.core.exchange.held
    assert info.contributors == ((1, 10.0), (3, 13.0), (4, 10.0), (7, 10.0))
    content = made.state.store.get(info.digest)
    assert content is not None
    assert describe(content) == (Tally(1, 0, 0, info.contributors), info)


@peer(0)
async def test_a_mean_that_is_not_welcome_takes_nobodys_place(made: Peer) -> None:
    first, raw = partial(1, 4)
    assert (await made.actions.take_partial(first, MEMBERS[4], raw)).ok
    again, other = partial(1, 7)
    assert (await made.actions.take_partial(again, MEMBERS[7], other)).known == (1,)
    assert made.state.partial(1, 0, 0, 1) == Partial(first.contributors, raw)
    strange, _ = partial(2, 5)
    assert not (await made.actions.take_partial(strange, MEMBERS[4], raw)).ok
    assert made.state.partial(1, 0, 0, 2) is None


@peer(0)
async def test_word_of_who_gives_nothing_keeps_nothing(made: Peer) -> None:
    silent = PushPartial(1, 0, 0, (), (), (1, 4, 7), 0)
    assert (await made.actions.take_partial(silent, MEMBERS[4], b"")).ok
    assert made.state._partials == {}
    assert made.core.exchange is not None
    assert made.core.exchange._parts[0].abstained == {1, 4, 7}


# -- results -----------------------------------------------------------------------------------------


def content(round_: int = 1, attempt: int = 0, part: int = 0, seed: int = 1) -> tuple[bytes, PartInfo]:
    raw = pack(Tally(round_, attempt, part, ((1, 10.0), (4, 20.0))), values(seed).tobytes())
    return raw, describe(raw)[1]


def held(made: Peer) -> tuple[PartInfo, ...]:
    assert made.core.exchange is not None
    return made.core.exchange.held


@peer(4)
async def test_a_result_is_held_by_what_stands_in_it(made: Peer) -> None:
    raw, info = content()
    assert await made.actions.take_result(PushResult(1, 0, info.held), raw) == Answer(True)
    assert held(made) == (info,)
    assert made.state.store.get(info.digest) == raw
    await asyncio.gather(*made.tasks)
    assert made.state._prepared[0].name == info.digest, "it is decoded ahead"


@peer(4)
async def test_of_results_that_come_faster_than_they_are_decoded_the_last_one_is(made: Peer) -> None:
    decoded: list[str] = []
    made.state.prepare = lambda name, raw: decoded.append(name)  # type: ignore[method-assign]
    busy = threading.Event()
    waiting = made.actions._worker.submit(busy.wait, 10.0)
    infos = []
    for seed in range(5):
        raw, info = content(seed=seed)
        infos.append(info)
        assert await made.actions.take_result(PushResult(1, 0, info.held), raw) == Answer(True)
    busy.set()
    assert waiting.result()
    await asyncio.gather(*made.tasks)
    assert decoded == [infos[-1].digest]


@peer(4)
async def test_a_result_that_is_not_what_it_was_said_to_be_is_refused(made: Peer) -> None:
    raw, info = content()
    no = Answer(False, "the result is not what it was said to be")
    pushes = [
        PushResult(2, 0, info.held),
        PushResult(1, 1, info.held),
        PushResult(1, 0, replace(info.held, part=1)),
        PushResult(1, 0, replace(info.held, digest="f" * 64)),
        PushResult(1, 0, replace(info.held, size=info.size + 1)),
    ]
    assert [await made.actions.take_result(push, raw) for push in pushes] == [no] * len(pushes)
    assert held(made) == ()
    assert made.state.store.digests() == set()


@peer(4)
async def test_a_result_that_is_none_is_refused_in_words(made: Peer) -> None:
    for raw in (b"", b"garbage", bytes(100)):
        push = PushResult(1, 0, Held(0, digest(raw), len(raw)))
        answer = await made.actions.take_result(push, raw)
        assert (answer.ok, answer.retry) == (False, False)
        assert "no result" in answer.reason or "can't be read" in answer.reason
    assert held(made) == ()


@peer(4)
async def test_a_result_that_the_disk_refuses_may_come_again(made: Peer) -> None:
    raw, info = content()
    made.state.store.full = True  # type: ignore[attr-defined]
    answer = await made.actions.take_result(PushResult(1, 0, info.held), raw)
    assert (answer.ok, answer.retry) == (False, True)
    assert held(made) == ()


async def fetched(made: Peer, raw: bytes, name: str | None = None) -> None:
    """Content that is fetched as a result."""
    name = name or digest(raw)
    assert made.core.exchange is not None
    made.core.exchange._fetches.setdefault(name, made.core.exchange._cut)
    made.wire.reply = Reply(Answer(True, size=len(raw)), raw)
    await made.carry_out(Fetch(name, len(raw), MEMBERS[1].peer))


@peer(4)
async def test_a_fetched_result_is_held_by_what_stands_in_it(made: Peer) -> None:
    raw, info = content()
    await fetched(made, raw)
    assert held(made) == (info,)


@peer(4)
async def test_fetched_content_that_is_none_of_our_results_is_not_held(made: Peer) -> None:
    for raw in (b"garbage", content(2)[0], content(1, 1)[0]):
        await fetched(made, raw)
    assert held(made) == ()
    assert made.notes == ["7 bytes are no result: its tally is cut off"]
    sound, info = content()
    await fetched(made, sound[:-1] + b"\0", info.digest)
    assert held(made) == ()
    assert made.notes[1:] == [f"content {info.digest[:12]} came damaged: fetching it elsewhere"]


# -- snapshots ---------------------------------------------------------------------------------------


class SlowStore(MemoryStore):
    """Takes nothing in until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = threading.Event(), threading.Event()

    def put(self, raw: bytes | memoryview, name: str = "") -> str:
        self.asked.set()
        assert self.go_on.wait(30)
        return super().put(raw, name)


@peer(0)
async def test_a_reset_does_not_overtake_the_state_before_it(made: Peer) -> None:
    """Else the model would take the carry on top of it, and be off by an outer step."""
    made.give(3)
    info, _ = made.state.reduce(1, 0, 0, (3,))
    assert info is not None
    handover = made.actions.handover
    handover.begin()
    commit = Commit(1, 0, (info,), 10, None, "all")
    await made.carry_out(Apply(commit), Revoked())
    model = values(0) + np.float32(3)
    taken: list[Carry] = []
    handover.exchange(lambda _: model, lambda carries, _: taken.extend(carries))
    assert made.state.plane is not None
    np.testing.assert_array_equal(carried(model, taken), made.state.plane.theta)
    np.testing.assert_allclose(made.state.plane.theta, values(0) - values(3), atol=1e-6)


@peer(4)
async def test_a_snapshot_on_its_way_to_the_disk_keeps_nobody_waiting(made: Peer) -> None:
    old = made.state.store.put(b"an older snapshot's chunk")
    store = SlowStore()
    store._found = made.state.store._found  # type: ignore[attr-defined]
    made.state.store = store
    assert made.state.plane is not None
    before = made.state.plane.digest
    made.actions.start(WriteSnapshot(0))
    assert await asyncio.to_thread(store.asked.wait, 30)
    async with asyncio.timeout(30):
        assert await made.actions.find(old) == b"an older snapshot's chunk"
        await made.actions.work(made.state.plane.theta.fill, 1.0)
    made.actions.start(Drop(frozenset([old])))
    store.go_on.set()
    await asyncio.gather(*made.tasks)
    [(_, snapshot)] = made.core.keeping.written.values()
    assert (snapshot.round, snapshot.state) == (0, before)
    files = {blob.name: read_blob(store, blob) for blob in snapshot.files}
    theta, momentum = load_snapshot(GENESIS.tensors, files)
    assert state_digest(0, theta, momentum) == before
    assert store.get(old) is None


@peer(4)
async def test_what_a_snapshot_written_meanwhile_has_in_common_with_older_ones_is_not_dropped(
    made: Peer,
) -> None:
    raw = b"a chunk"
    name = made.state.store.put(raw)
    made.core.catchup.have.add(name)
    await made.carry_out(Drop(frozenset([name])))
    assert made.state.store.get(name) == raw


# -- the ledger --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MAX_RECORD_BYTES + 1, MAX_MESSAGE_BYTES + 1])
def test_a_record_that_is_too_large_stops_nobody(size: int) -> None:
    @peer(4)
    async def test(made: Peer) -> None:
        made.actions._ledger = MemoryLedger()
        await made.carry_out(Append(Finish(1, "x" * size)))
        notes = [effect.text for effect in made.core.poll(0.0) if isinstance(effect, Note)]
        assert any(note.startswith("append not taken: ") for note in notes), notes

    test()


# -- evaluations -------------------------------------------------------------------------------------


class Measured:
    """In place of an evaluator: figures, or why there are none."""

    every, rises = 2, False

    def __init__(self, figures: tuple[tuple[str, float], ...] = ()) -> None:
        self.figures = figures

    async def evaluate(self, theta: Any) -> tuple[tuple[tuple[str, float], ...], float]:
        from potluck.peer.evaluator import EvaluationFailed

        if not self.figures:
            raise EvaluationFailed("no data")
        assert (theta == values(0)).all()
        return self.figures, 1.5


@peer(0)
async def test_a_measured_state_is_offered_to_the_ledger_with_its_digest(made: Peer) -> None:
    await made.actions.evaluates(Measured((("loss", 2.5),)))  # type: ignore[arg-type]
    assert made.core.announcement(Progress(peer="", session=""), 0.0).evaluates
    made.core.evaluating.round = 0
    await made.carry_out(Evaluate(0))
    body = made.core.evaluating.verdict(made.core.view).body
    assert isinstance(body, Evaluation)
    assert (body.round, body.state, body.metrics) == (0, GENESIS.state, (("loss", 2.5),))
    assert body.reason.endswith(" in 1.5 s")
    assert made.core.evaluating.round == -1


@peer(0)
async def test_what_can_not_be_measured_is_told_and_left_to_others(made: Peer) -> None:
    await made.actions.evaluates(Measured())  # type: ignore[arg-type]
    made.core.evaluating.round = 0
    await made.carry_out(Evaluate(0))
    assert made.notes == ["round 0 is left to others to evaluate: no data"]
    assert not made.core.evaluating.busy


@peer(0)
async def test_who_leaves_waits_only_for_what_it_is_at_or_nobody_is(made: Peer) -> None:
    """At the end of a run: not for others that are at it, nor if nothing is due."""
    await made.actions.evaluates(Measured((("loss", 2.5),)))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await made.actions.evaluated()
        made.core.view.open, made.core.view.finished = None, Finish(0, "enough")
        assert made.core.evaluating.awaited(made.core.view)
        at_it = Progress(peer=MEMBERS[1].peer, session="s", beat=1, evaluates=True, evaluating=0)
        made.core.swarm.hear(at_it, asyncio.get_running_loop().time())
        await made.actions.evaluated()


def test_who_was_at_it_when_it_left_stays_until_the_ledger_may_have_it() -> None:
    """However long the measuring took, its result has as much time to be recorded; all of it has an end."""

    async def stays(at_it_s: float) -> float:
        loop, made = asyncio.get_running_loop(), Peer(0)
        try:
            await made.actions.evaluates(Measured((("loss", 2.5),)))  # type: ignore[arg-type]
            made.core.view.open, made.core.view.finished = None, Finish(0, "enough")
            made.core.evaluating.round = 0
            result = Evaluation(0, GENESIS.state, (("loss", 2.5),), "by peer0")
            loop.call_later(at_it_s, made.core.evaluating.done, result)
            began = loop.time()
            await made.actions.evaluated()
            return loop.time() - began
        finally:
            made.actions.close()

    for at_it_s, total_s in ((0.0, LINGER_S), (30.0, 30.0 + LINGER_S), (1000.0, EVALUATE_S)):
        assert run_virtual(stays(at_it_s)) == pytest.approx(total_s, abs=0.5)
