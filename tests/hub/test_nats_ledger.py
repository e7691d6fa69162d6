"""What is particular to the ledger on NATS: connections that go, and hubs that answer nonsense."""

from __future__ import annotations

import asyncio
import os
import signal

import nats.errors
import pytest

from potluck.errors import CorruptData, LedgerUnavailable, ProtocolError, UsageError
from potluck.hub.nats_ledger import NatsLedger, create_stream, stream_name
from potluck.hub.server import HUB
from potluck.wire.records import Chain, Finish

from .support import DEADLINE_S, RUN, connection, nats_ledger, running_server


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "x" * 65, "é", "a\n"])
def test_a_runs_name_must_do_as_a_part_of_subjects(name):
    with pytest.raises(UsageError, match="a run is named by"):
        stream_name(name)


def test_without_a_connection_it_is_unavailable_and_says_why():
    async def main():
        ledger = NatsLedger(RUN)
        with pytest.raises(LedgerUnavailable, match="not connected yet"):
            await ledger.read(1)
        ledger.detach("the cable was cut")
        with pytest.raises(LedgerUnavailable, match="the cable was cut"):
            await ledger.append(b"", 0)

    asyncio.run(main())


def test_without_a_stream_it_is_unavailable(tmp_path):
    async def main():
        async with running_server(tmp_path) as server, connection(server) as client:
            ledger = NatsLedger(RUN)
            await ledger.attach(client)
            with pytest.raises(LedgerUnavailable, match="no responders"):
                await ledger.append(b"", 0)
            with pytest.raises(LedgerUnavailable, match="503"):
                await ledger.read(1)

    asyncio.run(main())


def test_a_lost_connection_ends_calls_in_progress_at_once(tmp_path):
    async def main():
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            os.kill(server.pid, signal.SIGSTOP)
            try:
                calls = [asyncio.create_task(ledger.read(1)), asyncio.create_task(ledger.append(b"", 0))]
                await asyncio.wait(calls, timeout=0.05)
                assert not any(call.done() for call in calls)
                ledger.detach("the cable was cut")
                # Far sooner than the deadline of the calls themselves.
                outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5.0)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert [str(outcome) for outcome in outcomes] == ["the hub is away: the cable was cut"] * 2
            assert all(isinstance(outcome, LedgerUnavailable) for outcome in outcomes)

    asyncio.run(main())


def test_a_cancellation_that_comes_with_the_answer_is_not_lost(tmp_path):
    async def main():
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            answered, gone = ledger._client._request_sub_callback, []

            async def answered_and_cancelled(message):
                await answered(message)
                gone.append(append.cancel())

            ledger._client._request_sub_callback = answered_and_cancelled
            append = asyncio.create_task(ledger.append(Chain().next("ab" * 32, Finish(0, "x")), 0))
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(append), DEADLINE_S)
            assert gone == [True]

    asyncio.run(main())


def test_a_new_connection_wakes_who_waits(tmp_path):
    async def main():
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            await ledger.read(1)
            waiting = asyncio.create_task(ledger.changed(10 * DEADLINE_S))
            ledger.detach("gone")
            async with connection(server) as other:
                await ledger.attach(other)
                await asyncio.wait_for(waiting, DEADLINE_S)
                assert await ledger.append(b"", 0) == 1

    asyncio.run(main())


def test_peers_can_neither_unmake_the_ledger_nor_forge_answers_nor_hear_more_than_the_run(tmp_path):
    stream = stream_name(RUN)
    forbidden = (
        f"$JS.API.STREAM.DELETE.{stream}",
        f"$JS.API.STREAM.PURGE.{stream}",
        f"$JS.API.STREAM.UPDATE.{stream}",
        f"$JS.API.STREAM.MSG.DELETE.{stream}",
        "$JS.API.STREAM.CREATE.OTHER",
    )

    async def main():
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            await ledger.append(b"kept", 0)
            async with connection(server) as peer, connection(server, HUB) as hub:
                for subject in forbidden:
                    with pytest.raises(nats.errors.TimeoutError):
                        await peer.request(subject, b"{}", timeout=0.1)
                overheard = await peer.subscribe(">")
                await hub.publish("elsewhere", b"secret")
                await hub.flush()
                await peer.flush()
                assert overheard.pending_msgs == 0
                reply = await hub.subscribe("_INBOX.somebody")
                await peer.publish("_INBOX.somebody", b"forged")
                await peer.flush()
                await hub.flush()
                assert reply.pending_msgs == 0
                # Its own protection, against whoever has the hub's password.
                for subject in forbidden[1:2] + forbidden[3:4]:
                    answer = await hub.request(subject, b'{"seq": 1}', timeout=DEADLINE_S)
                    assert b'"error"' in answer.data
            assert await ledger.read(1) == [(1, b"kept")]

    asyncio.run(main())


def test_making_the_ledger_twice_finds_it(tmp_path):
    async def main():
        async with running_server(tmp_path) as server, connection(server, HUB) as hub:
            await create_stream(hub, RUN)
            await create_stream(hub, RUN)
        with pytest.raises(LedgerUnavailable, match="closed"):
            await create_stream(hub, RUN)

    asyncio.run(main())


@pytest.mark.parametrize("damaged", [1, 3])
def test_a_record_damaged_on_the_disk_is_noticed(tmp_path, damaged):
    """The engine drops what does not match its checksum; the chain notices that it is missing."""

    async def main():
        written, read = Chain(), Chain()
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            for number in range(1, 5):
                raw = written.next("ab" * 32, Finish(number, f"reason {number}"))
                written.follow(await ledger.append(raw, number - 1), raw)
        (block,) = tmp_path.rglob("*.blk")
        content = block.read_bytes()
        assert content.count(b"reason %d" % damaged) == 1
        block.write_bytes(content.replace(b"reason %d" % damaged, b"Reason %d" % damaged))
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            records = await ledger.read(1)
        with pytest.raises(CorruptData, match=f"came where {damaged} was due"):
            [read.follow(*record) for record in records]

    asyncio.run(main())


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b"7", b'{"seq": 9}', b'{"seq": "1"}'])
def test_nonsense_instead_of_an_answer_is_refused(tmp_path, answer):
    async def main():
        async with (
            running_server(tmp_path) as server,
            connection(server) as client,
            connection(server, HUB) as liar,
        ):

            async def lie(message):
                await message.respond(answer)

            await liar.subscribe(f"potluck.{RUN}.ledger", cb=lie)
            await liar.flush()
            async with asyncio.timeout(DEADLINE_S):
                while not await _answered(client):
                    pass
            ledger = NatsLedger(RUN)
            await ledger.attach(client)
            with pytest.raises(ProtocolError):
                await ledger.append(b"", 0)

    asyncio.run(main())


async def _answered(client):
    """Whether somebody listens: on a busy machine another connection's subscription can take a while."""
    try:
        await client.request(f"potluck.{RUN}.ledger", b"", timeout=1)
    except nats.errors.NoRespondersError:
        return False
    return True
