"""A site's own NATS instead of the hub's: how a hub gets in, what goes through it, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from potluck.errors import (
    ConnectionLost,
    EnvironmentProblem,
    LedgerConflict,
    PotluckError,
    Unreachable,
    UsageError,
)
from potluck.hub.admission import seek_ledger
from potluck.hub.client import HubClient
from potluck.hub.nats_ledger import read_subject, stream_name
from potluck.hub.nkey import USER, parse_seed
from potluck.hub.service import Enlistment, Hub
from potluck.hub.site import SETTINGS_FILE, Nats
from potluck.hub.site_engine import site_client
from potluck.hub.state import SITE, HubState
from potluck.identity import Identity
from potluck.wire.messages import Progress

from .doors import door
from .sites import LAB, USERS, Authority, SiteServer, named, operator, public, seed, site
from .support import DEADLINE_S, progress
from .test_hub import HOST, Changes, member, other_tasks, transport
from .writer import whole, writing


async def opens(directory: Path, where: str | Nats | None, **options: Any) -> None:
    """A peer gets through the hub to the ledger."""
    async with door(directory, where, **options) as hub, member(hub.invite()) as client:
        assert await client.ledger.append(b"one", 0) == 1
        assert await client.ledger.read(1) == [(1, b"one")]


async def refuses(directory: Path, where: str | Nats | None, words: str, **options: Any) -> PotluckError:
    with pytest.raises(PotluckError, match=words) as raised:
        await door(directory, where, **options).__aenter__()
    return raised.value


def test_peers_share_one_ledger_at_the_sites_nats_and_hear_each_other(tmp_path, lab):
    async def main():
        async with door(tmp_path / "hub", named(lab)) as hub:
            assert hub.nats_pid is None
            async with member(hub.invite()) as one, member(hub.invite()) as other:
                assert hub.peers_connected == 2
                for sequence in range(1, 301):
                    assert await one.ledger.append(b"%d" % sequence * 200, sequence - 1) == sequence
                with pytest.raises(LedgerConflict):
                    await other.ledger.append(b"another", 0)
                read = [record for start in (1, 257) for record in await other.ledger.read(start)]
                assert read == [(n, b"%d" % n * 200) for n in range(1, 301)]
                big = os.urandom(1_000_000)
                assert await other.ledger.append(big, 300) == 301
                assert await one.ledger.read(301) == [(301, big)]

                heard: asyncio.Queue[Progress] = asyncio.Queue()
                other.on_progress(heard.put_nowait)
                one.on_progress(heard.put_nowait)
                said = progress("ab" * 32, tokens=3.0)
                await one.publish_progress(said)
                assert [await asyncio.wait_for(heard.get(), DEADLINE_S) for _ in range(2)] == [said, said]
        assert await other_tasks() == set()

    asyncio.run(main())


def test_its_secrets_are_the_owners_alone_and_stay_there(tmp_path, lab):
    async def main():
        await opens(tmp_path / "hub", named(lab))
        file = tmp_path / "hub" / SETTINGS_FILE
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "ret" not in repr(Nats.load(tmp_path / "hub"))
        assert HubState.load(tmp_path / "hub").engine == SITE

    asyncio.run(main())


def test_a_hub_goes_on_where_it_was(tmp_path, lab):
    async def main():
        async with door(tmp_path / "hub", named(lab), run="the-run") as hub:
            invite = hub.invite()
            async with member(invite) as client:
                await client.ledger.append(b"one", 0)
        async with door(tmp_path / "hub") as hub, member(invite) as client:
            assert hub.run == "the-run"
            assert await client.ledger.append(b"two", 1) == 2
        # Named anew, say with another password; but what does not do is not kept.
        await refuses(tmp_path / "hub", named(lab, "lab:wrong"), "credentials")
        async with door(tmp_path / "hub"):
            pass
        async with door(tmp_path / "hub", f"nats://127.0.0.1:9,{named(lab)}"):
            pass
        assert len(Nats.load(tmp_path / "hub").servers) == 2

    asyncio.run(main())


# -- getting in ----------------------------------------------------------------------------------


def test_over_tls_with_the_sites_own_authority_and_a_client_certificate(tmp_path):
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    cert, key = authority.issue("server")
    mine, my_key = authority.issue("hub")
    theirs, their_key = stranger.issue("hub")
    tls = {"cert_file": str(cert), "key_file": str(key), "ca_file": str(authority.ca), "verify": True}

    async def main(running: SiteServer):
        url = named(running)
        await opens(tmp_path / "1", Nats(url, ca=authority.ca, cert=mine, key=my_key))
        await refuses(tmp_path / "2", url, "certificate that is not trusted .*--nats-ca FILE")
        await refuses(tmp_path / "3", Nats(url, ca=stranger.ca), "certificate that is not trusted")
        await refuses(tmp_path / "4", Nats(url, ca=authority.ca), "wants to see a certificate .*--nats-cert")
        foreign = Nats(url, ca=authority.ca, cert=theirs, key=their_key)
        await refuses(tmp_path / "5", foreign, "wants to see a certificate that it trusts")
        await refuses(tmp_path / "6", Nats(url, ca=tmp_path / "none.pem"), "none.pem is no PEM file")
        await refuses(tmp_path / "7", Nats(url, ca=my_key), "is no PEM file")
        assert await other_tasks() == set()

    with site(tmp_path / "site", tls=tls, **USERS) as running:
        asyncio.run(main(running))


def test_credentials_are_never_sent_in_the_clear_where_tls_is_insisted_on(tmp_path, lab):
    async def main():
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"version":"2.11.0","max_payload":1048576,"auth_required":true}\r\n')
            heard.put_nowait(await reader.read())
            writer.close()

        async with await asyncio.start_server(plain, HOST, 0) as server:
            port = server.sockets[0].getsockname()[1]
            authority = Authority(tmp_path)
            url = f"{LAB}@{HOST}:{port}"
            await refuses(tmp_path / "1", f"tls://{url}", "does not ask for TLS")
            await refuses(tmp_path / "2", Nats(f"nats://{url}", ca=authority.ca), "does not ask for TLS")
            assert [await asyncio.wait_for(heard.get(), DEADLINE_S) for _ in range(2)] == [b"", b""]

    asyncio.run(main())


def test_what_is_said_in_the_clear_does_not_pass_for_what_is_said_under_tls(tmp_path):
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server"))

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = b'INFO {"version":"2.11.0","max_payload":1048576,"tls_required":true}\r\n'
        writer.write(info + b"-ERR 'injected'\r\n")
        await writer.start_tls(context)
        while await reader.readline() != b"PING\r\n":
            pass
        writer.write(b"PONG\r\n")
        await reader.read()
        writer.close()

    async def main():
        async with await asyncio.start_server(server, HOST, 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            async with site_client(Nats(f"tls://{HOST}:{port}", ca=authority.ca)) as client:
                assert client.is_connected

    asyncio.run(main())


def test_with_a_credentials_file_of_an_operators_account(tmp_path):
    settings, creds = operator(tmp_path)
    (tmp_path / "other").mkdir()
    _, foreign = operator(tmp_path / "other")

    async def main(running: SiteServer):
        await opens(tmp_path / "1", Nats(running.url, credentials=creds))
        await refuses(tmp_path / "2", running.url, "wants credentials: --nats-creds FILE, or user:password")
        await refuses(tmp_path / "3", Nats(running.url, foreign), "does not take the credentials")
        await refuses(tmp_path / "4", Nats(running.url, tmp_path / "none"), "none can't be read")
        (tmp_path / "odd").write_text("nothing of the kind")
        await refuses(tmp_path / "5", Nats(running.url, tmp_path / "odd"), "no credentials file of NATS")

    with site(tmp_path / "site", **settings) as running:
        asyncio.run(main(running))


def test_with_an_nkey(tmp_path):
    key = Ed25519PrivateKey.generate()
    (tmp_path / "seed").write_text(seed(key) + "\n")
    account = {"LAB": {"jetstream": "enabled", "users": [{"nkey": public(key, USER)}]}}
    with site(tmp_path / "site", accounts=account) as running:
        asyncio.run(opens(tmp_path / "hub", Nats(running.url, credentials=tmp_path / "seed")))


def test_with_a_token(tmp_path):
    with site(tmp_path / "site", authorization={"token": "the token"}) as running:
        asyncio.run(opens(tmp_path / "1", f"nats://the%20token@{running.address}"))
        asyncio.run(refuses(tmp_path / "2", f"nats://another@{running.address}", "credentials"))


def test_a_mistyped_seed_is_none():
    good = seed(Ed25519PrivateKey.generate())
    assert parse_seed(good) is not None
    swapped = "B" if good[20] == "A" else "A"
    for bad in (
        "",
        "S",
        good[:-1],
        good + "A",
        good[:20] + swapped + good[21:],
        good.lower(),
        "SU…",
        "S" * 58,
    ):
        assert parse_seed(bad) is None, bad
    assert parse_seed(seed(Ed25519PrivateKey.generate(), 14 << 3)) is None


def test_what_is_wrong_is_said_at_the_start(tmp_path, lab):
    async def main():
        wrong = await refuses(tmp_path / "1", named(lab, "lab:wrong"), "does not take the credentials given")
        assert isinstance(wrong, UsageError)
        assert "wrong" not in str(wrong)
        poor = await refuses(tmp_path / "2", named(lab, "poor:p"), "has no JetStream for this account")
        assert isinstance(poor, EnvironmentProblem)
        nobody = await refuses(
            tmp_path / "3", f"nats://{LAB}@127.0.0.1:9", "127.0.0.1:9 can't be reached .*is it running"
        )
        assert isinstance(nobody, Unreachable)
        # One of several that is down is no matter; and what can be mended is told rather.
        await opens(tmp_path / "4", f"nats://{LAB}@127.0.0.1:9, {named(lab)}")
        await refuses(tmp_path / "5", f"nats://x@127.0.0.1:9,{named(lab, 'lab:wrong')}", "credentials given")
        assert await other_tasks() == set()

    asyncio.run(main())


@pytest.mark.parametrize("url", ["", ",", "http://a", "a:4222", "nats://", "nats://a:port", "nats://:1"])
def test_what_is_no_url_is_said(url):
    with pytest.raises(UsageError, match="NATS"):
        Nats(url)


@pytest.mark.parametrize("sign", [*",/?#[", ":4242/", "@/"])
def test_a_password_that_is_not_quoted_is_not_taken_for_something_else(sign):
    for password in (f"12{sign}se3ret", f"se3ret{sign}12", f"12{sign}34"):
        with pytest.raises(UsageError, match=r"in a user or password write .* %2C") as raised:
            Nats(f"nats://user:{password}@host:4222")
        assert not any(part in str(raised.value) for part in ("se3ret", "12", "34", "user:"))


@pytest.mark.parametrize("url", ["nats://host:0", "nats://host/path", "nats://host?a=b", "nats://host#a"])
def test_what_a_url_of_nats_does_not_have_is_refused(url):
    with pytest.raises(UsageError, match="named by URLs such as"):
        Nats(url)
    [server] = Nats("nats://host/").servers
    assert (server.host, server.port) == ("host", 4222)


def test_a_certificate_needs_its_key():
    with pytest.raises(UsageError, match="needs its key"):
        Nats("nats://a", cert="a.pem")


def test_a_site_whose_messages_are_too_small(tmp_path):
    with site(tmp_path / "site", max_payload=65536) as running:
        asyncio.run(refuses(tmp_path / "hub", running.url, "takes messages of 65536 bytes only"))


@pytest.mark.parametrize(
    "greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO\r\n", b"INFO {\r\n", b"x" * 99999]
)
def test_what_is_no_nats_is_said(tmp_path, greeting):
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    async def main():
        async with await asyncio.start_server(odd, HOST, 0) as server:
            port = server.sockets[0].getsockname()[1]
            words = f"{HOST}:{port} does not greet as a NATS server does .*wants the TLS handshake first"
            error = await refuses(tmp_path / "hub", f"nats://{HOST}:{port}", words)
            assert isinstance(error, Unreachable)

    asyncio.run(main())


@pytest.mark.parametrize("missing", ["potluck.>", "$JS.API.>", "_INBOX.>"])
def test_a_user_who_may_not_is_told_what_is_missing(tmp_path, missing, monkeypatch):
    monkeypatch.setattr("potluck.hub.site_engine.ASK_S", 0.5)
    rights = [subject for subject in ("potluck.>", "$JS.API.>", "_INBOX.>") if subject != missing]
    user = {"user": "u", "password": "p", "permissions": {"publish": rights, "subscribe": rights}}
    accounts = {"LAB": {"jetstream": "enabled", "users": [user]}}
    with site(tmp_path / "site", accounts=accounts) as running:
        words = "does not let this user keep a ledger .*permissions violation"
        asyncio.run(refuses(tmp_path / "hub", named(running, "u:p"), words))
        user["permissions"] = {"publish": [*rights, missing], "subscribe": [*rights, missing]}
        running.end()
        running.start()
        asyncio.run(opens(tmp_path / "hub", named(running, "u:p")))


# -- whose ledger --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def keeper(running: SiteServer) -> AsyncIterator[Client]:
    async with site_client(Nats(named(running))) as client:
        yield client


async def jetstream(client: Client, what: str, **body: Any) -> dict[str, Any]:
    reply = await client.request(f"$JS.API.STREAM.{what}", json.dumps(body).encode(), timeout=DEADLINE_S)
    answer = json.loads(reply.data)
    assert "error" not in answer, answer
    return answer


def test_a_stream_that_is_no_ledger_of_this_run_is_not_taken(tmp_path, lab):
    name = stream_name("taken")

    async def main():
        async with keeper(lab) as client:
            await jetstream(client, f"CREATE.{name}", name=name, subjects=["potluck.taken.ledger"])
            await refuses(tmp_path / "1", named(lab), "is not this hub's: .*stream rm", run="taken")
            async with door(tmp_path / "2", named(lab), run="mine"):
                pass
            await refuses(tmp_path / "3", named(lab), "is not this hub's", run="mine")
            made = await jetstream(client, f"INFO.{stream_name('mine')}")
            assert made["config"]["num_replicas"] == 1
            await jetstream(
                client, f"UPDATE.{stream_name('mine')}", **made["config"] | {"max_age": 3_600_000_000_000}
            )
            await refuses(tmp_path / "2", None, "has max_age 3600000000000 and must have 0")
            await jetstream(client, f"UPDATE.{stream_name('mine')}", **made["config"])
            await opens(tmp_path / "2", None)
            await jetstream(client, f"DELETE.{stream_name('mine')}")
            await refuses(tmp_path / "2", None, "has no ledger of mine: .*--resume")

    asyncio.run(main())


def test_a_directory_stays_what_it_is(tmp_path, lab):
    async def main():
        async with Hub(tmp_path / "own", host=HOST):
            pass
        await refuses(tmp_path / "own", named(lab), "can't move to a site's NATS")
        assert not (tmp_path / "own" / SETTINGS_FILE).exists()
        async with door(tmp_path / "hub", named(lab)):
            pass
        (tmp_path / "hub" / SETTINGS_FILE).unlink()
        await refuses(tmp_path / "hub", None, "is at its site's NATS: name that, with --nats URL")
        async with door(tmp_path / "hub", named(lab)):
            pass
        (tmp_path / "hub" / SETTINGS_FILE).write_text("{")
        await refuses(tmp_path / "hub", None, "nats.json is damaged")

    asyncio.run(main())


# -- what comes and goes -------------------------------------------------------------------------


def test_appends_go_on_when_the_site_was_away(tmp_path, lab):
    async def main():
        async with door(tmp_path / "hub", named(lab)) as hub, member(hub.invite()) as client:
            changes = Changes(client)
            async with writing(client.ledger) as writer:
                await asyncio.to_thread(lab.kill)
                assert not (await changes.next())[0]
                reached = writer.chain.sequence
                await asyncio.to_thread(lab.end)
                await asyncio.to_thread(lab.start)
                assert (await changes.next())[0]
                await writer.until(lambda: writer.chain.sequence > reached + 5)
            _, records = await whole(client.ledger)
            assert all(records[sequence - 1] == raw for sequence, raw in writer.acknowledged.items())
        assert await other_tasks() == set()

    asyncio.run(main())


def test_a_joiner_hears_that_the_site_is_away_but_not_where_it_is(tmp_path, lab, monkeypatch, caplog):
    monkeypatch.setattr("potluck.hub.client.BEGIN_S", 0.5)

    async def main():
        async with door(tmp_path / "hub", named(lab)) as hub:
            await asyncio.to_thread(lab.kill)
            with pytest.raises(Unreachable, match="the site's NATS can't be reached at the moment") as raised:
                await HubClient.join(hub.invite(), Identity.generate())
            assert str(lab.port) not in str(raised.value)
        assert f"127.0.0.1:{lab.port} can't be reached" in caplog.text

    asyncio.run(main())


def test_a_second_hub_is_one_more_door(tmp_path, lab):
    async def main():
        first = await door(tmp_path / "1", named(lab)).__aenter__()
        try:
            token = Enlistment(first.token())
            await refuses(tmp_path / "2", None, "name that, with --nats URL", enlistment=token)
            async with door(tmp_path / "2", named(lab), enlistment=token) as second:
                assert second.seat == 2
                async with member(first.invite()) as client, member(second.invite()) as other:
                    assert client.hub == first.peer
                    heard: asyncio.Queue[Progress] = asyncio.Queue()
                    other.on_progress(heard.put_nowait)
                    await client.publish_progress(progress("ab" * 32))
                    await asyncio.wait_for(heard.get(), DEADLINE_S)
                    async with writing(client.ledger) as writer:
                        async with asyncio.timeout(DEADLINE_S):
                            while second.peer not in client.hubs:
                                await client.ledger.changed(0.1)
                        changes = Changes(client)
                        await first.__aexit__()
                        assert not (await changes.next())[0]
                        assert (await changes.next())[0]
                        assert client.hub == second.peer
                        reached = writer.chain.sequence
                        await writer.until(lambda: writer.chain.sequence > reached + 5)
                    chain, _ = await whole(other.ledger)
                    assert chain.sequence >= writer.chain.sequence
        finally:
            await first.__aexit__()
        assert await other_tasks() == set()

    asyncio.run(main())


def test_a_second_hub_with_another_nats_is_refused(tmp_path, lab):
    async def main():
        async with door(tmp_path / "1", named(lab)) as first:
            token = Enlistment(first.token())
            with site(tmp_path / "other", **USERS) as other:
                await refuses(tmp_path / "2", named(other), "has no ledger of", enlistment=token)
            async with door(tmp_path / "2", named(lab)) as second:
                assert second.seat == 2

    asyncio.run(main())


def test_a_hub_that_keeps_its_ledger_itself_is_helped_without_a_nats(tmp_path, lab):
    async def main():
        async with Hub(tmp_path / "1", host=HOST) as first:
            token = Enlistment(first.token())
            await refuses(tmp_path / "2", named(lab), "can't move to a site's NATS", enlistment=token)

    asyncio.run(main())


@contextlib.contextmanager
def three_servers(directory: Path) -> Iterator[list[SiteServer]]:
    """A site with a JetStream cluster, up once that has a leader."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(3)]
        ports = [one.getsockname()[1] for one in sockets]
    routes = [f"nats-route://{HOST}:{port}" for port in ports]
    servers = [
        SiteServer(
            directory / str(port),
            server_name=f"site-{port}",
            cluster={"name": "site", "listen": f"{HOST}:{port}", "routes": routes},
            **USERS,
        )
        for port in ports
    ]
    try:
        for one in servers:
            one.start()
        yield servers
    finally:
        for one in servers:
            one.end()


