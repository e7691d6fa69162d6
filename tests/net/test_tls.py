"""TLS over TCP on this machine: conformance, and who is let in."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from potluck.errors import Refused, Unreachable, UsageError
from potluck.identity import Identity
from potluck.net import tls, tls_stream
from potluck.net.addresses import parse_address
from potluck.net.tls import TlsTransport
from tests.net.conformance import Acceptor, Conformance, World, pair, soon
from tests.net.tls_world import HERE, TlsWorld, ended, still_works


class TestTls(Conformance):
    @pytest.fixture
    def world(self) -> World:
        return TlsWorld()


@pytest.fixture
def world() -> TlsWorld:
    return TlsWorld()


# Who is let in.


def test_the_hub_needs_no_certificate_but_its_own(world: TlsWorld) -> None:
    async def main() -> None:
        member, hub = (
            await Acceptor(world.member()).listen(),
            TlsTransport(world.hub, authority=world.authority),
        )
        await still_works(member, hub)
        assert hub.peer == world.hub.peer
        await hub.close()
        await member.close()

    world.run(main())


def test_without_an_authority_everybody_is_a_stranger(world: TlsWorld) -> None:
    async def main() -> None:
        acceptor = await Acceptor(TlsTransport(Identity.generate(), strangers=True, host=HERE)).listen()
        dialer = world.member()
        await dialer.dial(acceptor.addresses, acceptor.transport.peer)
        assert (await acceptor.accepted()).peer == ""
        await dialer.close()
        await acceptor.close()

    world.run(main())


def test_a_members_certificate_issues_no_others(world: TlsWorld) -> None:
    async def main() -> None:
        member, friend = Identity.generate(), Identity.generate()
        membership = world.hub.issue(world.authority, member.peer)
        chain = member.issue(membership, friend.peer) + membership
        acceptor = await Acceptor(world.member()).listen()
        dialer = TlsTransport(friend, certificate=chain, host=HERE)
        with pytest.raises(Refused):
            await soon(dialer.dial(acceptor.addresses, acceptor.transport.peer))
        await dialer.close()
        await acceptor.close()

    world.run(main())


def test_an_imposter_sees_no_certificate_of_ours(world: TlsWorld) -> None:
    async def main() -> None:
        received = bytearray()
        imposter = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        identity = Identity.generate()
        tls._load(imposter, identity, identity.authority())
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        engine = imposter.wrap_bio(incoming, outgoing, server_side=True)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            incoming.write(await reader.read(65536))
            with pytest.raises(ssl.SSLWantReadError):
                engine.do_handshake()
            writer.write(outgoing.read())
            received.extend(await ended(reader))
            writer.close()

        server = await asyncio.start_server(answer, HERE, 0)
        address = f"{HERE}:{server.sockets[0].getsockname()[1]}"
        dialer = world.member()
        with pytest.raises(Unreachable, match="another machine answers"):
            await soon(dialer.dial([address], world.hub.peer))
        await dialer.close()
        server.close()
        await server.wait_closed()
        assert not received

    world.run(main())


def test_certificates_that_do_not_fit_are_refused_at_once(world: TlsWorld) -> None:
    identity, other = Identity.generate(), Identity.generate()
    with pytest.raises(UsageError, match="not one for peer"):
        TlsTransport(identity, certificate=world.hub.issue(world.authority, other.peer))
    with pytest.raises(UsageError, match="not one for peer"):
        TlsTransport(identity, certificate=b"no certificate")
    for nonsense in (b"no certificate", b"\xff", world.authority[:100]):
        with pytest.raises(UsageError, match="authority"):
            TlsTransport(identity, authority=nonsense)
    with pytest.raises(UsageError, match="no address"):
        TlsTransport(identity, advertise=("nonsense",))


def test_no_key_is_left_on_disk(world: TlsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loaded: list[bytes] = []

    load = ssl.SSLContext.load_cert_chain

    def watched(context: ssl.SSLContext, certfile: str, **kwargs: Any) -> None:
        assert Path(certfile).parent == tmp_path
        assert Path(certfile).stat().st_mode & 0o077 == 0
        loaded.append(Path(certfile).read_bytes())
        load(context, certfile, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    world.member()
    assert len(loaded) == 2
    assert all(b"BEGIN ENCRYPTED PRIVATE KEY" in pem and b"BEGIN PRIVATE KEY" not in pem for pem in loaded)
    assert list(tmp_path.iterdir()) == []


def test_only_tls_1_3(world: TlsWorld) -> None:
    async def main() -> None:
        acceptor = await Acceptor(world.member(strangers=True)).listen()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await soon(asyncio.open_connection(*parse_address(acceptor.addresses[0]), ssl=context))
        await acceptor.close()

    world.run(main())


def test_a_server_with_another_kind_of_key_is_no_peer(world: TlsWorld, tmp_path: Path) -> None:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2100, 1, 1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "pem").write_bytes(certificate.public_bytes(Encoding.PEM) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")

    async def main() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), HERE, 0, ssl=context)
        dialer = world.member()
        with pytest.raises(Unreachable, match="Ed25519"):
            await soon(dialer.dial([f"{HERE}:{server.sockets[0].getsockname()[1]}"], world.hub.peer))
        await dialer.close()
        server.close()
        await server.wait_closed()

    world.run(main())


# Where it listens.


def test_without_an_authority_nobody_can_be_listened_to(world: TlsWorld) -> None:
    async def main() -> None:
        transport = TlsTransport(Identity.generate(), host=HERE)
        with pytest.raises(UsageError, match="authority"):
            await Acceptor(transport).listen()
        await transport.close()

    world.run(main())


def test_a_taken_port_is_replaced_by_a_free_one(world: TlsWorld) -> None:
    async def main() -> None:
        with socket.create_server((HERE, 0)) as taken:
            port = taken.getsockname()[1]
            transport = TlsTransport(world.hub, authority=world.authority, host=HERE, port=port)
            acceptor = await Acceptor(transport).listen()
            assert acceptor.addresses != (f"{HERE}:{port}",)
            await still_works(acceptor, world_member := world.member())
            await world_member.close()
            await acceptor.close()

    world.run(main())


def test_addresses_are_published(world: TlsWorld) -> None:
    async def main() -> None:
        advertised = ("example.org:4000", "[2001:db8::1]:4000")
        transport = TlsTransport(world.hub, authority=world.authority, advertise=advertised)
        acceptor = await Acceptor(transport).listen()
        assert acceptor.addresses[:2] == advertised
        assert parse_address(acceptor.addresses[-1])[0] == HERE
        await acceptor.close()
        nowhere = TlsTransport(world.hub, authority=world.authority, host="192.0.2.1")
        with pytest.raises(UsageError, match="can't listen on 192"):
            await Acceptor(nowhere).listen()
        await nowhere.close()

    world.run(main())


# The connection.


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="this system has no choice of it")
@pytest.mark.parametrize("wanted", ["reno", "there is none such"])
def test_both_ends_ask_for_a_congestion_control_and_do_without(
    world: TlsWorld, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setattr(tls_stream, "CONGESTION", wanted.encode())

    async def main() -> None:
        async with pair(world) as ends:
            for end in ends:
                connection = end._connection  # type: ignore[attr-defined]
                name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 32)
                assert (name.rstrip(b"\0") == wanted.encode()) == (wanted == "reno")
            await ends[0].send(b"hello")
            assert await soon(ends[1].receive(10)) == b"hello"

    world.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other ways")
def test_receive_buffers_have_room_for_what_waits_in_them(world: TlsWorld) -> None:
    async def main() -> None:
        async with pair(world) as ends:
            for end in ends:
                connection = end._connection  # type: ignore[attr-defined]
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= tls_stream.ROOM_BYTES
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1

    world.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux paces a stream")
def test_a_stream_keeps_to_a_pace_until_it_is_lifted(world: TlsWorld) -> None:
    async def main() -> None:
        async with pair(world) as (near, _):
            connection = near._connection  # type: ignore[attr-defined]
            option = socket.SOL_SOCKET, tls_stream.SO_MAX_PACING_RATE
            for rate, most in ((1e6, int(1e6 * tls_stream.FRAMING)), (1e12, -1), (2e6, None), (0.0, -1)):
                near.pace(rate)
                if most is not None:
                    assert connection.getsockopt(*option) == most

    world.run(main())
