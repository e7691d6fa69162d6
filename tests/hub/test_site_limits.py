"""What peers may cost a site's NATS and its hub, and what a start that goes wrong leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import serialization

from potluck.errors import (
    ConnectionLost,
    EnvironmentProblem,
    PotluckError,
    ProtocolError,
    Unreachable,
    UsageError,
)
from potluck.hub import gated
from potluck.hub.admission import CHUNK_BYTES, seek_ledger
from potluck.hub.client import HubClient
from potluck.hub.gate import MAX_READS, Gate
from potluck.hub.launch import launch_hub
from potluck.hub.ledger import MAX_RECORD_BYTES
from potluck.hub.nats_ledger import MAX_PAYLOAD_BYTES, NatsLedger
from potluck.hub.site import SETTINGS_FILE, Nats, _context
from potluck.hub.site_engine import site_client
from potluck.hub.state import SITE, SOLO, HubState
from potluck.identity import Identity
from potluck.net.transport import Stream

from .doors import door
from .sites import Authority, SiteServer, named, site
from .support import DEADLINE_S, RUN, connection, nats_ledger, running_server
from .test_hub import HOST, member, other_tasks, transport


async def refused(directory: Path, where: str | Nats | None, words: str) -> PotluckError:
    with pytest.raises(PotluckError, match=words) as raised:
        await door(directory, where).__aenter__()
    return raised.value


# -- what peers may cost -------------------------------------------------------------------------


def test_whoever_asks_and_does_not_listen_is_sent_away(tmp_path, lab):
    async def main():
        key = Identity.generate()
        async with (
            door(tmp_path / "hub", named(lab), run="mine") as hub,
            member(hub.invite(), key) as peer,
            transport(key, certificate=peer.certificate) as dialer,
        ):
            for after in range(20):
                await peer.ledger.append(os.urandom(1_000_000), after)
            stream = await dialer.dial(hub.addresses, hub.peer)
            await seek_ledger(stream, "mine")
            greeting = json.loads((await stream.receive(4096)).partition(b" ")[2])
            assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", greeting["version"])
            question = b'{"seq":1}'
            ask = b"PUB $JS.API.DIRECT.GET.POTLUCK_mine _INBOX.a %d\r\n%s\r\n" % (len(question), question)
            await stream.send(b"CONNECT {}\r\nSUB _INBOX.b 1\r\n" + ask * (MAX_READS + 1))
            assert await stream.receive(CHUNK_BYTES) == b"-ERR 'Maximum Reads Exceeded'\r\n"
            with pytest.raises(ConnectionLost):
                await stream.receive(CHUNK_BYTES)
            # Others read on, and as often as they like.
            for _ in range(3 * MAX_READS):
                assert len(await peer.ledger.read(1)) == 5
                assert await peer.ledger.read(21) == []
            assert len(await peer.ledger.read(20, 1)) == 1
            assert peer.connected

    asyncio.run(main())


def test_what_is_not_compared_and_set_is_not_stored(tmp_path, lab):
    async def main():
        async with door(tmp_path / "hub", named(lab), run="mine") as hub, member(hub.invite()) as peer:
            client = peer._link.client
            await client.publish("potluck.mine.ledger", b"x")
            last = {"Nats-Expected-Last-Sequence": "0"}
            await client.publish("potluck.mine.ledger", b"x", headers=last)
            await client.publish(
                "potluck.mine.ledger", b"x", headers={"Nats-Expected-Stream": "POTLUCK_mine"}
            )
            await client.flush()
            assert await peer.ledger.append(b"one", 0) == 1

    asyncio.run(main())


def test_a_hub_takes_so_many_connections_of_the_sites_and_no_more(tmp_path, lab, monkeypatch):
    monkeypatch.setattr("potluck.hub.gated.MAX_PASSAGES", 2)
    monkeypatch.setattr("potluck.hub.client.BEGIN_S", 0.5)

    async def main():
        async with door(tmp_path / "hub", named(lab)) as hub:
            async with member(hub.invite()), member(hub.invite()):
                with pytest.raises(Unreachable, match="2 connections lead through this hub already"):
                    await HubClient.join(hub.invite(), Identity.generate())
            async with asyncio.timeout(DEADLINE_S):
                await hub.idle(0.01)
            async with member(hub.invite()) as one, member(hub.invite()):
                assert await one.ledger.append(b"one", 0) == 1
        assert await other_tasks() == set()

    asyncio.run(main())


class Flood:
    """A stream with one chunk of short lines on it."""

    def __init__(self) -> None:
        self.left = [b"CONNECT {}\r\n" + b"UNSUB 1\r\n" * (CHUNK_BYTES // 9)]

    async def receive(self, limit: int) -> bytes:
        if not self.left:
            raise ConnectionLost("it ended")
        return self.left.pop()

    async def send(self, message: bytes | memoryview) -> None:
        return


class Sink:
    """A socket that takes everything at once; or that never ends, if it was told to close."""

    is_aborted = False

    def write(self, data: bytes) -> None:
        return

    async def drain(self) -> None:
        return

    def close(self) -> None:
        return

    async def wait_closed(self) -> None:
        await asyncio.Event().wait()

    def abort(self) -> None:
        self.is_aborted = True


def test_others_have_their_turn_while_one_says_many_short_lines():
    async def main():
        turns = 0

        def others() -> None:
            nonlocal turns, next_turn
            turns += 1
            next_turn = asyncio.get_running_loop().call_soon(others)

        next_turn = asyncio.get_running_loop().call_soon(others)
        passage = gated._Passage(Gate("r", "me", MAX_PAYLOAD_BYTES), Sink(), "2.11.0")
        assert await passage._inward(cast("Stream", Flood())) == "it ended"
        next_turn.cancel()
        assert turns >= CHUNK_BYTES // gated.GATE_BYTES

    asyncio.run(main())


def test_a_socket_that_does_not_close_is_closed_by_force(monkeypatch):
    monkeypatch.setattr(gated, "CLOSE_S", 0.01)
    sink = Sink()
    asyncio.run(gated._close(sink))
    assert sink.is_aborted


# -- the largest records -------------------------------------------------------------------------


def test_the_largest_record_fits_where_nothing_was_configured(tmp_path, lab):
    async def main():
        async with door(tmp_path / "hub", named(lab)) as hub, member(hub.invite()) as client:
            largest = os.urandom(MAX_RECORD_BYTES)
            assert await client.ledger.append(largest, 0) == 1
            assert await client.ledger.read(1) == [(1, largest)]
            with pytest.raises(ProtocolError, match="is over"):
                await client.ledger.append(largest + b"x", 1)
            assert client.connected

    asyncio.run(main())


def test_a_record_that_a_server_does_not_take_is_said_in_words(tmp_path):
    async def main():
        async with running_server(tmp_path) as server, nats_ledger(server), connection(server) as client:
            ledger = NatsLedger(RUN)
            await ledger.attach(client)
            client._max_payload = 1000
            with pytest.raises(ProtocolError, match="takes 1000 bytes at a time"):
                await ledger.append(bytes(2000), 0)

    asyncio.run(main())


# -- certificates and keys -----------------------------------------------------------------------


def test_a_key_that_is_no_good_is_named(tmp_path):
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = authority.issue("hub")
    _, other = stranger.issue("hub")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        how = serialization.BestAvailableEncryption(b"password")
        locked.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, how))
        with pytest.raises(UsageError, match=r"locked\.pem is encrypted, .*openssl pkey"):
            _context(Nats("nats://a", cert=cert, key=locked))
    for bad in (other, tmp_path / "none.pem", cert):
        with pytest.raises(UsageError, match=f"{bad.name} is no PEM file"):
            _context(Nats("nats://a", cert=cert, key=bad))
    for bad in (key, tmp_path / "none.pem"):
        with pytest.raises(UsageError, match=f"{bad.name} is no PEM file"):
            _context(Nats("nats://a", cert=bad, key=key))


def test_files_are_read_once_until_they_change(tmp_path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("hub")
    nats = Nats("nats://a", ca=authority.ca, cert=cert, key=key)
    assert _context(nats) is _context(Nats("nats://a", ca=authority.ca, cert=cert, key=key))
    before = _context(nats)
    draft = tmp_path / "draft"
    draft.write_bytes(cert.read_bytes())
    draft.replace(cert)
    assert _context(nats) is not before


def test_an_authority_is_asked_for_only_where_that_is_what_lacks(tmp_path):
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")

    async def main(running: SiteServer):
        where = f"tls://localhost:{running.port}"
        other = await refused(
            tmp_path / "1", Nats(where, ca=authority.ca), "name the server in the URL as its"
        )
        assert "--nats-ca" not in str(other)
        await refused(tmp_path / "2", where, "--nats-ca FILE")

    with site(tmp_path / "site", tls={"cert_file": str(cert), "key_file": str(key)}) as running:
        asyncio.run(main(running))


def test_a_server_that_wants_the_handshake_first_is_told_from_one_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("potluck.hub.site.CONNECT_S", 1.0)
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    tls: dict[str, Any] = {"cert_file": str(cert), "key_file": str(key), "handshake_first": True}
    with site(tmp_path / "1", tls=tls) as running:
        nats = Nats(running.url, ca=authority.ca)
        asyncio.run(refused(tmp_path / "hub", nats, "wants the TLS handshake first .*handshake_first: auto"))
    with site(tmp_path / "2", tls=tls | {"handshake_first": "auto"}) as running:

        async def enters() -> None:
            async with site_client(Nats(running.url, ca=authority.ca)) as client:
                assert client.is_connected

        asyncio.run(enters())


# -- a start that goes wrong ---------------------------------------------------------------------


def test_a_first_start_that_failed_binds_nobody(tmp_path, lab):
    async def main():
        await refused(tmp_path / "hub", named(lab, "lab:wrong"), "credentials")
        first = HubState.load(tmp_path / "hub")
        async with door(tmp_path / "hub") as hub:
            assert (hub.run, hub.nats) == (first.run, None)
        assert HubState.load(tmp_path / "hub").engine == SOLO
        await refused(tmp_path / "hub", named(lab), "or use another --directory")

        await refused(tmp_path / "other", named(lab, "lab:wrong"), "credentials")
        async with door(tmp_path / "other", named(lab)):
            pass
        assert HubState.load(tmp_path / "other").engine == SITE
        (tmp_path / "other" / SETTINGS_FILE).unlink()
        await refused(tmp_path / "other", None, "name that, with --nats URL")

    asyncio.run(main())


def test_a_hub_that_does_not_come_up_leaves_no_credentials_behind(tmp_path, lab, monkeypatch):
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    (old / "mine").write_text("kept")
    for directory in (new, old):
        with pytest.raises(EnvironmentProblem, match=r"the hub did not start: NATS at .* does not take"):
            launch_hub(directory, host=HOST, nats=Nats(named(lab, "lab:wrong")))
    assert not new.exists()
    assert (old / "mine").read_text() == "kept"
    monkeypatch.setattr("potluck.hub.launch.START_S", 0.01)
    with pytest.raises(EnvironmentProblem, match=r"it says nothing \(its log: "):
        launch_hub(new, host=HOST, nats=Nats(named(lab)))
    assert not new.exists()
