"""The hub: admits peers to a run and leads them to its ledger, which runs on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
from filelock import FileLock, Timeout

from potluck.errors import Refused, StoreError, UsageError
from potluck.hub.admission import WRONG_SECRET_S, Attached, Denied, opening
from potluck.hub.behind import Behind
from potluck.hub.between import judge_enlist, judge_hub, kind_of, seek_seat, token_text
from potluck.hub.book import Book, newcomer
from potluck.hub.door import Door
from potluck.hub.engine import Engine
from potluck.hub.gossip import Gossip
from potluck.hub.nats_ledger import stream_name
from potluck.hub.seats import seat_of
from potluck.hub.site import Nats, choose
from potluck.hub.site_engine import SiteEngine
from potluck.hub.state import CLUSTER, LOCK, SITE, SOLO, HubState, Secret, write_private
from potluck.identity import Identity
from potluck.net.addresses import parse_address
from potluck.net.tls import MAX_ADDRESSES, TlsTransport
from potluck.net.transport import Stream
from potluck.wire.codec import encode
from potluck.wire.invite import Invite
from potluck.wire.messages import Answer

INVITE_S = 30 * 86_400.0
"""How long an invite holds unless told otherwise, in seconds."""

AUTHORITY_FILE = "authority.pem"
"""The key of the run's authority, in the directory of a hub that is not the authority itself."""

TOKEN_FILE = "token.txt"  # noqa: S105 – where it is kept
"""In a hub's directory: the line with which `potluck hub add` makes another machine a hub of the run."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Enlistment:
    """How a new hub comes to a run that has one: by a token, to the lowest free seat or to a lost hub's."""

    token: Invite
    seat: int = 0