async def elected(where: str) -> None:
    """Wait until the site's JetStream can make streams."""
    settings = {"name": "TRY", "subjects": ["try"], "num_replicas": 3}
    async with asyncio.timeout(DEADLINE_S), site_client(Nats(where)) as client:
        while True:
            with contextlib.suppress(TimeoutError, nats.errors.Error):
                reply = await client.request("$JS.API.STREAM.CREATE.TRY", json.dumps(settings).encode())
                if "error" not in json.loads(reply.data):
                    return


def test_three_servers_of_the_site_keep_the_ledger_and_any_one_may_go(tmp_path):
    async def main(servers: list[SiteServer]):
        where = ",".join(map(named, servers))
        await elected(where)
        async with door(tmp_path / "hub", where) as hub, member(hub.invite()) as client:
            async with keeper(servers[0]) as owner:
                info = await jetstream(owner, f"INFO.{stream_name(hub.run)}")
                assert info["config"]["num_replicas"] == 3
            async with writing(client.ledger) as writer:
                for victim in servers[:2]:
                    reached = writer.chain.sequence
                    await asyncio.to_thread(victim.kill)
                    await writer.until(lambda reached=reached: writer.chain.sequence > reached + 20)
                    await asyncio.to_thread(victim.end)
                    await asyncio.to_thread(victim.start)
                    reached = writer.chain.sequence
                    await writer.until(lambda reached=reached: writer.chain.sequence > reached + 20)
            _, records = await whole(client.ledger)
            assert all(records[sequence - 1] == raw for sequence, raw in writer.acknowledged.items())

    with three_servers(tmp_path / "site") as servers:
        asyncio.run(main(servers))


