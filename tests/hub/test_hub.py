"""A hub and its clients over real TLS: who gets in, what they share, and how they come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from potluck.errors import (
    ConnectionLost,
    InviteError,
    LedgerConflict,
    LedgerUnavailable,
    PotluckError,
    Refused,
    StoreError,
    Unreachable,
    UsageError,
)
from potluck.hub import admission
from potluck.hub.admission import Admit, Attach, Attached, Denied, seek_ledger
from potluck.hub.client import HubClient
from potluck.hub.door import MAX_STREAMS
from potluck.hub.server import HUB
from potluck.hub.service import Hub, serve
from potluck.identity import Identity
from potluck.net.addresses import parse_address
from potluck.net.tls import TlsTransport
from potluck.wire.codec import WIRE, decode, encode
from potluck.wire.invite import Invite
from potluck.wire.messages import Progress

from .support import DEADLINE_S, alive, connection, progress, wait_for_end

HOST = "127.0.0.1"

OWNER = """
import asyncio, sys
from pathlib import Path
from potluck.hub.service import Hub, serve

def ready(hub):
    print(hub.invite().text(), hub.nats_pid, flush=True)

async def main():
    hub = Hub(Path(sys.argv[1]), host="127.0.0.1")
    await serve(hub, ready=ready, until_idle_s=None, stop=asyncio.Event())