class Hub:
    """One hub of a run, as an async context: up inside, down outside.

    Started again on its directory it goes on where it was: same key, run, seat, port (if that is free),
    invites and ledger.

    Args:
        directory: everything it keeps; one hub at a time has it.
        host, port: where to listen; port 0 is the one of last time, or any free one.
        run: the run's name; by default that of last time, or a new one.
        advertise: addresses at which peers reach the hub besides its own, say a forwarded port.
        enlistment: to help another hub instead of beginning a run; looked at on a new directory only.
        nats: the site's own NATS, where the run's ledger is instead of here; by default that of last time.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "0.0.0.0",  # noqa: S104 – peers come from other machines
        port: int = 0,
        run: str = "",
        advertise: tuple[str, ...] = (),
        enlistment: Enlistment | None = None,
        nats: Nats | None = None,
    ) -> None:
        self.addresses: Sequence[str] = ()
        self.directory = directory
        self._listen_at = (host, port)
        self._wanted_run = run
        self._advertise = advertise
        self._enlistment = enlistment
        self.nats = nats
        """The site's NATS that has the ledger, once up; ``None`` if the run's hubs have it themselves."""
        self._identity: Identity
        self._book: Book
        self._engine: Behind
        self._door: Door
        self._gossip: Gossip
        self._up = contextlib.AsyncExitStack()

    @property
    def peer(self) -> str:
        """The hub's public key (hex)."""
        return self._identity.peer

    @property
    def run(self) -> str:
        """The name of its run."""
        return self._book.run

    @property
    def seat(self) -> int:
        """The number of its seat, from 1."""
        return self._book.state.seat

    @property
    def nats_pid(self) -> int | None:
        """The process of the nats-server that leads to the ledger in force; ``None`` while that is away."""
        server = self._engine.server
        return server.pid if server else None

    @property
    def peers_connected(self) -> int:
        """How many peers are attached to the ledger here."""
        return self._door.peers

    async def __aenter__(self) -> Self:
        """Start.

        Raises:
            UsageError: another hub has the directory, it belongs to another run, the host or port can't be
                listened on, or there is no nats-server.
            StoreError: the directory is damaged or can't be written.
            LedgerUnavailable: nats-server does not start.
            Unreachable, EnvironmentProblem: the site's NATS is away or won't do, and why.
            InviteError, Refused, Unreachable: there is no seat for it, and why.
        """
        try:
            await self._start()
        except BaseException:
            await self._up.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._up.aclose()

    def invite(self, valid_s: float | None = INVITE_S) -> Invite:
        """A new invite, for any number of peers, for ``valid_s`` seconds (``None``: for ever).

        Raises:
            StoreError: it can't be written down.
        """
        now = time.time()
        expires = 0 if valid_s is None else max(int(now + valid_s), 1)
        secret = Secret(secrets.token_bytes(16), expires)
        self._book.write(self._book.state.with_secret(secret, now))
        others = tuple((seat.hub, seat.addresses) for seat in self._book.others if seat.addresses)
        return Invite(self.run, self.peer, self._own_addresses(), secret.value, expires, others)

    def token(self) -> Invite:
        """By whom this is held, a machine can become a hub of the run: whom the owner trusts with everything.

        Raises:
            StoreError: it can't be written down.
        """
        if not self._book.state.tokens:
            self._book.write(self._book.state.with_token(Secret(secrets.token_bytes(16))))
        token = self._book.state.tokens[0]
        return Invite(self.run, self.peer, self._own_addresses(), token.value)

    async def idle(self, seconds: float) -> None:
        """Return once no peer has been attached to any of the run's hubs for about ``seconds``."""
        await self._door.idle(seconds)

    async def replaced(self) -> None:
        """Return when another hub has been given this one's seat."""
        await self._book.wait(lambda: self._book.replaced)

    async def grown(self) -> None:
        """Return when the ledger is kept by several hubs."""
        await self._book.wait(lambda: self._book.state.engine == CLUSTER)

    async def whole(self) -> None:
        """Return when each of several hubs has the whole ledger: any one of them may be lost then."""
        await self._book.wait(lambda: self._book.state.engine == CLUSTER and not self._book.lagging)

    def _own_addresses(self) -> tuple[str, ...]:
        return tuple(self.addresses)[:MAX_ADDRESSES]

    async def _start(self) -> None:
        self._lock()
        self._identity = Identity.load_or_create(self.directory / "key.pem")
        state = await self._recall()
        path = self.directory / AUTHORITY_FILE
        authority = Identity.load_or_create(path) if path.exists() else self._identity
        self._book = Book(self.directory, state, self.peer, authority)
        self._door = Door(self._book, lambda: self._engine.target)
        if self.nats is not None:
            self._engine = SiteEngine(self.nats, self._book)
        else:
            self._engine = Engine(self.directory, self.peer, self._book, self._door.detach_all)
        self._gossip = Gossip(self._book)
        self._up.push_async_callback(self._engine.stop)
        await self._engine.prepare()
        if self.nats is not None:
            self.nats.save(self.directory)  # not before it has proved to be the one
        await self._listen()

    def _lock(self) -> None:
        directory = self.directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = FileLock(directory / LOCK, mode=0o600, thread_local=False)
            lock.acquire(blocking=False)
        except Timeout:
            raise UsageError(
                f"another hub is running on {directory}: stop it, or use another directory"
            ) from None
        except OSError as error:
            raise StoreError(f"the hub can't write to {directory}: {error.strerror or error}") from error
        self._up.callback(lock.release)

    async def _recall(self) -> HubState:
        state = HubState.load(self.directory)
        token = self._enlistment.token if self._enlistment else None
        wanted = token.run if token else self._wanted_run
        if state is not None and wanted not in ("", state.run):
            raise UsageError(
                f"{self.directory} is the hub of the run {state.run!r}, not of {wanted!r}: "
                "use another directory"
            )
        # A first start that failed binds nobody: there is no ledger yet.
        is_new = state is None or (state.engine == SITE and not state.made)
        is_sites = None if is_new or state is None else state.engine == SITE
        if state is None and self._enlistment is not None:
            state = await self._enlist_at(self._enlistment)
            is_sites = state.engine == SITE
        self.nats = choose(self.directory, self.nats, is_sites=is_sites)
        if state is None:
            run = wanted or secrets.token_hex(6)
            stream_name(run)  # says so when it won't do
            state = HubState(run, secrets.token_urlsafe(32))
        if is_sites is None:
            state = msgspec.structs.replace(state, engine=SITE if self.nats else SOLO)
        if not state.cluster_password:
            state = msgspec.structs.replace(state, cluster_password=secrets.token_urlsafe(32))
        state.save(self.directory)
        return state

    async def _enlist_at(self, how: Enlistment) -> HubState:
        """Get a seat from the hub that gave the token."""
        stranger = TlsTransport(self._identity)
        try:
            stream = await stranger.dial(how.token.addresses, how.token.hub)
            enlisted = await seek_seat(stream, how.token, self.peer, how.seat)
        finally:
            await stranger.close()
        write_private(self.directory / AUTHORITY_FILE, enlisted.authority)
        return newcomer(how.token.run, enlisted)

    async def _listen(self) -> None:
        host, port = self._listen_at
        book, state = self._book, self._book.state
        transport = TlsTransport(
            self._identity,
            certificate=book.authority.issue(book.pem, self.peer),
            authority=book.pem,
            strangers=True,
            host=host,
            port=port or state.port,
            advertise=self._advertise,
        )
        self._up.push_async_callback(transport.close)
        # Servers are stopped while they can still hand their part of the ledger over to the others.
        self._up.push_async_callback(self._engine.stop)
        await self._engine.start(transport)
        self.addresses = await transport.listen(self._serve)
        own = [address for address in self.addresses if address not in self._advertise]
        got = parse_address(own[-1])[1] if own else port
        if port and got != port:
            raise UsageError(
                f"port {port} on {host} is taken: stop what listens there, or choose another port"
            )
        if state.port and got != state.port:
            log.warning(
                "port %d, which peers know, is taken: the hub listens on %d now, and they need a new invite",
                state.port,
                got,
            )
        book.update(port=got)
        book.sit(self._own_addresses())
        write_private(self.directory / TOKEN_FILE, token_text(self.token()).encode() + b"\n")
        self._gossip.start(transport)
        self._up.push_async_callback(self._gossip.stop)

    async def _serve(self, stream: Stream) -> None:
        raw = await opening(stream)
        kind = kind_of(raw)
        if not stream.peer:
            await (self._enlist(stream, raw) if kind == "Enlist" else self._door.admit(stream, raw))
        elif kind in ("Meet", "Route"):
            await self._with_hub(stream, raw, kind)
        else:
            await self._door.attach(stream, raw)

    async def _enlist(self, stream: Stream, raw: bytes) -> None:
        verdict = judge_enlist(raw, self.run, self._book.state.tokens, time.time())
        if isinstance(verdict, Denied):
            log.warning("a machine does not become a hub: %s", verdict.reason)
            await asyncio.sleep(WRONG_SECRET_S)
            await stream.send(encode(verdict))
            return
        try:
            enlisted = self._book.enlist(verdict, self._engine.reached)
        except Refused as error:
            await stream.send(encode(Answer(False, str(error))))
            return
        log.warning("%s is a hub of %s now, on seat %d", verdict.hub[:12], self.run, enlisted.seat)
        await stream.send(encode(enlisted))

    async def _with_hub(self, stream: Stream, raw: bytes, kind: str) -> None:
        seat = seat_of(self._book.others, stream.peer)
        verdict = judge_hub(raw, self.run)
        if isinstance(verdict, Answer) and verdict.ok and seat is None:
            verdict = Answer(False, "you are no hub of this run")
        if isinstance(verdict, Denied):
            await stream.send(encode(verdict))
        elif seat is None or not verdict.ok:
            # With the seats, so that one that was replaced hears of it.
            await stream.send(encode(Attached(verdict, self._book.seats)))
        elif kind == "Route":
            await self._engine.route(stream, seat)
        else:
            await stream.send(encode(Attached(verdict)))
            await self._gossip.serve(stream, seat)


async def serve(
    hub: Hub, *, ready: Callable[[Hub], None], until_idle_s: float | None, stop: asyncio.Event
) -> None:
    """A hub from start to end: ``ready`` gets it when it is up; it ends when ``stop`` is set, or when no peer
    has been attached for ``until_idle_s`` seconds.

    Raises:
        UsageError: another hub was given this one's seat; and what entering ``Hub`` raises.
    """
    async with hub:
        ready(hub)
        watch = asyncio.create_task(_say_when_whole(hub))
        replaced = asyncio.create_task(hub.replaced())
        ends: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait()), replaced]
        if until_idle_s is not None:
            ends.append(asyncio.create_task(hub.idle(until_idle_s)))
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if replaced in done:
                raise UsageError(
                    f"another hub has seat {hub.seat} of run {hub.run} now: remove {hub.directory}, and add "
                    "it again if the run has lost another one"
                )
        finally:
            for end in (*ends, watch):
                end.cancel()
            await asyncio.gather(*ends, watch, return_exceptions=True)


async def _say_when_whole(hub: Hub) -> None:
    await hub.whole()
    log.info("each hub of %s has the whole ledger: any one of them may be lost", hub.run)
