"""A peer's side of the hub: admission, ledger and everyone's progress, over one stream that comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Callable, Coroutine
from functools import partial
from urllib.parse import ParseResult

import nats.aio.transport
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from potluck.errors import ConnectionLost, LedgerUnavailable, PotluckError, ProtocolError, Unreachable
from potluck.hub.admission import CHUNK_BYTES, Admitted, Hubs, seats_subject, seek_admission, seek_ledger
from potluck.hub.nats_ledger import NatsLedger
from potluck.hub.race import first
from potluck.hub.seats import Seat, key_of, merge
from potluck.identity import Identity
from potluck.net.tls import TlsTransport
from potluck.net.transport import Stream
from potluck.wire.codec import WIRE, decode, encode
from potluck.wire.invite import Invite
from potluck.wire.messages import Progress

CONNECT_S = 10.0
"""How long one attempt to reach the hub's ledger may take, in seconds."""

BEGIN_S = 20.0
"""How long a joiner waits for a ledger whose hubs are there but can't use it yet (they move, or elect the one
that leads), in seconds."""

RETRY_S = (0.2, 0.4, 0.8, 1.6)
"""Pauses between attempts, in seconds, each up to half as long again; the last one is repeated."""

PATIENCE_S = 1.5
"""How much longer, with each attempt, a silent hub is waited for when the others have said no, in seconds."""

STALE_S = 10
"""How often the ledger's server is asked whether it is there, in seconds; twice no answer is a no."""

GOODBYE_S = 1
"""How long a close waits for what was published last to arrive, in seconds."""

MAX_WAITING_BYTES = 1 << 16
"""With more than this unsent, progress is dropped instead of queued."""

log = logging.getLogger(__name__)


class Presence:
    """Everyone's ``Progress``, published to all who are there at the moment; nothing is kept."""

    def __init__(self, run: str) -> None:
        self.malformed = 0
        """So many messages were dropped because they could not be read."""
        self._subject = f"potluck.{run}.progress"
        self._client: Client | None = None
        self._callbacks: list[Callable[[Progress], None]] = []

    async def attach(self, client: Client) -> None:
        """Go on over this connection.

        Raises:
            nats.errors.Error: it is closed already.
        """
        await client.subscribe(self._subject, cb=self._receive)
        self._client = client

    def detach(self) -> None:
        """The connection is lost. Safe to call twice."""
        self._client = None

    def listen(self, callback: Callable[[Progress], None]) -> None:
        """Call ``callback`` with each progress published from now on, one's own included."""
        self._callbacks.append(callback)

    async def publish(self, progress: Progress) -> None:
        """Tell everyone. Dropped without a word while the hub is away or slow: the next one says it all.

        Raises:
            ProtocolError: it is too large to travel.
        """
        raw = encode(progress)
        client = self._client
        if client is None or client.pending_data_size > MAX_WAITING_BYTES:
            return
        with contextlib.suppress(OSError, nats.errors.Error):
            await client.publish(self._subject, raw)

    async def _receive(self, message: Msg) -> None:
        try:
            progress = _read(message.data)
        except ProtocolError as error:
            self.malformed += 1
            # At powers of two, so that a flood of them does not flood the log.
            if self.malformed & (self.malformed - 1) == 0:
                log.warning("progress messages that can't be read: %d, the last: %s", self.malformed, error)
            return
        loop = asyncio.get_running_loop()
        for callback in self._callbacks:
            loop.call_soon(callback, progress)


def _read(raw: bytes) -> Progress:
    progress: Progress = decode(raw, Progress)
    if progress.wire != WIRE:
        raise ProtocolError(f"it has wire version {progress.wire}, not {WIRE}")
    return progress


