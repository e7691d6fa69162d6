"""The transport of every day: TLS 1.3 over TCP, both ends known by their Ed25519 keys.

Each stream is one connection, so that bulk never stands in the way of control. The dialer pins the key of
whom it dials; the acceptor asks for a certificate of the run's authority. TLS 1.3 finishes at the dialer
before the acceptor has judged its certificate, so the acceptor's first byte, a ping, is the admission that
``dial`` waits for: a refusal is always raised by ``dial`` itself.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import socket
import ssl
import tempfile
import weakref
from collections import deque
from collections.abc import Coroutine, Sequence

from potluck.errors import ConnectionLost, PotluckError, ProtocolError, Unreachable, UsageError
from potluck.identity import Identity, peer_of_certificate
from potluck.net.addresses import format_address, own_addresses, parse_address
from potluck.net.tls_stream import WORKSPACE_BYTES, TlsStream
from potluck.net.transport import DIAL_S, Handler, Stream, Transport

STAGGER_S = 0.25
"""Head start of each address over the next when a peer has several (as in RFC 8305), in seconds."""

MAX_OUTSIDERS = 64
"""So many unfinished handshakes, and so many strangers; one more, and the oldest makes room."""

MAX_ADDRESSES = 16
"""Of one peer; more are not tried."""

_ACCEPT_PAUSE_S = 0.1

log = logging.getLogger(__name__)


class TlsTransport(Transport):
    """Streams over TLS 1.3 and TCP.

    Args:
        identity: who we are.
        certificate: PEM, issued to us by the run's authority. Without one we are a stranger to everybody
            whom we dial (the authority itself issues its own).
        authority: PEM, the certificate of the run's authority; who is dialed by a key that it did not
            certify refuses. Needed to listen, unless for strangers only.
        strangers: listen to those as well who show no certificate (the hub does, to admit them).
        host, port: where to listen; 0 is any free port, and so is one that is taken.
        advertise: addresses at which others reach us besides our own, say a forwarded port; ``host:port``.

    Raises:
        UsageError: ``certificate`` or ``authority`` is none, or an address is malformed.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        certificate: bytes | None = None,
        authority: bytes | None = None,
        strangers: bool = False,
        host: str = "0.0.0.0",  # noqa: S104 – peers come from other machines
        port: int = 0,
        advertise: tuple[str, ...] = (),
    ) -> None:
        self.peer = identity.peer
        for address in advertise:
            parse_address(address)
        if authority is not None and _holder(authority) == identity.peer and certificate is None:
            certificate = identity.issue(authority, identity.peer)
        self._can_listen = authority is not None or strangers
        self._host, self._port, self._advertise = host, port, advertise
        self._client = _client_context(identity, certificate)
        self._server = _server_context(identity, certificate, authority, strangers)
        self._workspace = memoryview(bytearray(WORKSPACE_BYTES))
        self._streams: weakref.WeakSet[TlsStream] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        # Both in order of arrival, so that the oldest is the first.
        self._shaking: dict[asyncio.Task[None] | None, None] = {}
        self._strangers: dict[TlsStream, None] = {}
        self._closed = False

    async def listen(self, handler: Handler) -> Sequence[str]:
        """As ``Transport.listen``.

        Raises:
            UsageError: there is no authority to know peers by, or the host is not this machine's.
        """
        if not self._can_listen:
            raise UsageError("a transport without the run's authority knows nobody, so it can't listen")
        listener = _bind(self._host, self._port)
        port = listener.getsockname()[1]
        self._spawn(self._accept(listener, handler), listener)
        everywhere = self._host in ("", "0.0.0.0", "::")  # noqa: S104
        own = own_addresses(port) if everywhere else (format_address(self._host, port),)
        return tuple(dict.fromkeys((*self._advertise, *own)))

    async def dial(self, addresses: Sequence[str], peer: str) -> Stream:
        failures: list[str] = []
        admitted: list[TlsStream] = []
        stream: TlsStream | None = None
        try:
            async with asyncio.timeout(DIAL_S):
                await self._race(deque(addresses[:MAX_ADDRESSES]), peer, admitted, failures)
            stream = admitted[0] if admitted and not self._closed else None
        except TimeoutError:
            failures.append(f"nothing else within {DIAL_S:.0f} s")
        finally:
            for other in admitted:
                if other is not stream:
                    other.abort(ConnectionLost("the dial was given up, or another address was quicker"))
        if stream is None:
            tried = (
                "this transport is closed" if self._closed else "; ".join(failures) or "it gave no address"
            )
            raise Unreachable(f"peer {peer[:12]} can't be reached: {tried}")
        self._streams.add(stream)
        return stream

    async def close(self) -> None:
        self._closed = True
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(stream.close() for stream in list(self._streams)))
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _race(
        self, addresses: deque[str], peer: str, admitted: list[TlsStream], failures: list[str]
    ) -> None:
        """Try until one address works; each starts ``STAGGER_S`` after the last, or when that fails."""
        attempts: set[asyncio.Task[None]] = set()
        pending: set[asyncio.Task[None]] = set()
        try:
            while not admitted and (addresses or pending):
                if addresses:
                    attempt = self._attempt(addresses.popleft(), peer, admitted)
                    pending.add(asyncio.create_task(attempt))
                    attempts |= pending
                wait_s = STAGGER_S if addresses else None
                done, pending = await asyncio.wait(
                    pending, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    try:
                        task.result()
                    except Unreachable as error:
                        failures.append(str(error))
        finally:
            for task in attempts:
                task.cancel()
            await asyncio.gather(*attempts, return_exceptions=True)

    async def _attempt(self, address: str, peer: str, admitted: list[TlsStream]) -> None:
        stream = TlsStream(self._client, peer, self._workspace)
        try:
            host, port = parse_address(address)
            await asyncio.get_running_loop().create_connection(lambda: stream, host, port)
        except (OSError, UnicodeError, UsageError) as error:
            raise Unreachable(f"{address}: {getattr(error, 'strerror', None) or error}") from error
        try:
            await stream.handshake()
            await stream.admitted()
            admitted.append(stream)
        except ssl.SSLError as error:
            raise Unreachable(f"{address}: what answers is no peer ({error.reason})") from error
        except (ConnectionLost, ProtocolError, Unreachable) as error:
            raise Unreachable(f"{address}: {error}") from error
        finally:
            if stream not in admitted:
                stream.abort(ConnectionLost("the dial was given up"))

    def _spawn(self, work: Coroutine[None, None, None], connection: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Also for a task that is cancelled before its first step, and so never sees the socket.
        task.add_done_callback(lambda _: connection.close())

    async def _accept(self, listener: socket.socket, handler: Handler) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)  # most likely out of file descriptors
            else:
                self._spawn(self._serve(connection, handler), connection)

    async def _serve(self, connection: socket.socket, handler: Handler) -> None:
        stream = TlsStream(self._server, "", self._workspace)
        if not await self._welcome(stream, connection):
            return
        self._streams.add(stream)
        if not stream.peer:
            self._strangers[stream] = None
            if len(self._strangers) > MAX_OUTSIDERS:
                next(iter(self._strangers)).abort(ConnectionLost("too many strangers at the door; try again"))
        try:
            await handler(stream)
        except PotluckError as error:
            log.info("a stream of peer %s ended: %s", stream.peer[:12] or "(stranger)", error)
        finally:
            self._strangers.pop(stream, None)
            await stream.close()

    async def _welcome(self, stream: TlsStream, connection: socket.socket) -> bool:
        """Whether the handshake came out well; if not, the other side has been told and is gone."""
        task = asyncio.current_task()
        self._shaking[task] = None
        if len(self._shaking) > MAX_OUTSIDERS and (oldest := next(iter(self._shaking))):
            oldest.cancel()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: stream, connection)
            try:
                async with asyncio.timeout(DIAL_S):
                    await stream.handshake()
            except (ssl.SSLError, PotluckError, TimeoutError) as error:
                log.debug("a connection came to nothing: %s", error)
                await stream.close()
                return False
            except asyncio.CancelledError:
                stream.abort(ConnectionLost("the handshake made room for another"))
                raise
            return True
        finally:
            self._shaking.pop(task, None)