asyncio.run(main())
"""


def hub_at(directory: Path, **options: object) -> Hub:
    return Hub(directory, host=HOST, **options)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def member(invite: Invite, identity: Identity | None = None) -> AsyncIterator[HubClient]:
    client = await HubClient.join(invite, identity or Identity.generate())
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def transport(*args: object, **options: object) -> AsyncIterator[TlsTransport]:
    made = TlsTransport(*args, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


class Changes:
    """What a client says of its connection."""

    def __init__(self, client: HubClient) -> None:
        self._queue: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
        client.on_connection(lambda connected, reason: self._queue.put_nowait((connected, reason)))

    async def next(self) -> tuple[bool, str]:
        return await asyncio.wait_for(self._queue.get(), DEADLINE_S)


async def other_tasks() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_members_share_one_ledger_and_hear_each_other(tmp_path):
    async def main():
        async with hub_at(tmp_path) as hub:
            invite = Invite.parse(hub.invite().text())
            async with member(invite) as one, member(invite) as other:
                assert one.connected
                assert hub.peers_connected == 2
                assert await one.ledger.append(b"genesis", 0) == 1
                with pytest.raises(LedgerConflict):
                    await other.ledger.append(b"another", 0)
                assert await other.ledger.read(1) == [(1, b"genesis")]

                heard: asyncio.Queue[Progress] = asyncio.Queue()
                other.on_progress(heard.put_nowait)
                one.on_progress(heard.put_nowait)
                said = progress("ab" * 32, tokens=3.0)
                await one.publish_progress(said)
                both = [await asyncio.wait_for(heard.get(), DEADLINE_S) for _ in range(2)]
                assert both == [said, said]
        assert await other_tasks() == set()

    asyncio.run(main())


def test_the_certificate_of_a_member_is_good_between_members(tmp_path):
    async def main():
        async with hub_at(tmp_path) as hub:
            keys = [Identity.generate(), Identity.generate()]
            async with (
                member(hub.invite(), keys[0]) as one,
                member(hub.invite(), keys[1]) as other,
                transport(
                    keys[0], certificate=one.certificate, authority=one.authority, host=HOST
                ) as acceptor,
                transport(keys[1], certificate=other.certificate, authority=other.authority) as dialer,
            ):
                met: asyncio.Queue[str] = asyncio.Queue()

                async def meet(stream):
                    met.put_nowait(stream.peer)

                addresses = await acceptor.listen(meet)
                await dialer.dial(addresses, keys[0].peer)
                assert await asyncio.wait_for(met.get(), DEADLINE_S) == keys[1].peer

    asyncio.run(main())


def test_progress_that_cannot_be_read_is_dropped_and_counted(tmp_path):
    good = progress("ab" * 32)
    bad = [
        b"",
        b"\xff",
        encode(good)[:-1],
        encode(good) + b"\x00",
        encode(progress("ab" * 32, wire=WIRE + 1)),
    ]

    async def main():
        async with hub_at(tmp_path) as hub, member(hub.invite()) as client:
            heard: asyncio.Queue[Progress] = asyncio.Queue()
            client.on_progress(heard.put_nowait)
            async with connection(hub._engine.server, HUB) as someone:
                for raw in (*bad, encode(good)):
                    await someone.publish(f"potluck.{hub.run}.progress", raw)
                assert await asyncio.wait_for(heard.get(), DEADLINE_S) == good
            assert client.presence.malformed == len(bad)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (
            lambda hub, other: msgspec.structs.replace(hub.invite(), secret=b"w" * 16),
            "does not know this invite",
        ),
        (lambda hub, other: hub.invite(valid_s=0), "has expired"),
        (lambda hub, other: msgspec.structs.replace(hub.invite(), run="foreign"), "'foreign', which is not"),
    ],
    ids=["wrong secret", "expired", "foreign run"],
)
def test_an_invite_that_does_not_hold_is_refused_in_words(tmp_path, forge, words):
    async def main():
        async with hub_at(tmp_path) as hub:
            with pytest.raises(InviteError, match=words):
                await HubClient.join(forge(hub, None), Identity.generate())
            async with member(hub.invite()) as client:
                assert client.connected
        assert await other_tasks() == set()

    asyncio.run(main())


def test_an_invite_to_another_hubs_key_reaches_nobody(tmp_path):
    async def main():
        async with hub_at(tmp_path) as hub:
            forged = msgspec.structs.replace(hub.invite(), hub=Identity.generate().peer)
            with pytest.raises(Unreachable, match="another machine answers"):
                await HubClient.join(forged, Identity.generate())

    asyncio.run(main())


def test_strangers_who_say_something_else_get_nothing(tmp_path, monkeypatch):
    """Another version is told so; everything else ends the stream, and the hub goes on."""
    monkeypatch.setattr(admission, "ANSWER_S", 1.0)
    stranger = Identity.generate()
    openings = [b"", b"\xff" * 100, encode(Attach(WIRE, "run")), bytes(admission.MAX_OPENING_BYTES + 1), None]

    async def main():
        async with hub_at(tmp_path, run="run") as hub, transport(stranger) as dialer:
            for opening in openings:
                stream = await dialer.dial(hub.addresses, hub.peer)
                if opening is not None:
                    await stream.send(opening)
                with pytest.raises(ConnectionLost):
                    await asyncio.wait_for(stream.receive(4096), DEADLINE_S)
                await stream.close()
            stream = await dialer.dial(hub.addresses, hub.peer)
            await stream.send(encode(Admit(WIRE + 1, "run", b"", stranger.peer)))
            answer = decode(await stream.receive(4096), Denied)
            assert answer.cause == "version"
            assert hub.peers_connected == 0
            async with member(hub.invite()) as client:
                assert client.connected

    asyncio.run(main())


def test_a_certificate_of_another_authority_does_not_attach(tmp_path):
    async def main():
        usurper, peer = Identity.generate(), Identity.generate()
        async with hub_at(tmp_path) as hub:
            forged = usurper.issue(usurper.authority(), peer.peer)
            async with transport(peer, certificate=forged, authority=usurper.authority()) as dialer:
                with pytest.raises(Refused):
                    await dialer.dial(hub.addresses, hub.peer)

    asyncio.run(main())


def test_a_member_reaches_its_own_run_only_and_not_too_often(tmp_path):
    async def main():
        key = Identity.generate()
        async with (
            hub_at(tmp_path) as hub,
            member(hub.invite(), key) as client,
            transport(key, certificate=client.certificate) as dialer,
        ):
            stream = await dialer.dial(hub.addresses, hub.peer)
            with pytest.raises(Refused, match="another run's ledger"):
                await seek_ledger(stream, "another")
            for _ in range(MAX_STREAMS - 1):
                await seek_ledger(await dialer.dial(hub.addresses, hub.peer), hub.run)
            stream = await dialer.dial(hub.addresses, hub.peer)
            await stream.send(encode(Attach(WIRE, hub.run)))
            answer = decode(await stream.receive(4096), Attached).answer
            assert (answer.ok, answer.retry) == (False, True)
            assert hub.peers_connected == 1

    asyncio.run(main())


def test_a_hub_goes_on_where_it_was(tmp_path):
    async def main():
        async with hub_at(tmp_path, run="the-run") as hub:
            invite, addresses, key = hub.invite(valid_s=None), hub.addresses, hub.peer
            async with member(invite) as client:
                await client.ledger.append(b"one", 0)
                certificate, authority = client.certificate, client.authority
        async with hub_at(tmp_path) as hub:
            assert (hub.run, hub.addresses, hub.peer) == ("the-run", addresses, key)
            async with member(invite) as client:
                assert client.authority == authority
                assert client.certificate != certificate
                assert await client.ledger.append(b"two", 1) == 2
                assert [raw for _, raw in await client.ledger.read(1)] == [b"one", b"two"]

    asyncio.run(main())


def test_a_port_that_is_taken(tmp_path, caplog):
    async def main():
        async with hub_at(tmp_path) as hub:
            port = parse_address(hub.addresses[0])[1]
        with socket.create_server((HOST, port)):
            with pytest.raises(UsageError, match=f"port {port} on {HOST} is taken"):
                async with hub_at(tmp_path, port=port):
                    pass
            async with hub_at(tmp_path) as hub:
                other = parse_address(hub.addresses[0])[1]
        assert other != port
        assert f"port {port}, which peers know, is taken: the hub listens on {other} now" in caplog.text
        async with hub_at(tmp_path) as hub:
            assert parse_address(hub.addresses[0])[1] == other

    asyncio.run(main())


def test_a_directory_has_one_hub_of_one_run(tmp_path):
    async def main():
        with pytest.raises(UsageError, match="a run is named by"):
            await hub_at(tmp_path, run="no name").__aenter__()
        async with hub_at(tmp_path, run="one"):
            with pytest.raises(UsageError, match="another hub is running"):
                await hub_at(tmp_path).__aenter__()
        with pytest.raises(UsageError, match="the hub of the run 'one', not of 'two'"):
            await hub_at(tmp_path, run="two").__aenter__()
        (tmp_path / "file").touch()
        with pytest.raises(StoreError):
            await hub_at(tmp_path / "file" / "below").__aenter__()
        async with hub_at(tmp_path, run="one") as hub:
            assert hub.run == "one"
        assert await other_tasks() == set()

    asyncio.run(main())


def test_it_ends_when_all_have_left_or_when_told(tmp_path):
    async def main():
        up: asyncio.Future[Hub] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        ended = asyncio.create_task(serve(hub_at(tmp_path), ready=up.set_result, until_idle_s=0.5, stop=stop))
        hub = await asyncio.wait_for(up, DEADLINE_S)
        async with member(hub.invite()):
            _, pending = await asyncio.wait([ended], timeout=1.0)
            assert pending
        await asyncio.wait_for(ended, DEADLINE_S)
        assert hub.peers_connected == 0

        up = asyncio.get_running_loop().create_future()
        ended = asyncio.create_task(
            serve(hub_at(tmp_path), ready=up.set_result, until_idle_s=None, stop=stop)
        )
        await asyncio.wait_for(up, DEADLINE_S)
        stop.set()
        await asyncio.wait_for(ended, DEADLINE_S)
        assert await other_tasks() == set()

    asyncio.run(main())


def test_a_client_comes_back_when_nats_server_was_killed(tmp_path):
    async def main():
        async with hub_at(tmp_path) as hub, member(hub.invite()) as client:
            changes = Changes(client)
            await client.ledger.append(b"one", 0)
            os.kill(hub.nats_pid, signal.SIGKILL)
            assert not (await changes.next())[0]
            assert (await changes.next())[0]
            assert await client.ledger.append(b"two", 1) == 2

    asyncio.run(main())


def test_while_the_hub_is_away_nothing_piles_up(tmp_path):
    async def main():
        async with hub_at(tmp_path) as hub:
            client = await HubClient.join(hub.invite(), Identity.generate())
            changes = Changes(client)
        connected, reason = await changes.next()
        assert not connected
        assert "closed" in reason
        with pytest.raises(LedgerUnavailable, match="the hub is away"):
            await client.ledger.append(b"lost", 0)
        with pytest.raises(LedgerUnavailable):
            await client.ledger.read(1)
        for _ in range(100):
            await client.publish_progress(progress("ab" * 32))
        assert not client.connected

        heard: asyncio.Queue[Progress] = asyncio.Queue()
        client.on_progress(heard.put_nowait)
        async with hub_at(tmp_path):
            assert await changes.next() == (True, "the hub is back")
            last = progress("cd" * 32)
            await client.publish_progress(last)
            assert await asyncio.wait_for(heard.get(), DEADLINE_S) == last
            assert await client.ledger.read(1) == []
            await client.close()
            await client.close()
        assert await other_tasks() == set()

    asyncio.run(main())


def test_closing_while_the_hub_is_away_leaves_nothing(tmp_path):
    async def main():
        async with hub_at(tmp_path) as hub:
            client = await HubClient.join(hub.invite(), Identity.generate())
            changes = Changes(client)
        assert not (await changes.next())[0]
        await client.close()
        assert await other_tasks() == set()
        with pytest.raises(LedgerUnavailable, match="has left the run"):
            await client.ledger.read(1)

    asyncio.run(main())


def start_owner(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


async def said(owner: subprocess.Popen[bytes]) -> tuple[Invite, int]:
    assert owner.stdout is not None
    line = await asyncio.wait_for(asyncio.to_thread(owner.stdout.readline), DEADLINE_S)
    text, pid = line.decode().split()
    return Invite.parse(text), int(pid)


def test_a_killed_hub_comes_back_with_everything(tmp_path):
    """Same invite, same ledger, and who was connected is so again without doing anything."""

    async def main():
        with start_owner(tmp_path) as first:
            invite, nats_pid = await said(first)
            async with member(invite) as client:
                changes = Changes(client)
                for sequence in range(1, 6):
                    assert await client.ledger.append(b"%d" % sequence, sequence - 1) == sequence
                end = os.pidfd_open(nats_pid)
                first.kill()
                assert not (await changes.next())[0]
                assert await asyncio.to_thread(wait_for_end, end)
                with start_owner(tmp_path) as second:
                    try:
                        again, new_pid = await said(second)
                        assert again.addresses == invite.addresses
                        assert (await changes.next())[0]
                        assert await client.ledger.append(b"6", 5) == 6
                        async with member(invite) as joiner:
                            assert len(await joiner.ledger.read(1)) == 6
                    finally:
                        second.kill()
        assert await asyncio.to_thread(_ends, new_pid)

    asyncio.run(main())


def _ends(pid: int) -> bool:
    try:
        return wait_for_end(os.pidfd_open(pid))
    except ProcessLookupError:
        return not alive(pid)


def test_every_error_is_one_of_ours(tmp_path):
    async def main():
        gone = Invite("run", Identity.generate().peer, ("127.0.0.1:1",), b"s" * 16)
        with pytest.raises(PotluckError, match="can't be reached"):
            await HubClient.join(gone, Identity.generate())
        assert await other_tasks() == set()

    asyncio.run(main())
