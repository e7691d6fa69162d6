"""A site's own NATS: how it is named, and how a hub logs in there with the site's credentials."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import ssl
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import ParseResult, unquote, urlsplit

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from potluck.errors import EnvironmentProblem, PotluckError, StoreError, Unreachable, UsageError
from potluck.hub.nats_ledger import ANSWER_S
from potluck.hub.nkey import Credentials, read_credentials
from potluck.hub.server import OLDEST
from potluck.hub.state import write_private
from potluck.wire.codec import MAX_MESSAGE_BYTES

PORT = 4222
"""Of a NATS server whose URL names none."""

MAX_SERVERS = 16
"""So many may be named."""

CONNECT_S = 3.0
"""How long one of the site's servers may take to let us in, in seconds; then the next is tried."""

SETTINGS_FILE = "nats.json"
"""In a hub's directory: where its site's NATS is and with what to log in, readable by its owner only."""

_UNKNOWN_AUTHORITY = range(18, 22)
_OTHER_NAME = (62, 64)

log = logging.getLogger(__name__)

FilePath = str | os.PathLike[str]


@dataclass(frozen=True, repr=False)
class Nats:
    """A NATS server or cluster that your site runs already, to keep a run's ledger instead of the hub's own.

    Peers never see any of this: they go through the hub, which lets nothing of theirs pass but the run's.

    Args:
        url: ``nats://host:4222``, or several with commas between them; ``tls://`` insists on TLS. A user and
            password, or a token, may stand in it: ``nats://user:password@host``.
        credentials: a ``.creds`` file (JWT and key), or one that holds only an nkey's seed.
        ca: PEM, of the authority that signed the servers' certificates; by default those of this machine.
            Naming one insists on TLS.
        cert: PEM, the certificate that we show to a server that asks for one.
        key: PEM, the key of that certificate.

    Raises:
        UsageError: the URL is none of NATS', or ``cert`` and ``key`` are not both given.
    """

    url: str
    credentials: FilePath = ""
    ca: FilePath = ""
    cert: FilePath = ""
    key: FilePath = ""

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise UsageError("a client certificate for NATS needs its key, and the key its certificate")
        if not 1 <= len(self.servers) <= MAX_SERVERS:
            raise UsageError(
                f"name 1 to {MAX_SERVERS} servers of NATS, as nats://host:4222,nats://other:4222"
            )

    @property
    def servers(self) -> tuple[Server, ...]:
        """Each of the servers named."""
        return tuple(Server.parse(text.strip()) for text in self.url.split(",") if text.strip())

    def __str__(self) -> str:
        return ", ".join(server.address for server in self.servers)

    def __repr__(self) -> str:
        return f"Nats({str(self)!r})"

    def absolute(self) -> Self:
        """The same, wherever the working directory will be."""
        paths = {n: str(v and Path(v).absolute()) for n, v in asdict(self).items() if n != "url"}
        return type(self)(self.url, **paths)

    def save(self, directory: Path) -> None:
        """Keep it in a hub's directory.

        Raises:
            StoreError: the disk refuses.
        """
        write_private(directory / SETTINGS_FILE, json.dumps(asdict(self.absolute()), indent=1).encode())

    @staticmethod
    def load(directory: Path) -> Nats | None:
        """What was saved; ``None`` when nothing was.

        Raises:
            StoreError: it is damaged or can't be read.
            UsageError: as for one made by hand.
        """
        path = directory / SETTINGS_FILE
        try:
            return Nats(**msgspec.json.decode(path.read_bytes(), type=dict[str, str]))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path} can't be read: {error.strerror or error}") from error
        except (msgspec.DecodeError, TypeError) as error:
            raise StoreError(f"{path} is damaged: start the hub with --nats once more ({error})") from error


