"""The thin shell around a core: one asyncio loop feeds it, carries its effects out, re-arms one timer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from msgspec.structs import replace

from potluck import __version__
from potluck.errors import LedgerUnavailable, Refused
from potluck.hub.client import HubClient
from potluck.net.tls import TlsTransport
from potluck.peer.actions import LINGER_S, Actions
from potluck.peer.archiver import Archiver
from potluck.peer.course import Course
from potluck.peer.events import Events, Watcher
from potluck.peer.files import Files
from potluck.peer.founding import found_run
from potluck.peer.keeper import Keeper
from potluck.peer.links import Desk, Links
from potluck.peer.machine import machine_id, share_of_cores
from potluck.peer.place import Founding, Place
from potluck.peer.residuals import found, kept
from potluck.peer.state import PeerState
from potluck.protocol.core import PeerCore
from potluck.protocol.steward import Rules
from potluck.recipe import Recipe
from potluck.store.archive import Archive
from potluck.store.journal import NAME, Journal
from potluck.store.residuals import ResidualsFile, Whose
from potluck.store.store import Store
from potluck.wire.invite import Invite
from potluck.wire.messages import Progress, Push, PushContribution, PushPartial, PushResult
from potluck.wire.records import Chain, Entry, Genesis, Member

log = logging.getLogger("potluck.peer")

NEWS_S = 0.05
FEW = 40
"""Of more than ``FEW`` peers news is looked at after so many seconds for each as many again."""

BEAT_S = 1.0
"""How often a peer announces itself, in seconds."""

LEAVE_S = 3.0
"""How long a leaving peer stays for the round in flight, in seconds."""

GENESIS_S = 120.0
"""How long a joiner waits for a run that has not begun, in seconds."""


class Node:
    """One life of one peer. Everything here runs in one asyncio loop, except ``handover``'s trainer side."""

    def __init__(self, invite: Invite, place: Place, watch: Callable[[str], None] | None = None) -> None:
        self._invite, self._place, self._watch = invite, place, watch
        # Sorts after the sessions of this key's earlier lives.
        self.session = f"{time.time_ns():016x}{secrets.token_hex(4)}"
        self._chain = Chain()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ready = asyncio.Event()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._base = Progress(peer=place.identity.peer, session=self.session)
        self._unheard: list[Progress] = []
        self._news = False
        self.hub: HubClient
        self.core: PeerCore
        self.actions: Actions
        self.recipe: Recipe
        self.genesis: Genesis
        self._core_built = self._leaves_well = False
        self._archiver: Archiver | None = None
        self.hub_reason = "connected to the hub"
        self.events = Events()
        self.watcher: Watcher

    # -- coming ----------------------------------------------------------------------------------

    async def start(self, founding: Founding | None = None) -> None:
        """Join the run (or found it), and come up; returns when the run is known and the peer is heard.

        Raises:
            PotluckError: admission, the ledger or the port failed; everything is closed again.
        """
        try:
            await self._start(founding)
        except BaseException:
            await self.close()
            raise

    async def _start(self, founding: Founding | None) -> None:
        place = self._place
        self.hub = await HubClient.join(self._invite, place.identity)
        self.hub.on_connection(self._hub_changed)
        self.hub.on_progress(self._heard)
        self._transport = TlsTransport(
            place.identity,
            certificate=self.hub.certificate,
            authority=self.hub.authority,
            host=place.listen,
        )
        self._store = Store(place.directory / "store")
        journal = await asyncio.to_thread(Journal, place.directory / NAME)
        self._keeper = Keeper(journal, self.hub.ledger, self._problem)
        await self._keeper.meet()
        if place.keep.archive:
            archive = await asyncio.to_thread(Archive, place.keep.archive, self._invite.run)
            self._archiver = Archiver(archive, journal, self._store, self._note)
        if founding is not None:
            run, peer = self._invite.run, place.identity.peer
            await found_run(self.hub.ledger, self._store, run, peer, founding)
        first = await self._genesis()
        await self._build(first)
        self.core.followed(first, self._now())
        await self._catch_the_tail()
        self.actions.state.returning.compare(self.core.view, place.identity.peer)
        addresses = await self._transport.listen(self._serve)
        self._base = Progress(
            peer=place.identity.peer,
            session=self.session,
            since=self._chain.sequence,
            name=place.name,
            version=__version__,
            machine=machine_id(),
            addresses=tuple(addresses),
        )
        if founding is not None:
            await self._begin(founding)
        for work in (self._tail(), self._beat(), self._drive(), self._keeper.mend()):
            self._spawn(work)
        if self._archiver is not None:
            self._spawn(self._archiver.run(self.core))

    async def _genesis(self) -> Entry:
        deadline = self._now() + GENESIS_S
        while self._now() < deadline:
            found = await self.hub.ledger.read(1, 1)
            if found:
                return self._follow(*found[0])
            await self.hub.ledger.changed(1.0)
        raise Refused("the hub is there, but its run has not begun: ask its host to start it")

    async def _catch_the_tail(self) -> None:
        """Read the ledger to its end: how long it was when we came is our place in the line of stewards."""
        while batch := await self.hub.ledger.read(self._chain.sequence + 1):
            for sequence, raw in batch:
                self.core.followed(self._follow(sequence, raw), self._now())

    def _follow(self, sequence: int, raw: bytes) -> Entry:
        """The next record, checked, and kept on this disk."""
        entry = self._chain.follow(sequence, raw)
        self._keeper.add(sequence, raw)
        if self._archiver is not None:
            self._archiver.followed(entry.record.body)
        return entry

    async def _build(self, first: Entry) -> None:
        """Make core, links and actions out of the genesis."""
        body = first.record.body
        if not isinstance(body, Genesis):
            raise Refused("the ledger does not begin with a genesis: this hub holds no run of ours")
        self.genesis, self.recipe = body, Recipe.from_toml(body.recipe)
        state = PeerState(self._store, self.recipe, body)
        rounds, end = self.recipe.rounds, self.recipe.end
        whose = Whose(body.run, self._place.identity.peer, rounds.codec, state.size, state.layout.ranges)
        self._residuals = ResidualsFile(self._place.directory, whose)
        if self._place.trains:
            state.returning = await asyncio.to_thread(found, self._residuals, state.layout)
        rules = Rules(
            rounds.tokens,
            rounds.grace_s,
            end.tokens,
            end.rounds,
            state.round_bytes,
            least_steps=rounds.least_steps,
        )
        have = await asyncio.to_thread(self._store.digests)
        me = Member(self._place.identity.peer, self.session)
        self.core = PeerCore(
            me,
            rules,
            trains=False,
            have=have,
            snapshot_every=rounds.snapshot_every,
            keep_snapshots=self._place.keep.snapshots,
            keep_best=self._place.keep.best,
        )
        self.links = Links(self._transport, self._invite.run, self.session)
        self.actions = Actions(
            self.core,
            state,
            self.links,
            self.hub.ledger,
            self._chain,
            announce=self.announce,
            note=self._note,
            problem=self._problem,
            changed=self._wake.set,
            spawn=self._spawn,
        )
        self.actions.sync = self._keeper.sync
        self.desk = Desk(
            self._invite.run,
            contribution_sizes=state.contribution_sizes,
            partial_sizes=state.partial_sizes,
            take_contribution=self._take_contribution,
            take_partial=self._take_partial,
            take_result=self._take_result,
            find=self.actions.find,
            coming=self._coming,
        )
        self.desk.down = self.links.down
        data, handover = body.blocks * body.epochs, self.actions.handover
        course = Course(self.recipe, data or None, lambda: handover.work.tokens)
        self.watcher = Watcher(self.core, self.events, course)
        self._core_built = True

    async def _begin(self, founding: Founding) -> None:
        """The founder's parameters are the state of round 0."""
        theta = founding.theta.copy()
        carry = await self.actions.work(self.actions.state.begin, theta, np.zeros_like(theta), 0)
        await self.actions.took(carry, loaded=False)

    # -- being there -----------------------------------------------------------------------------

    async def _tail(self) -> None:
        """Follow the ledger, for ever."""
        while True:
            try:
                async for sequence, raw in self.hub.ledger.tail(self._chain.sequence + 1):
                    self.core.followed(self._follow(sequence, raw), self._now())
                    self._wake.set()
            except LedgerUnavailable:
                await self.hub.ledger.changed(0.5)

    async def _beat(self) -> None:
        while True:
            if self.core.beats(self._now()):
                self.announce()
            await asyncio.sleep(BEAT_S)

    async def _drive(self) -> None:
        """Let the core decide whenever something happened, or it is time."""
        while True:
            self._wake.clear()
            for effect in self.core.poll(self._now()):
                self.actions.start(effect)
            if self.core.phase in ("training", "following"):
                self._ready.set()
            if self.core.over and self.actions.handover.over is None:
                assert self.core.view.finished is not None
                self.actions.handover.over = self.core.view.finished.reason
            self.watcher.look(self._now())
            pause_s = self.core.deadline(self._now()) - self._now()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: until Python 3.12 it swallows a cancellation that meets the event.
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()

    def announce(self) -> None:
        """Tell everybody how things stand here."""
        progress = self.core.announcement(self._standing(), self._now())
        busy = [p for p in self.core.swarm.alive(self._now()) if p.phase == "training"]
        neighbours = sum(p.machine == progress.machine for p in busy)
        self.actions.handover.threads = share_of_cores(neighbours)
        self._spawn(self.hub.publish_progress(progress))
        self._wake.set()

    def _standing(self) -> Progress:
        work, base = self.actions.handover.work, self._base
        demand = self.actions.handover.demand
        return Progress(
            peer=base.peer,
            session=base.session,
            since=base.since,
            name=base.name,
            version=base.version,
            machine=base.machine,
            addresses=base.addresses,
            tokens=work.tokens,
            steps=work.steps,
            tokens_per_s=work.tokens_per_s,
            step_s=work.step_s,
            idle_s=self.actions.handover.idle_s,
            uplink=self.links.up.rate,
            downlink=self.links.down.rate,
            rtt_s=self.links.rtt_s,
            loss=work.loss,
            leased=demand.leased,
            wants=demand.wants,
            waiting=demand.waiting,
            bytes_sent=self.links.bytes_sent + self.desk.bytes_sent,
            bytes_received=self.links.bytes_received + self.desk.bytes_received,
        )

    def _heard(self, progress: Progress) -> None:
        if not self._core_built:
            return
        if self.core.heard(progress, self._now()) and not self._news:
            # In a crowd there is always news, and deciding at each would cost the square of its size.
            self._news = True
            crowd = len(self.core.swarm.alive(self._now())) / FEW
            asyncio.get_running_loop().call_later(NEWS_S * crowd if crowd > 1 else 0.0, self._has_news)

    def _has_news(self) -> None:
        self._news = False
        self._wake.set()

    def _hub_changed(self, connected: bool, reason: str) -> None:
        self.hub_reason = reason
        if not connected:
            self._problem(f"hub: {reason}; training goes on, rounds wait")
        else:
            self._note(f"hub: {reason}")
        if connected and self._core_built:
            self.announce()

    async def _serve(self, stream: Any) -> None:
        await self.desk.serve(stream)

    async def _take_contribution(self, push: PushContribution, member: Member, body: bytes) -> Any:
        return await self.actions.take_contribution(push, member, body)

    async def _take_partial(self, push: PushPartial, member: Member, body: bytes) -> Any:
        return await self.actions.take_partial(push, member, body)

    async def _take_result(self, push: PushResult, body: bytes) -> Any:
        return await self.actions.take_result(push, body)

    def _coming(self, push: Push, member: Member, begins: bool) -> None:
        self.core.coming(push, member, begins, self._now())

    def _note(self, text: str) -> None:
        log.info("%s", text)
        if self._watch is not None:
            self._watch(text)

    def _problem(self, text: str) -> None:
        """Something is amiss: whoever watches hears of it, and whoever asked for problems."""
        self._note(text)
        if self._core_built:
            self.watcher.problem(text)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A task's error is the node's: it is raised to whoever waits on it."""
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        log.error("the peer stops: %s", error, exc_info=error)
        if not self._failure.done():
            assert error is not None
            self._failure.set_exception(error)
            if self._core_built:
                self.actions.handover.failure = error
        self._ready.set()

    # -- what others wait for --------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until the state is that of the run's head.

        Raises: whatever ended the node.
        """
        await self._ready.wait()
        self.check()

    def check(self) -> None:
        """Raises whatever ended the node, if something did."""
        if self._failure.done():
            self._failure.result()

    async def enlist(self) -> None:
        """There is a model that fits: once the state is here, this peer contributes, if it was to."""
        self.core.trains = self._place.trains

    async def train(self) -> None:
        """The model has the state: its training begins."""
        self.actions.handover.ask = functools.partial(_soon, asyncio.get_running_loop(), self.announce)
        self.actions.handover.begin()
        self.announce()

    @property
    def files(self) -> Files:
        """What the run's files are had with."""
        return Files(self._store, self.links, self.core, self.actions, self.check, self._note)

    # -- going -----------------------------------------------------------------------------------

    async def leave(self) -> None:
        """Go in good order: see the round in flight through, or the run's end, within bounds; then close."""
        if self._core_built and not self._failure.done():
            self.core.leaving = True
            self.actions.withdraw()
            self.announce()
            over = self.core.over
            if over:
                await self.actions.evaluated()
            deadline = self._now() + (LINGER_S if over else LEAVE_S)
            while self._now() < deadline and not (  # noqa: ASYNC110 – what ends it has many sources
                self._last_to_go() if over else self.core.may_leave
            ):
                await asyncio.sleep(0.1)
            self._leaves_well = self._place.trains and not self._failure.done()
        await self.close()

    def _last_to_go(self) -> bool:
        """Whether everybody else has what the run ended with."""
        others = [p for p in self.core.swarm.alive(self._now()) if p.peer != self.core.me.peer]
        return all(p.round >= self.core.view.round for p in others)

    async def close(self) -> None:
        """Stop at once. Safe to call twice."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if self._core_built and self.actions.evaluator is not None:
            await asyncio.to_thread(self.actions.evaluator.close)
        await asyncio.gather(*tasks, return_exceptions=True)
        leaves_well, self._leaves_well = self._leaves_well, False
        if leaves_well:  # when nothing that is sent or reduced here can change it any more
            owed, sent = await self.actions.work(self.actions.state.owed), self.actions.state.sent
        if self._archiver is not None:
            await self._archiver.close()
        hub: HubClient | None = getattr(self, "hub", None)
        if self._core_built and hub is not None:
            await hub.publish_progress(self._gone())
        # First nobody asks us any more, then we ask nobody, then the worker has nothing left to do.
        if transport := getattr(self, "_transport", None):
            await transport.close()
        if self._core_built:
            await self.links.close()
            self.actions.close()
        if hub is not None:
            await hub.close()
        if leaves_well:
            self._note(await asyncio.to_thread(kept, self._residuals, owed, sent, self.core.over))
        if keeper := getattr(self, "_keeper", None):
            keeper.close()
        if self._failure.done():
            self._failure.exception()

    def _gone(self) -> Progress:
        progress = self.core.announcement(self._standing(), self._now())
        return replace(progress, phase="gone", held=())


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """From another thread; nothing once the loop has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