# -- what does not go through --------------------------------------------------------------------


def test_a_peer_touches_nothing_else_of_the_sites(tmp_path, lab):
    refused: list[str] = []

    async def main():
        async with keeper(lab) as owner, door(tmp_path / "hub", named(lab), run="mine") as hub:
            name = stream_name("other")
            await jetstream(owner, f"CREATE.{name}", name=name, subjects=["secret.>"])
            await owner.publish("secret.one", b"x")
            touched: list[str] = []

            async def touch(message: Any) -> None:
                touched.append(message.subject)

            async def note(error: Exception) -> None:
                refused.append(str(error).lower())

            for subject in ("lab.>", "secret.>", "potluck.other.>", "_INBOX.owner.>"):
                await owner.subscribe(subject, cb=touch)
            await owner.flush()
            async with member(hub.invite()) as peer:
                client = peer._link.client
                client._error_cb = note
                leaked: list[str] = []

                async def leak(message: Any) -> None:
                    leaked.append(message.subject)

                for subject in (">", "secret.>", "potluck.>", "$JS.>", "lab.x", "potluck.*.progress"):
                    await client.subscribe(subject, cb=leak)
                inboxes = await client.subscribe("_INBOX.>", cb=leak)  # its own, and only those
                for subject in ("secret.two", "lab.x", "potluck.other.ledger", "_INBOX.owner.x"):
                    await client.publish(subject, b"forged")
                for what in ("STREAM.DELETE.POTLUCK_mine", "STREAM.PURGE.POTLUCK_mine", "INFO"):
                    await client.publish(f"$JS.API.{what}", b"")
                await client.publish(f"$JS.API.DIRECT.GET.{name}", b'{"seq":1}', reply="_INBOX.me")
                # Answers and traces would be published with the site's rights.
                await client.publish("potluck.mine.ledger", b"x", reply="lab.x")
                await client.publish("potluck.mine.ledger", b"x", headers={"Nats-Trace-Dest": "lab.x"})
                await client.flush()
                await owner.publish("lab.x", b"the site's own")
                await owner.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=DEADLINE_S)
                await owner.flush()
                await client.flush()
                assert leaked == []
                assert touched == ["lab.x"], "the site's own word, and nothing of the peer's"
                await inboxes.unsubscribe()
                assert await peer.ledger.append(b"one", 0) == 1, "what was refused was not stored"
            info = await jetstream(owner, f"INFO.{name}")
            assert info["state"]["messages"] == 1
        assert sum("permissions violation for subscription" in words for words in refused) == 6
        assert sum("permissions violation for publish" in words for words in refused) == 10

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"GET / HTTP/1.1\r\n", b"Authorization Violation"),
        (b"CONNECT {}\r\nPUB potluck.mine.x 9999999\r\n", b"Maximum Payload Violation"),
        (b"x" * 5000, b"Maximum Control Line Exceeded"),
        (b"CONNECT {}\r\nPUB potluck.mine.x 5\r\nabc", b""),
    ],
    ids=["garbage", "oversize", "endless", "half"],
)
def test_a_member_that_says_what_no_client_says_is_sent_away(tmp_path, lab, said, words):
    async def main():
        key = Identity.generate()
        async with (
            door(tmp_path / "hub", named(lab), run="mine") as hub,
            member(hub.invite(), key) as peer,
            transport(key, certificate=peer.certificate) as dialer,
        ):
            stream = await dialer.dial(hub.addresses, hub.peer)
            await seek_ledger(stream, "mine")
            assert (await stream.receive(4096)).startswith(b"INFO ")
            await stream.send(said)
            if words:
                assert words in await stream.receive(4096)
                with pytest.raises(ConnectionLost):
                    await stream.receive(4096)
            await stream.close()
            assert await peer.ledger.append(b"one", 0) == 1
        assert await other_tasks() == set()

    asyncio.run(main())


def test_a_peer_does_not_hear_another_peers_answers(tmp_path, lab):
    async def main():
        overheard: list[str] = []

        async def hear(message: Any) -> None:
            overheard.append(message.subject)

        async with (
            door(tmp_path / "hub", named(lab)) as hub,
            member(hub.invite()) as one,
            member(hub.invite()) as other,
        ):
            client = one._link.client
            await client.subscribe("_INBOX.>", cb=hear)
            await client.flush()
            await other.ledger.append(b"one", 0)
            await other.ledger.read(1)
            await client.flush()
            assert overheard == []
            question = {"seq": 1, "batch": 9, "max_bytes": 99}
            await client.publish(read_subject(one._run), json.dumps(question).encode(), reply="_INBOX.own")
            async with asyncio.timeout(DEADLINE_S):
                while len(overheard) < 2:
                    await client.flush()

    asyncio.run(main())