class HubClient:
    """A member's connection to one of its run's hubs, kept up until closed. Made by ``join``.

    A hub that is lost is replaced by the next that answers. While none does, ``ledger`` raises
    ``LedgerUnavailable`` and progress is dropped; both work again by themselves when one is back.
    """

    def __init__(self, invite: Invite, identity: Identity, admitted: Admitted) -> None:
        self.certificate = admitted.certificate
        """PEM, for the peer's own transport."""
        self.authority = admitted.authority
        """PEM, of the run's authority."""
        self.ledger = NatsLedger(invite.run)
        self.presence = Presence(invite.run)
        self.hub = ""
        """The key (hex) of the hub that we are attached to, or were last."""
        self._run = invite.run
        self._hubs = invite.hubs
        self._admitted = admitted
        self._key = key_of(admitted.authority)
        self._seats: tuple[Seat, ...] = ()
        self._learn(admitted.seats)
        self._transport = TlsTransport(
            identity, certificate=admitted.certificate, authority=admitted.authority
        )
        self._link: _Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._watchers: list[Callable[[bool, str], None]] = []

    @staticmethod
    async def join(invite: Invite, identity: Identity) -> HubClient:
        """Be admitted by the hub, and attach to the run's ledger.

        Raises:
            InviteError: the hub does not take the invite, and why.
            VersionMismatch: the hub speaks another wire version.
            Unreachable, ConnectionLost: no hub is there, or none can use the ledger.
            Refused, ProtocolError: it does not behave like one.
        """
        client = HubClient(invite, identity, await _admission(invite, identity))
        try:
            await client._begin()
        except BaseException:
            await client.close()
            raise
        client._keeper = asyncio.create_task(client._keep())
        return client

    @property
    def hubs(self) -> dict[str, tuple[str, ...]]:
        """The run's hubs as far as is known: addresses by key."""
        return dict(self._hubs)

    @property
    def connected(self) -> bool:
        """Whether the hub can be reached, as far as is known."""
        return self._link is not None

    def on_connection(self, callback: Callable[[bool, str], None]) -> None:
        """Call ``callback`` with (connected, the reason in words) at each change from now on."""
        self._watchers.append(callback)

    def on_progress(self, callback: Callable[[Progress], None]) -> None:
        """As ``Presence.listen``."""
        self.presence.listen(callback)

    async def publish_progress(self, progress: Progress) -> None:
        """As ``Presence.publish``."""
        await self.presence.publish(progress)

    async def close(self) -> None:
        """Disconnect; what was published last is flushed within ``GOODBYE_S``. Safe to call twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        self._detach("this peer has left the run")
        if self._link is not None:
            link, self._link = self._link, None
            await link.close(GOODBYE_S)
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._transport.close()

    async def _begin(self) -> None:
        """Connect for the first time, to a ledger that answers."""
        deadline = asyncio.get_running_loop().time() + BEGIN_S
        while True:
            try:
                if self._link is None:
                    await self._connect()
                await self.ledger.read(1, 1)
                return
            except (Unreachable, LedgerUnavailable) as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise Unreachable(f"the run's hubs are there, but not its ledger: {error}") from error
                if self._link is not None and self._link.client.is_closed:
                    link, self._link = self._link, None
                    await link.close(0)
            await asyncio.sleep(RETRY_S[0])

    async def _keep(self) -> None:
        while True:
            if self._link is not None:
                link, reason = self._link, await self._link.lost()
                self._link = None
                self._detach(reason)
                self._tell(False, reason)
                self._end(link)
            await self._come_back()
            self._tell(True, "the hub is back")

    def _end(self, link: _Link) -> None:
        """Close a lost link, whatever happens to whoever noticed that it is."""
        task = asyncio.create_task(link.close(0))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _come_back(self) -> None:
        told, attempt = "", 0
        while self._link is None:
            pause_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
            # Not all at once: a hub that is back is met by everyone. But where there are others, at once.
            if attempt or len(self._hubs) == 1:
                await asyncio.sleep(pause_s * random.uniform(1.0, 1.5))
            attempt += 1
            try:
                # A hub that is silent must not keep us from asking the others again; nor may it be only slow.
                await self._connect(attempt * PATIENCE_S)
            except PotluckError as error:
                if str(error) != told:
                    told = str(error)
                    log.info("the hub is still away: %s", told)

    async def _connect(self, patience_s: float | None = None) -> None:
        link = await first([self._opening(hub) for hub in self._in_turn()], _drop, patience_s)
        self._learn(link.seats)
        try:
            await self.ledger.attach(link.client)
            await self.presence.attach(link.client)
            await link.client.subscribe(seats_subject(self._run), cb=self._told)
        except BaseException as error:
            self._detach(str(error))
            await link.close(0)
            if isinstance(error, nats.errors.Error):
                raise ConnectionLost(f"the hub's ledger went away again: {error}") from error
            raise
        self._link, self.hub = link, link.hub

    def _in_turn(self) -> list[str]:
        """All hubs, in an order that spreads peers over them; the one that was lost comes last."""
        hubs = sorted(self._hubs)
        random.shuffle(hubs)
        return sorted(hubs, key=lambda hub: hub == self.hub)

    def _opening(self, hub: str) -> Callable[[], Coroutine[None, None, _Link]]:
        return lambda: _Link.open(self._transport, hub, self._hubs[hub], self._run, self._admitted)

    async def _told(self, message: Msg) -> None:
        try:
            hubs: Hubs = decode(message.data, Hubs)
        except ProtocolError as error:
            log.debug("what is said of hubs can't be read: %s", error)
            return
        self._learn(hubs.seats)

    def _learn(self, seats: tuple[Seat, ...]) -> None:
        """Take in what a hub says of all of them, as far as the run's authority signed it."""
        self._seats = merge(self._seats, seats, self._run, self._key)
        known = {seat.hub: seat.addresses for seat in self._seats if seat.addresses}
        # Those of the invite only matter until seats are known: a hub of old may have been replaced.
        self._hubs = known or self._hubs

    def _detach(self, reason: str) -> None:
        self.ledger.detach(reason)
        self.presence.detach()

    def _tell(self, connected: bool, reason: str) -> None:
        if connected:
            log.info("%s", reason)
        else:
            log.warning("the hub is away: %s", reason)
        loop = asyncio.get_running_loop()
        for watcher in self._watchers:
            loop.call_soon(watcher, connected, reason)


