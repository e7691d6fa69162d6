"""What comes to a TLS transport's port, and what becomes of its peers' processes."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from potluck.errors import ConnectionLost, ProtocolError, Unreachable
from potluck.identity import Identity
from potluck.net import tls, tls_stream
from potluck.net.framing import DATA, HEADER, PING, header
from potluck.net.transport import SILENCE_S, Stream, Transport
from tests.net.conformance import LIMIT, Acceptor, pair, soon
from tests.net.tls_world import HERE, TlsWorld, connected, ended, still_works


@pytest.fixture
def world() -> TlsWorld:
    return TlsWorld()


# Who comes to the port without being a peer.


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(5000), b"\x16\x03\x01", b""]
)
def test_noise_at_the_port_is_dropped(world: TlsWorld, noise: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "DIAL_S", 0.5)

    async def main() -> None:
        acceptor, dialer = await Acceptor(world.member()).listen(), world.member()
        reader, writer = await connected(acceptor.addresses[0])
        writer.write(noise)
        await ended(reader)
        writer.close()
        await still_works(acceptor, dialer)
        assert acceptor.streams.empty()
        await dialer.close()
        await acceptor.close()

    world.run(main())


def test_a_hello_cut_at_any_byte_is_dropped(world: TlsWorld) -> None:
    async def main() -> None:
        acceptor, dialer = await Acceptor(world.member()).listen(), world.member()
        outgoing = ssl.MemoryBIO()
        client = dialer._client.wrap_bio(ssl.MemoryBIO(), outgoing)  # type: ignore[attr-defined]
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        hello = outgoing.read()
        for length in range(0, len(hello), 7):
            reader, writer = await connected(acceptor.addresses[0])
            writer.write(hello[:length])
            writer.write_eof()
            assert await ended(reader) == b""
            writer.close()
        await still_works(acceptor, dialer)
        await dialer.close()
        await acceptor.close()

    world.run(main())


def test_silent_connections_make_room_for_members(world: TlsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MAX_OUTSIDERS", 3)

    async def main() -> None:
        acceptor, dialer = await Acceptor(world.member()).listen(), world.member()
        silent = [await connected(acceptor.addresses[0]) for _ in range(5)]
        for reader, _ in silent[:2]:
            assert await ended(reader) == b""
        await still_works(acceptor, dialer)
        assert not silent[-1][0].at_eof()
        await dialer.close()
        await acceptor.close()
        for _, writer in silent:
            writer.close()

    world.run(main())


def test_strangers_make_room_for_strangers(world: TlsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MAX_OUTSIDERS", 2)

    async def main() -> None:
        hub, outsider, member = (
            await Acceptor(world.member(strangers=True)).listen(),
            world.outsider(),
            world.member(),
        )
        known = await member.dial(hub.addresses, hub.transport.peer)
        streams = [await outsider.dial(hub.addresses, hub.transport.peer) for _ in range(3)]
        with pytest.raises(ConnectionLost):
            await soon(streams[0].receive(10))
        fars = [await hub.accepted() for _ in range(4)]
        for stream in (known, *streams[1:]):
            await stream.send(b"hello")
        for far in (fars[0], *fars[2:]):
            assert await soon(far.receive(10)) == b"hello"
        for transport in (outsider, member, hub):
            await transport.close()

    world.run(main())


def test_what_is_dialed_may_be_no_peer(world: TlsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "DIAL_S", 0.5)

    async def main() -> None:
        replies = iter([b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", os.urandom(500), None])

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            if (reply := next(replies)) is None:
                await reader.read()
            else:
                writer.write(reply)
            writer.close()

        server = await asyncio.start_server(answer, HERE, 0)
        dialer = world.member()
        address = f"{HERE}:{server.sockets[0].getsockname()[1]}"
        for reason in ("no peer", "closed the connection", "no peer", "within"):
            with pytest.raises(Unreachable, match=reason):
                await soon(dialer.dial([address], world.hub.peer))
        await dialer.close()
        server.close()
        await server.wait_closed()

    world.run(main())


# What a member may send.


def test_lengths_and_kinds_that_are_none_end_the_stream(world: TlsWorld) -> None:
    async def main() -> None:
        for frame, reason in (
            (HEADER.pack(DATA, (1 << 32) - 1), "4294967295 bytes is announced where 1000 are allowed"),
            (HEADER.pack(9, 0), "kind 9"),
            (HEADER.pack(PING, 5) + b"hello", "kind 2 and 5 bytes"),
        ):
            async with pair(world) as (near, far):
                near._write(frame)  # type: ignore[attr-defined]
                with pytest.raises(ProtocolError, match=f"peer {far.peer[:12]}: .*{reason}"):
                    await soon(far.receive(1000))
                with pytest.raises(ConnectionLost):
                    await soon(near.receive(1000))

    world.run(main())


def test_a_message_given_up_halfway_ends_the_stream(world: TlsWorld) -> None:
    async def main() -> None:
        async with pair(world) as (near, far):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(near.send(bytes(1 << 26)), 0.3)
            with pytest.raises(ConnectionLost, match="halfway"):
                await near.send(b"more")
            with pytest.raises(ConnectionLost):
                await soon(far.receive(LIMIT))

    world.run(main())


def test_altered_bytes_end_the_stream(world: TlsWorld) -> None:
    async def main() -> None:
        async with pair(world) as (near, far):
            near._transport.write(b"\x17\x03\x03\x00\x20" + bytes(32))  # type: ignore[attr-defined]
            with pytest.raises(ConnectionLost, match="broke"):
                await soon(far.receive(LIMIT))

    world.run(main())


# Heartbeats.


def test_idle_and_blocked_streams_live_on(world: TlsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_stream, "BEAT_S", 0.05)
    monkeypatch.setattr(tls_stream, "SILENCE_S", 0.4)

    async def main() -> None:
        async with pair(world) as (idle, idle_far), pair(world) as (blocked, blocked_far):
            sending = asyncio.create_task(blocked.send(bytes(1 << 25)))
            receiving = asyncio.create_task(idle.receive(10))
            done, _ = await asyncio.wait([sending, receiving], timeout=1.5)
            assert not done
            await idle_far.send(b"hello")
            assert await soon(receiving) == b"hello"
            assert len(await soon(blocked_far.receive(LIMIT))) == 1 << 25
            await sending

    world.run(main())


def test_a_large_message_wakes_nobody_for_a_few_bytes(world: TlsWorld) -> None:
    async def main() -> None:
        async with pair(world) as (near, far):
            woken, wake = [], far.buffer_updated  # type: ignore[attr-defined]

            def woke(count: int) -> None:
                woken.append(count)
                wake(count)

            far.buffer_updated = woke  # type: ignore[attr-defined]
            receiving = asyncio.create_task(far.receive(LIMIT))
            near._write(header(DATA, 1 << 20))  # type: ignore[attr-defined]
            begun = len(woken)
            while not woken:
                await asyncio.wait([receiving], timeout=0.01)
            pieces = range(0, 1 << 20, 1 << 10)
            for _ in pieces:
                near._write(bytes(1 << 10))  # type: ignore[attr-defined]
                await asyncio.wait([receiving], timeout=0)
            assert await soon(receiving) == bytes(1 << 20)
            # For so many bytes each time, and for each piece at the end, where a record may be cut.
            most = (1 << 20) // tls_stream.TOGETHER_BYTES + 2 * tls_stream.RECORD_BYTES // (1 << 10)
            assert len(woken) - begun <= most < len(pieces)
            await near.send(b"and the next at once")
            assert await soon(far.receive(LIMIT)) == b"and the next at once"

    world.run(main())


def large_message_begun(near: Stream, far: Stream) -> asyncio.Task[bytes]:
    """The far side receives it; the near one, which sends no heartbeats meanwhile, has its bytes to write."""
    receiving = asyncio.create_task(far.receive(LIMIT))
    near._within_frame = True  # type: ignore[attr-defined]
    near._write(header(DATA, 1 << 20))  # type: ignore[attr-defined]
    return receiving


async def ends(near: Stream, receiving: asyncio.Task[bytes], written: int) -> None:
    near._within_frame = False  # type: ignore[attr-defined]
    near._write(bytes((1 << 20) - written))  # type: ignore[attr-defined]
    assert await soon(receiving) == bytes(1 << 20)


def test_what_came_while_the_process_stood_still_is_heard_before_the_verdict(world: TlsWorld) -> None:
    async def main() -> None:
        async with pair(world) as (near, far):
            receiving = large_message_begun(near, far)
            near._write(bytes(40_000))  # type: ignore[attr-defined]
            await asyncio.wait([receiving], timeout=0.05)
            # As after a stop of the process: its timer comes first, and what came lies in the socket.
            far._wait_for(tls_stream.TOGETHER_BYTES)  # type: ignore[attr-defined]
            far._heard_at -= 2 * SILENCE_S  # type: ignore[attr-defined]
            far._timer.cancel()  # type: ignore[attr-defined]
            far._beat()  # type: ignore[attr-defined]
            assert far._lost is None  # type: ignore[attr-defined]
            await ends(near, receiving, 40_000)

    world.run(main())


def test_a_large_message_that_trickles_in_is_no_silence(
    world: TlsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_stream, "BEAT_S", 0.05)
    monkeypatch.setattr(tls_stream, "SILENCE_S", 0.4)

    async def main() -> None:
        async with pair(world) as (near, far):
            receiving = large_message_begun(near, far)
            for _ in range(15):
                near._write(bytes(1000))  # type: ignore[attr-defined]
                done, _ = await asyncio.wait([receiving], timeout=0.1)
                assert not done
            await ends(near, receiving, 15_000)

    world.run(main())


def test_silence_ends_receiving_and_sending(world: TlsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_stream, "SILENCE_S", 0.4)

    async def main() -> None:
        async with pair(world) as (near, far):
            far._timer.cancel()  # type: ignore[attr-defined]  # it says nothing more
            outcomes = await soon(
                asyncio.gather(near.send(bytes(1 << 26)), near.receive(10), return_exceptions=True)
            )
            for outcome in outcomes:
                assert isinstance(outcome, ConnectionLost)
                assert f"peer {near.peer[:12]} has been silent" in str(outcome)

    world.run(main())


@pytest.fixture
def process(world: TlsWorld, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A peer in a process of its own: the process, its key and its addresses."""
    identity = Identity.load_or_create(tmp_path / "key.pem")
    (tmp_path / "authority.pem").write_bytes(world.authority)
    (tmp_path / "certificate.pem").write_bytes(world.hub.issue(world.authority, identity.peer))
    command = [sys.executable, str(Path(__file__).with_name("peer_process.py")), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield child, identity.peer, child.stdout.readline().split()
        finally:
            child.kill()


async def echoing(dialer: Transport, peer: str, addresses: list[str]) -> Stream:
    stream = await soon(dialer.dial(addresses, peer))
    await stream.send(b"echo")
    assert await soon(stream.receive(10)) == b"echo"
    assert isinstance(stream, Stream)
    return stream


Process = tuple[subprocess.Popen[str], str, list[str]]


def test_a_killed_process_is_seen_within_two_seconds(world: TlsWorld, process: Process) -> None:
    child, peer, addresses = process

    async def main() -> None:
        dialer = world.member()
        stream, other = [await echoing(dialer, peer, addresses) for _ in range(2)]
        await other.send(b"fall deaf")
        sending = asyncio.create_task(other.send(bytes(1 << 26)))
        receiving = asyncio.create_task(stream.receive(10))
        child.send_signal(signal.SIGKILL)
        for task in (sending, receiving):
            with pytest.raises(ConnectionLost):
                await soon(task, 2)
        with pytest.raises(Unreachable):
            await soon(dialer.dial(addresses, peer))
        await dialer.close()

    world.run(main())


def test_a_stopped_process_is_seen_within_five_seconds(world: TlsWorld, process: Process) -> None:
    child, peer, addresses = process

    async def main() -> None:
        dialer = world.member()
        stream, other = [await echoing(dialer, peer, addresses) for _ in range(2)]
        child.send_signal(signal.SIGSTOP)
        receiving = asyncio.create_task(stream.receive(10))
        sending = asyncio.create_task(other.send(bytes(1 << 26)))
        done, _ = await asyncio.wait([receiving, sending], timeout=SILENCE_S + 1.25)
        assert len(done) == 2
        for task in done:
            with pytest.raises(ConnectionLost, match="silent for 4 s"):
                await task
        await soon(dialer.close(), 1)
        child.send_signal(signal.SIGCONT)

    world.run(main())