def _holder(certificate_pem: bytes) -> str:
    try:
        return peer_of_certificate(ssl.PEM_cert_to_DER_cert(certificate_pem.decode("ascii")))
    except (ValueError, ProtocolError) as error:
        raise UsageError(f"the run's authority is no certificate of an Ed25519 key: {error}") from error


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for choice in (port, 0):
        try:
            both = host == "::" and socket.has_dualstack_ipv6()
            listener = socket.create_server((host, choice), family=family, backlog=128, dualstack_ipv6=both)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not choice:
                raise UsageError(f"can't listen on {format_address(host, port)}: {error.strerror}") from error
        else:
            listener.setblocking(False)
            return listener
    raise UsageError(f"no port is free on {host}")


def _client_context(identity: Identity, certificate: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The dialer compares the key itself, which says more than any name and any signature over it.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        _load(context, identity, certificate)
    return context


def _server_context(
    identity: Identity, certificate: bytes | None, authority: bytes | None, strangers: bool
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # sessions are not resumed
    _load(context, identity, identity.authority() if certificate is None else certificate)
    if authority is not None:
        context.load_verify_locations(cadata=authority.decode("ascii"))
        context.verify_mode = ssl.CERT_OPTIONAL if strangers else ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def _load(context: ssl.SSLContext, identity: Identity, certificate: bytes) -> None:
    # The ssl module reads keys from files only. This one is worth nothing without the password, which
    # never leaves memory, even if the process is killed before the file is removed.
    password = secrets.token_bytes(32).hex()
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate + identity.private_pem(password.encode()))
        file.flush()
        try:
            context.load_cert_chain(file.name, password=password)
        except ssl.SSLError as error:
            raise UsageError(
                f"the certificate is not one for peer {identity.peer[:12]}: {error.reason}"
            ) from error
