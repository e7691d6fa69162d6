"""The nats-servers of one hub: alone, or one of three, or on the way from the first to the second.

Peers are led to the ledger in force and to no other. Which one that is says ``move``'s rule; a hub writes it
down once it knows, and never goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client

from potluck.errors import LedgerUnavailable, PotluckError
from potluck.hub.behind import Behind, Here, Target
from potluck.hub.book import Book
from potluck.hub.move import Mover, is_move, signed_move, until_moved
from potluck.hub.nats_ledger import ANSWER_S, NatsLedger, ask, create_stream, stream_name
from potluck.hub.routes import Routes
from potluck.hub.seats import SEATS, Seat
from potluck.hub.server import HUB, SYSTEM, Cluster, NatsServer
from potluck.hub.state import CLUSTER, SOLO
from potluck.hub.tell import tell_on, tell_once
from potluck.net.transport import Stream, Transport
from potluck.wire.codec import decode
from potluck.wire.records import Chain, Entry, Record

ALONE_S = 1.5
"""How long a hub that has lost both others goes on leading peers, in seconds: alone it has no ledger."""

AGAIN_S = 1.0
"""Pause after a step of the move that failed, in seconds."""

INSIST_S = 0.2
"""A task that was cancelled and goes on is cancelled again so much later, in seconds."""

ELECTION_S = 3.0
"""How long one question to a cluster that may have no leader yet waits, in seconds."""

log = logging.getLogger(__name__)


class Engine(Behind):
    """The run's own ledger, on this machine and those of its other hubs.

    Args:
        hub: our own key (hex), the author of the ``Move``.
        detach_all: ends the ways of all peers to the ledger.
    """

    def __init__(
        self, directory: Path, hub: str, book: Book, detach_all: Callable[[], Awaitable[None]]
    ) -> None:
        self._directory, self._hub, self._book = directory, hub, book
        self._detach_all = detach_all
        self._solo: NatsServer | None = None
        self._cluster: NatsServer | None = None
        self._routes: Routes | None = None
        self._closing = False
        self._alone: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> Target:
        """Where the ledger in force can be reached on this machine, or why it can't."""
        if self._book.replaced:
            return None, "another hub has this one's place"
        if self._book.state.engine == CLUSTER:
            if not self.reached:
                return None, "this hub reaches neither of the two others, and one alone keeps no ledger"
            server = self._cluster
        elif self._closing:
            return None, f"the run is moving to its {SEATS} hubs"
        elif self._solo is None:
            return None, "this hub is not in use yet: ask the run's first"
        else:
            server = self._solo
        address = server.address if server else None
        return Here(address) if address else None, "the ledger is being started again"

    @property
    def server(self) -> NatsServer | None:
        """The nats-server behind ``target``."""
        return self._cluster if self._book.state.engine == CLUSTER else self._solo

    @property
    def reached(self) -> frozenset[int]:
        """The seats of the other hubs whose nats-servers are connected to ours."""
        return self._routes.connected if self._routes else frozenset()

    async def prepare(self) -> None:
        """Start the server of a run's only hub, before anybody can come.

        Raises: as ``NatsServer.start``; ``LedgerUnavailable`` also if it does not make the ledger.
        """
        book = self._book
        if book.state.engine != SOLO or book.state.seat != 1:
            return
        self._solo = NatsServer(self._directory / "ledger", book.run, book.state.password)
        await self._solo.start()
        async with hub_client(self._solo) as client:
            await create_stream(client, book.run)
            self._closing = await self._ends_with_move(client)

    async def start(self, transport: Transport) -> None:
        """Start what other hubs are needed for, now or when there are three.

        Raises: as ``NatsServer.start``.
        """
        book = self._book
        self._routes = Routes(
            book.run,
            book.state.seat,
            transport,
            seats=lambda: book.seats,
            target=lambda: self._cluster.route_address if self._cluster else None,
            changed=self._routes_changed,
        )
        if book.state.engine == CLUSTER:
            await self._start_cluster()
        else:
            self._spawn(self._grow())
        self._spawn(self._tell())
        self._spawn(self._check())

    async def _check(self) -> None:
        """Look, as long as we are one of several, whether our copy of the ledger is whole."""
        while True:
            if (server := self._cluster) is not None:
                try:
                    await self._check_through(server)
                except LedgerUnavailable:
                    self._book.check(whole=False)
            await asyncio.sleep(AGAIN_S)

    async def _check_through(self, server: NatsServer) -> None:
        async with hub_client(server, SYSTEM) as client:
            while True:
                self._book.check(await is_whole(client))
                await asyncio.sleep(AGAIN_S)

    async def _tell(self) -> None:
        """Tell the peers that are attached here where the run's hubs are: they may soon need another."""
        while True:
            if (server := self.server) is not None:
                try:
                    await self._tell_through(server)
                except LedgerUnavailable as error:
                    log.debug("peers are not told of the hubs: %s", error)
            await asyncio.sleep(AGAIN_S)

    async def _tell_through(self, server: NatsServer) -> None:
        """Tell for as long as this server leads to the ledger in force."""
        async with hub_client(server) as client:
            await tell_on(client, self._book, lambda: server is self.server)

    async def stop(self) -> None:
        """Stop them. Safe to call twice."""
        if self._alone:
            self._alone.cancel()
        await end(self._tasks)
        servers = [server for server in (self._solo, self._cluster) if server]
        await asyncio.gather(*(server.stop() for server in servers))
        if self._routes:
            await self._routes.close()

    async def route(self, stream: Stream, seat: Seat) -> None:
        """Lead another hub's nats-server to ours."""
        assert self._routes is not None
        await self._routes.serve(stream, seat)

    # -- alone or not ----------------------------------------------------------------------------

    def _routes_changed(self) -> None:
        loop = asyncio.get_running_loop()
        if self._alone:
            self._alone.cancel()
            self._alone = None
        if not self.reached and self._book.state.engine == CLUSTER:
            self._alone = loop.call_later(ALONE_S, self._left_alone)

    def _left_alone(self) -> None:
        self._alone = None
        log.warning("this hub reaches neither of the two others: peers are sent to them")
        self._spawn(self._detach())

    async def _detach(self) -> None:
        await self._detach_all()

    # -- from one to three -----------------------------------------------------------------------

    async def _grow(self) -> None:
        book = self._book
        await book.wait(lambda: len(book.seats) == SEATS or book.state.engine == CLUSTER)
        while True:
            try:
                if self._cluster is None:
                    await self._start_cluster()
                if book.state.engine != CLUSTER:
                    await self._settle()
                    book.update(engine=CLUSTER)
                break
            except (PotluckError, OSError, nats.errors.Error) as error:
                log.warning("the run can't move to its %d hubs yet, next try soon: %s", SEATS, error)
                await asyncio.sleep(AGAIN_S)
        log.info("the ledger of %s is kept by %d hubs", book.run, SEATS)
        self._routes_changed()
        solo, self._solo = self._solo, None
        if solo is not None:
            await solo.stop()

    async def _start_cluster(self) -> None:
        book, routes = self._book, self._routes
        assert routes is not None
        if not routes.ports:
            await routes.open()
        cluster = Cluster(
            f"potluck-{book.run}", server_name(book.state.seat), book.state.cluster_password, routes.ports
        )
        server = NatsServer(self._directory / "cluster", book.run, book.state.password, cluster)
        self._cluster = server
        try:
            await server.start()
        except BaseException:
            self._cluster = None
            raise

    async def _settle(self) -> None:
        """Return when the run has moved; on its first hub, move it."""
        book, cluster = self._book, self._cluster
        assert cluster is not None
        async with hub_client(cluster) as client:
            new = NatsLedger(book.run)
            await new.attach(client)
            try:
                await create_stream(client, book.run, SEATS, ELECTION_S)
                if self._solo is None:
                    await until_moved(new, self._is_ours)
                else:
                    async with hub_client(self._solo) as other:
                        old = NatsLedger(book.run)
                        await old.attach(other)
                        await self._bulk(mover := self._mover(old, new), old, other)
                        # They are about to lose this one for a moment, if not for ever.
                        await tell_once(other, book)
                        await self._move(mover)
            finally:
                new.detach("the move is over")

    def _mover(self, old: NatsLedger, new: NatsLedger) -> Mover:
        return Mover(old, new, self._is_ours, self._close)

    async def _bulk(self, mover: Mover, old: NatsLedger, client: Client) -> None:
        """Copy what there is, with the run going on; what comes meanwhile must not put this off for ever."""
        while not (last := await last_sequence(client, self._book.run)):
            await old.changed(AGAIN_S)  # the run has not begun: there is nothing to move
        await mover.copy(last)
        await mover.copy(await last_sequence(client, self._book.run))

    async def _move(self, mover: Mover) -> None:
        """Copy the rest; nobody is led to either ledger meanwhile."""
        log.info("the run moves to %d hubs: %d records are there", SEATS, mover.copied)
        self._closing = True
        try:
            await self._detach_all()
            await mover.finish()
        finally:
            # Once the old log may be closed, there is no way back but forth.
            self._closing = mover.closing

    def _is_ours(self, entry: Entry) -> bool:
        return is_move(entry, self._book.run, CLUSTER, self._book.authority.peer)

    def _close(self, chain: Chain) -> bytes:
        reason = f"from one hub to {SEATS}: any one of them may be lost now"
        return chain.next(
            self._hub, signed_move(self._book.run, CLUSTER, chain, self._book.authority, reason)
        )

    async def _ends_with_move(self, client: Client) -> bool:
        """Whether the log of the run's only hub is closed already."""
        last = await last_sequence(client, self._book.run)
        if not last:
            return False
        ledger = NatsLedger(self._book.run)
        await ledger.attach(client)
        (sequence, raw), *_ = await ledger.read(last, 1)
        try:
            return self._is_ours(Entry(sequence, "", decode(raw, Record)))
        except PotluckError:
            return False  # garbage, which everybody skips

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.asynccontextmanager
async def hub_client(server: NatsServer, user: str = HUB) -> AsyncIterator[Client]:
    """A connection to our own server, by default as the user that may do everything.

    Raises:
        LedgerUnavailable: it does not take it.
    """
    client = Client()
    if server.address is None:
        raise LedgerUnavailable("nats-server ended right after its start")
    try:
        await client.connect(
            f"nats://{server.address[0]}:{server.address[1]}",
            user=user,
            password=server.hub_password,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            connect_timeout=int(ANSWER_S),
            error_cb=_log_error,
        )
        yield client
    except (OSError, nats.errors.Error) as error:
        raise LedgerUnavailable(f"nats-server does not take the hub's connection: {error}") from error
    finally:
        await client.close()