@dataclass(frozen=True)
class Server:
    """One server of a site: its address, and what its URL says besides."""

    host: str
    port: int
    insists: bool
    """On TLS."""
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @staticmethod
    def parse(url: str) -> Server:
        """Raises ``UsageError`` when it is none."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, PORT if parts.port is None else parts.port
            is_one = parts.scheme in ("nats", "tls") and parts.path in ("", "/") and host and port
        except ValueError:
            is_one = False
        if not is_one or {"?", "#"} & set(url):
            # Without the URL itself: it may hold a password.
            raise UsageError(
                "NATS is named by URLs such as nats://host:4222 or tls://host:4222; in a user or password "
                "write , / ? # @ : as %2C %2F %3F %23 %40 %3A"
            )
        user = None if parts.username is None else unquote(parts.username)
        password = None if parts.password is None else unquote(parts.password)
        return Server(str(host), port, parts.scheme == "tls", user, password)

    @property
    def address(self) -> str:
        """Without user and password."""
        return f"{self.host}:{self.port}" if ":" not in self.host else f"[{self.host}]:{self.port}"


class _Site(TcpTransport):
    """The NATS client's socket; without TLS it says nothing where TLS is insisted on."""

    def __init__(self, insists: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_upgraded = False
        self._insists, self._is_broken = insists, False

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        assert self._io_writer is not None
        loop = asyncio.get_running_loop()
        # A new reader: what came in the clear must not pass for what was said under TLS.
        reader = asyncio.StreamReader(limit=buffer_size)
        protocol = asyncio.StreamReaderProtocol(reader)
        plain = self._io_writer.transport
        self._is_broken = True  # asyncio never tells of the end of a connection whose handshake failed
        try:
            secured = await loop.start_tls(plain, protocol, ssl_context, server_hostname=str(uri))
        except BaseException:
            plain.abort()
            raise
        if secured is None:
            raise ConnectionError("the connection was closed in the TLS handshake")
        self._is_broken = False
        # asyncio leaves this out; without it a reader that is full holds nobody up.
        protocol.connection_made(secured)
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(secured, protocol, reader, loop)
        self.is_upgraded = True

    async def wait_closed(self) -> None:
        if not self._is_broken:
            await super().wait_closed()  # type: ignore[no-untyped-call]

    @property
    def is_connected(self) -> bool:
        """Whether somebody was there at all."""
        return self._io_writer is not None

    def abort(self) -> None:
        """Close it, whether or not the other side takes what was said last."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    def write(self, payload: bytes) -> None:
        if self._insists and not self.is_upgraded:
            raise ConnectionError("it does not ask for TLS, and the credentials are not sent without")
        super().write(payload)  # type: ignore[no-untyped-call]

    def __bool__(self) -> bool:
        return True  # else the client would make one of its own


async def connect(site: Nats) -> Client:
    """Log in at any of a site's servers; the client is not mended when it is lost.

    Raises:
        UsageError: a file can't be read, or no server takes the credentials, or is to be trusted.
        Unreachable: no server answers.
        EnvironmentProblem: the server won't do, and why.
    """
    context, credentials = _context(site), None
    if site.credentials:
        credentials = read_credentials(Path(site.credentials))
    errors: list[PotluckError] = []
    for server in random.sample(site.servers, len(site.servers)):
        try:
            return await _log_in(server, server.insists or bool(site.ca or site.cert), context, credentials)
        except PotluckError as error:
            errors.append(error)
    # What the caller can mend is worth more than a server that is down.
    worst = next((error for error in errors if isinstance(error, UsageError)), errors[0])
    raise type(worst)("; ".join(dict.fromkeys(map(str, errors))))


async def _log_in(
    server: Server, insists: bool, context: ssl.SSLContext, credentials: Credentials | None
) -> Client:
    said: list[Exception] = []

    async def hear(error: Exception) -> None:
        said.append(error)

    client, socket = Client(), _Site(insists)
    client._transport = socket
    try:
        async with asyncio.timeout(CONNECT_S):
            await client.connect(
                f"nats://{server.address}",
                tls=context,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=int(CONNECT_S),
                ping_interval=int(ANSWER_S),
                name="potluck hub",
                error_cb=hear,
                **_who(client, server, credentials),
            )
        _check(client, server)
    except (OSError, nats.errors.Error, ValueError) as error:
        await client.close()
        if client._server_info.get("tls_verify") and isinstance(error, OSError) and socket.is_upgraded:
            raise UsageError(
                f"NATS at {server.address} wants to see a certificate that it trusts ({error}): name one "
                "with --nats-cert FILE --nats-key FILE"
            ) from error
        has_login = credentials is not None or server.user is not None
        if socket.is_connected and "version" not in client._server_info:
            raise _no_greeting(server, error) from error
        raise _in_words(said[0] if said else error, server, socket, has_login=has_login) from error
    except BaseException:
        await client.close()
        raise
    return client


def _who(client: Client, server: Server, credentials: Credentials | None) -> dict[str, Any]:
    """How a client says who it is."""
    if credentials is not None and credentials.jwt:
        jwt = credentials.jwt.encode()
        return {"user_jwt_cb": lambda: jwt, "signature_cb": credentials.sign}
    if credentials is not None:
        # Its own way of reading a seed needs one more package, and the file for as long as it lives.
        client._public_nkey = credentials.public
        return {"signature_cb": credentials.sign}
    if server.password is not None:
        return {"user": server.user, "password": server.password}
    return {"token": server.user} if server.user else {}


def version_of(client: Client) -> str:
    """Its server's version, as 2.11.4."""
    version = client.connected_server_version
    return f"{version.major}.{version.minor}.{version.patch}"


def _check(client: Client, server: Server) -> None:
    if not client.is_connected:
        raise Unreachable(f"NATS at {server.address} closes the connection as soon as we come")
    version = client.connected_server_version
    if (version.major, version.minor) < OLDEST:
        raise EnvironmentProblem(
            f"NATS at {server.address} is version {version_of(client)}: a run's ledger needs "
            f"{'.'.join(map(str, OLDEST))} or newer"
        )
    if client.max_payload < MAX_MESSAGE_BYTES:
        raise EnvironmentProblem(
            f"NATS at {server.address} takes messages of {client.max_payload} bytes only: set its "
            f"max_payload to {MAX_MESSAGE_BYTES} or more"
        )


def _context(site: Nats) -> ssl.SSLContext:
    files = (str(site.ca), str(site.cert), str(site.key))
    return _context_of(*files, tuple(_stamp(file) for file in files if file))


def _stamp(file: str) -> tuple[int, int]:
    """What tells a file from one that took its place."""
    try:
        found = Path(file).stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_ino


@lru_cache(maxsize=4)
def _context_of(ca: str, cert: str, key: str, _: tuple[tuple[int, int], ...]) -> ssl.SSLContext:
    """Kept, since it takes a while to read an authority's files and each peer needs one."""
    file = ca
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if cert:
            file = cert
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
            file = key
            context.load_cert_chain(cert, key, password=lambda: _no_password(key))
    except OSError as error:
        raise UsageError(f"{file} is no PEM file that can be used for NATS: {error}") from error
    return context


def _no_password(key: str) -> str:
    """Else OpenSSL would ask at the terminal, which a hub need not have."""
    raise UsageError(
        f"the key {key} is encrypted, and a hub has nobody to ask for its password: decrypt it with "
        "`openssl pkey -in KEY -out PLAIN`"
    )


def _no_greeting(server: Server, error: Exception) -> PotluckError:
    return Unreachable(
        f"what is at {server.address} does not greet as a NATS server does ({_text(error)}): it is something "
        "else, or wants the TLS handshake first (`handshake_first: auto` there takes both)"
    )


def _text(error: Exception) -> str:
    return str(error).removeprefix("nats: ").strip("'") or "no answer"


def _in_words(error: Exception, server: Server, socket: _Site, *, has_login: bool) -> PotluckError:
    where, text = f"NATS at {server.address}", _text(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return UsageError(f"{where} shows a certificate that is not trusted ({_why_not(error)}")
    if isinstance(error, ssl.SSLError):
        return UsageError(f"{where} does not agree on TLS: {error.reason or error}")
    if "Authorization" in text or "Authentication" in text:
        if not has_login:
            return UsageError(f"{where} wants credentials: --nats-creds FILE, or user:password in the URL")
        return UsageError(f"{where} does not take the credentials given for it: {text}")
    if not socket.is_connected:
        return Unreachable(f"{where} can't be reached ({text}): is it running, is this its address?")
    return Unreachable(f"{where} can't be reached: {text}")


def _why_not(error: ssl.SSLCertVerificationError) -> str:
    """What OpenSSL has against a certificate, and what to do about it."""
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return f"{error.verify_message}): name the site's authority with --nats-ca FILE"
    if error.verify_code in _OTHER_NAME:
        return f"{error.verify_message}): name the server in the URL as its certificate does"
    return f"{error.verify_message}): its keepers have to see to it"


def choose(directory: Path, given: Nats | None, *, is_sites: bool | None) -> Nats | None:
    """Which NATS a hub's run has; ``None`` for one of the hub's own.

    Args:
        directory: the hub's; it may know from earlier.
        given: what its owner names now, if anything.
        is_sites: whether the run's ledger is at a site's NATS already; ``None`` if the run is new.

    Raises:
        UsageError: the run's ledger is where nobody named it, or is not where it was named.
        StoreError: the directory is damaged.
    """
    if given is not None and is_sites is False:
        raise UsageError(
            "this run's hubs keep its ledger themselves, and it can't move to a site's NATS: leave --nats "
            "and POTLUCK_NATS out, or use another --directory"
        )
    chosen = None if is_sites is False else given or Nats.load(directory)
    if chosen is None and is_sites:
        raise UsageError("this run's ledger is at its site's NATS: name that, with --nats URL")
    return chosen