async def _admission(invite: Invite, identity: Identity) -> Admitted:
    stranger = TlsTransport(identity)

    async def ask(hub: str, addresses: tuple[str, ...]) -> Admitted:
        return await seek_admission(await stranger.dial(addresses, hub), invite, identity.peer)

    async def nothing(_: Admitted) -> None:
        return

    try:
        return await first([partial(ask, *hub) for hub in invite.hubs.items()], nothing)
    except Unreachable as error:
        raise Unreachable(f"{error}{invite.hint(time.time())}") from error
    finally:
        await stranger.close()


async def _drop(link: _Link) -> None:
    await link.close(0)


class _Link:
    """One NATS connection through one stream. It is not mended: when it is lost, a new one takes its place.

    (The NATS client's own way to reconnect sends again what was written in vain, and gives up for good on
    some errors.)
    """

    def __init__(self, stream: Stream, seats: tuple[Seat, ...]) -> None:
        self.client = Client()
        self.hub = stream.peer
        self.seats = seats
        self._bytes = _HubTransport(stream)
        # Its only way in for a transport of another's making.
        self.client._transport = self._bytes
        self._lost = asyncio.Event()

    @staticmethod
    async def open(
        transport: TlsTransport, hub: str, addresses: tuple[str, ...], run: str, admitted: Admitted
    ) -> _Link:
        """A working connection to the ledger.

        Raises:
            PotluckError: as ``Transport.dial`` and ``seek_ledger``; ``Unreachable`` for the server behind.
        """
        stream = await transport.dial(addresses, hub)
        try:
            link = _Link(stream, await seek_ledger(stream, run))
            async with asyncio.timeout(CONNECT_S):
                await link._connect(admitted)
        except (OSError, nats.errors.Error) as error:
            await stream.close()
            raise Unreachable(f"the hub answers, but not its ledger: {error or 'too slow'}") from error
        except BaseException:
            await stream.close()
            raise
        return link

    async def _connect(self, admitted: Admitted) -> None:
        await self.client.connect(
            "nats://hub:4222",  # for the client's logs only: the transport is connected already
            user=admitted.user,
            password=admitted.password,
            allow_reconnect=False,
            connect_timeout=int(CONNECT_S),
            ping_interval=STALE_S,
            error_cb=self._on_error,
            closed_cb=self._on_closed,
        )

    async def lost(self) -> str:
        """Wait until the connection is lost; returns the reason in words."""
        await self._lost.wait()
        return self._bytes.reason or str(self.client.last_error or "the ledger's server does not answer")

    async def close(self, goodbye_s: int) -> None:
        """End it, after what was published has arrived or ``goodbye_s`` have passed."""
        if goodbye_s and not self.client.is_closed:
            with contextlib.suppress(OSError, nats.errors.Error):
                await self.client.flush(timeout=goodbye_s)
        self._bytes.close()
        own = (self.client._reading_task, self.client._ping_interval_task, self.client._flusher_task)
        await self.client.close()
        await asyncio.gather(*(task for task in own if task is not None), return_exceptions=True)
        await self._bytes.wait_closed()

    async def _on_error(self, error: Exception) -> None:
        log.debug("nats: %r", error)

    async def _on_closed(self) -> None:
        self._lost.set()


class _HubTransport(nats.aio.transport.Transport):
    """The NATS client's bytes, as messages of an attached stream."""

    def __init__(self, stream: Stream) -> None:
        self.reason = ""
        self._stream = stream
        self._ahead = b""
        self._outgoing: list[bytes] = []
        self._turn = asyncio.Lock()
        self._ended = False

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        return

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        raise ConnectionError("the ledger's server asks for TLS inside the hub's own")

    def write(self, payload: bytes) -> None:
        self._outgoing.append(payload)

    def writelines(self, payload: list[bytes]) -> None:
        self._outgoing += payload

    async def drain(self) -> None:
        # A failure is not raised: the reader notices it as well, and there it has one consequence.
        async with self._turn:
            data = memoryview(b"".join(self._outgoing))
            self._outgoing.clear()
            try:
                for start in range(0, 0 if self._ended else len(data), CHUNK_BYTES):
                    await self._stream.send(data[start : start + CHUNK_BYTES])
            except PotluckError as error:
                self.reason = self.reason or str(error)

    async def read(self, buffer_size: int) -> bytes:
        data, self._ahead = self._ahead, b""
        return data or await self._receive()

    async def readline(self) -> bytes:
        while b"\n" not in self._ahead and len(self._ahead) < CHUNK_BYTES:
            more = await self._receive()
            if not more:
                break
            self._ahead += more
        line, end, self._ahead = self._ahead.partition(b"\n")
        return line + end

    async def _receive(self) -> bytes:
        """The next bytes; none at the end."""
        if not self._ended:
            try:
                return await self._stream.receive(CHUNK_BYTES)
            except PotluckError as error:
                self.reason = self.reason or str(error)
                self._ended = True
        return b""

    def at_eof(self) -> bool:
        return self._ended and not self._ahead

    def close(self) -> None:
        self._ended = True

    async def wait_closed(self) -> None:
        await self._stream.close()

    def __bool__(self) -> bool:
        return True