async def is_whole(client: Client) -> bool:
    """Whether a server of several, asked as ``SYSTEM``, has all of the ledger, by its own word.

    (Its leader's word will not do: of a server that came back empty under its old name it says for a while
    that nothing is missing.)
    """
    try:
        subject = f"$SYS.REQ.SERVER.{client._server_info['server_id']}.HEALTHZ"
        reply = await ask(client, subject, b"{}", ELECTION_S)
        return bool(json.loads(reply.data)["data"]["status"] == "ok")
    except (TimeoutError, ValueError, KeyError, TypeError):
        return False


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: below them, in the NATS client, a cancellation may get lost."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=INSIST_S)


def server_name(seat: int) -> str:
    """What a seat's nats-server is called by the others. It outlives disks: one that comes back empty is
    given everything again.
    """
    return f"hub-{seat}"


async def stream_info(client: Client, run: str, patience_s: float = ANSWER_S) -> dict[str, Any]:
    """What the ledger's leader says of it.

    Raises:
        LedgerUnavailable: nobody answers.
    """
    try:
        reply = await ask(client, f"$JS.API.STREAM.INFO.{stream_name(run)}", b"", patience_s)
        info: dict[str, Any] = json.loads(reply.data)
    except (OSError, TimeoutError, nats.errors.Error, ValueError) as error:
        raise LedgerUnavailable(f"nats-server does not say how the ledger is: {error!r}") from error
    return info


async def last_sequence(client: Client, run: str) -> int:
    """The last sequence of the run's ledger, by its leader's word.

    Raises:
        LedgerUnavailable: it does not say.
    """
    try:
        return int((await stream_info(client, run))["state"]["last_seq"])
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerUnavailable("nats-server does not tell the ledger's length") from error


async def _log_error(error: Exception) -> None:
    log.debug("nats: %s", error)
