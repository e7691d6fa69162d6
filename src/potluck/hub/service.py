"""The hub: admits peers to a run and leads them to its ledger, which runs on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import nats.errors
from filelock import FileLock, Timeout
from nats.aio.client import Client

from potluck.errors import LedgerUnavailable, PotluckError, StoreError, UsageError
from potluck.hub.admission import CHUNK_BYTES, WRONG_SECRET_S, Admitted, Denied, judge, judge_member, opening
from potluck.hub.nats_ledger import ANSWER_S, create_stream, stream_name
from potluck.hub.server import HUB, PEER, NatsServer
from potluck.hub.state import LOCK, HubState, Secret
from potluck.identity import Identity
from potluck.net.addresses import parse_address
from potluck.net.tls import MAX_ADDRESSES, TlsTransport
from potluck.net.transport import Stream
from potluck.wire.codec import encode
from potluck.wire.invite import Invite
from potluck.wire.messages import Answer

INVITE_S = 30 * 86_400.0
"""How long an invite holds unless told otherwise, in seconds."""

MAX_STREAMS = 4
"""Of one peer at a time: one in use, and those of which the hub does not know yet that they are dead."""

CLOSE_S = 1.0
"""How long the last bytes of a peer may take to reach the ledger, in seconds."""

log = logging.getLogger(__name__)


class Hub:
    """A run's hub, as an async context: up inside, down outside.

    Started again on its directory it goes on where it was: same key, run, port (if that is free), invites
    and ledger.

    Args:
        directory: everything it keeps; one hub at a time has it.
        host, port: where to listen; port 0 is the one of last time, or any free one.
        run: the run's name; by default that of last time, or a new one.
        advertise: addresses at which peers reach the hub besides its own, say a forwarded port.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "0.0.0.0",  # noqa: S104 – peers come from other machines
        port: int = 0,
        run: str = "",
        advertise: tuple[str, ...] = (),
    ) -> None:
        self.addresses: Sequence[str] = ()
        self._directory = directory
        self._listen_at = (host, port)
        self._wanted_run = run
        self._advertise = advertise
        self._identity: Identity
        self._state: HubState
        self._server: NatsServer
        self._attached: Counter[str] = Counter()
        self._empty, self._occupied = asyncio.Event(), asyncio.Event()
        self._empty.set()
        self._up = contextlib.AsyncExitStack()

    @property
    def peer(self) -> str:
        """The hub's public key (hex)."""
        return self._identity.peer

    @property
    def run(self) -> str:
        """The name of its run."""
        return self._state.run

    @property
    def nats_pid(self) -> int | None:
        """The process of its nats-server; ``None`` while that is away."""
        return self._server.pid

    @property
    def peers_connected(self) -> int:
        """How many peers are attached to the ledger."""
        return len(self._attached)

    async def __aenter__(self) -> Self:
        """Start.

        Raises:
            UsageError: another hub has the directory, it belongs to another run, the host or port can't be
                listened on, or there is no nats-server.
            StoreError: the directory is damaged or can't be written.
            LedgerUnavailable: nats-server does not start.
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
        self._state = self._state.with_secret(secret, now)
        self._state.save(self._directory)
        return Invite(self.run, self.peer, tuple(self.addresses)[:MAX_ADDRESSES], secret.value, expires)

    async def idle(self, seconds: float) -> None:
        """Return once no peer has been attached for ``seconds`` in a row, from the call on."""
        while True:
            await self._empty.wait()
            try:
                async with asyncio.timeout(seconds):
                    await self._occupied.wait()
            except TimeoutError:
                return

    async def _start(self) -> None:
        directory = self._directory
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
        self._identity = Identity.load_or_create(directory / "key.pem")
        self._state = self._recall()
        self._server = NatsServer(directory / "ledger", self.run, self._state.password)
        self._up.push_async_callback(self._server.stop)
        await self._server.start()
        await self._create_ledger()
        await self._listen()

    def _recall(self) -> HubState:
        state = HubState.load(self._directory)
        if state is None:
            run = self._wanted_run or secrets.token_hex(6)
            stream_name(run)  # says so when it won't do
            state = HubState(run, secrets.token_urlsafe(32))
            state.save(self._directory)
        elif self._wanted_run not in ("", state.run):
            raise UsageError(
                f"{self._directory} is the hub of the run {state.run!r}, not of {self._wanted_run!r}: "
                "use another directory"
            )
        return state

    async def _create_ledger(self) -> None:
        address = self._server.address
        if address is None:
            raise LedgerUnavailable("nats-server ended right after its start")
        client = Client()
        try:
            await client.connect(
                f"nats://{address[0]}:{address[1]}",
                user=HUB,
                password=self._server.hub_password,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                connect_timeout=int(ANSWER_S),
                error_cb=_log_error,
            )
            await create_stream(client, self.run)
        except (OSError, nats.errors.Error) as error:
            raise LedgerUnavailable(f"nats-server does not take the hub's connection: {error}") from error
        finally:
            await client.close()

    async def _listen(self) -> None:
        host, port = self._listen_at
        transport = TlsTransport(
            self._identity,
            authority=self._identity.authority(),
            strangers=True,
            host=host,
            port=port or self._state.port,
            advertise=self._advertise,
        )
        self._up.push_async_callback(transport.close)
        self.addresses = await transport.listen(self._serve)
        own = [address for address in self.addresses if address not in self._advertise]
        got = parse_address(own[-1])[1] if own else port
        if port and got != port:
            raise UsageError(
                f"port {port} on {host} is taken: stop what listens there, or choose another port"
            )
        if self._state.port and got != self._state.port:
            log.warning(
                "port %d, which peers know, is taken: the hub listens on %d now, and they need a new invite",
                self._state.port,
                got,
            )
        self._state = HubState(self.run, self._state.password, got, self._state.secrets)
        self._state.save(self._directory)

    async def _serve(self, stream: Stream) -> None:
        raw = await opening(stream)
        if stream.peer:
            await self._attach(stream, raw)
        else:
            await self._admit(stream, raw)

    async def _admit(self, stream: Stream, raw: bytes) -> None:
        verdict = judge(raw, self.run, self._state.secrets, time.time())
        if isinstance(verdict, Denied):
            log.info("a stranger is not admitted: %s", verdict.reason)
            if verdict.cause == "invite":
                await asyncio.sleep(WRONG_SECRET_S)
            await stream.send(encode(verdict))
            return
        authority = self._identity.authority()
        certificate = self._identity.issue(authority, verdict.peer)
        log.info("peer %s is admitted to %s", verdict.peer[:12], self.run)
        await stream.send(encode(Admitted(certificate, authority, PEER, self._state.password)))

    async def _attach(self, stream: Stream, raw: bytes) -> None:
        verdict = judge_member(raw, self.run)
        if isinstance(verdict, Answer) and verdict.ok and self._attached[stream.peer] >= MAX_STREAMS:
            verdict = Answer(False, f"you have {MAX_STREAMS} connections already", retry=True)
        if isinstance(verdict, Denied) or not verdict.ok:
            await stream.send(encode(verdict))
            return
        with self._counted(stream.peer):
            await self._lead(stream, self._server.address)

    async def _lead(self, stream: Stream, address: tuple[str, int] | None) -> None:
        try:
            if address is None:
                raise ConnectionRefusedError
            reader, writer = await asyncio.open_connection(*address)
        except OSError:
            await stream.send(encode(Answer(False, "the ledger is being started again", retry=True)))
            return
        try:
            await stream.send(encode(Answer(True)))
            await _join(stream, reader, writer)
        finally:
            await _close(writer)

    @contextlib.contextmanager
    def _counted(self, peer: str) -> Iterator[None]:
        self._attached[peer] += 1
        self._occupied.set()
        self._empty.clear()
        try:
            yield
        finally:
            self._attached[peer] -= 1
            if not self._attached[peer]:
                del self._attached[peer]
            if not self._attached:
                self._occupied.clear()
                self._empty.set()


async def serve(
    directory: Path,
    *,
    host: str,
    port: int,
    ready: Callable[[Hub], None],
    until_idle_s: float | None,
    stop: asyncio.Event,
    run: str = "",
) -> None:
    """A hub from start to end: ``ready`` gets it when it is up; it ends when ``stop`` is set, or when no peer
    has been attached for ``until_idle_s`` seconds.

    Raises: what entering ``Hub`` does.
    """
    async with Hub(directory, host=host, port=port, run=run) as hub:
        ready(hub)
        ends: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
        if until_idle_s is not None:
            ends.append(asyncio.create_task(hub.idle(until_idle_s)))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


async def _join(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes both ways until one side ends."""
    ways = [asyncio.create_task(_to_ledger(stream, writer)), asyncio.create_task(_to_peer(reader, stream))]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    for way in done:
        log.info("peer %s is detached: %s", stream.peer[:12], way.result())


async def _to_ledger(stream: Stream, writer: asyncio.StreamWriter) -> str:
    try:
        while True:
            writer.write(await stream.receive(CHUNK_BYTES))
            await writer.drain()
    except (PotluckError, OSError) as error:
        return str(error)


async def _to_peer(reader: asyncio.StreamReader, stream: Stream) -> str:
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            await stream.send(chunk)
    except (PotluckError, OSError) as error:
        return str(error)
    return "nats-server closed the connection"


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()


async def _log_error(error: Exception) -> None:
    log.debug("nats: %s", error)
