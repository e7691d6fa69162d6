"""Three hubs of one run: who becomes one, how the run moves to them, and what the loss of one costs."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from potluck.errors import InviteError, LedgerUnavailable, Refused, Unreachable
from potluck.hub import client as client_module
from potluck.hub.between import parse_token, token_text
from potluck.hub.client import HubClient
from potluck.hub.service import TOKEN_FILE, Enlistment, Hub
from potluck.identity import Identity
from potluck.wire.invite import Invite
from potluck.wire.messages import Progress
from potluck.wire.records import Chain, Finish, Move

from .support import progress
from .test_hub import DEADLINE_S, HOST, Changes, member, other_tasks
from .writer import AUTHOR, whole, writing


def helper(directory: Path, hub: Hub, seat: int = 0) -> Hub:
    return Hub(directory, host=HOST, enlistment=Enlistment(hub.token(), seat))


class Three:
    """Three hubs of one run, each of which can end and come again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hubs: dict[int, Hub] = {}

    async def start(self, number: int, hub: Hub | None = None) -> Hub:
        hub = hub or Hub(self.directory / str(number), host=HOST)
        self.hubs[number] = await hub.__aenter__()
        return hub

    async def end(self, number: int) -> None:
        await self.hubs.pop(number).__aexit__()

    async def add(self, *numbers: int) -> None:
        for number in numbers:
            await self.start(number, helper(self.directory / str(number), self.hubs[1]))
            assert self.hubs[number].seat == number

    async def moved(self) -> None:
        """Wait until all hubs have the whole ledger."""
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(hub.whole() for hub in self.hubs.values()))


@contextlib.asynccontextmanager
async def three(directory: Path) -> AsyncIterator[Three]:
    hubs = Three(directory)
    try:
        await hubs.start(1)
        yield hubs
    finally:
        for number in sorted(hubs.hubs, reverse=True):
            await hubs.end(number)


def test_a_run_moves_to_three_hubs_while_it_goes_on(tmp_path):
    async def main():
        async with three(tmp_path) as hubs, member(hubs.hubs[1].invite()) as client:
            async with writing(client.ledger) as writer:
                await hubs.add(2, 3)
                await hubs.moved()
                reached = writer.chain.sequence
                await writer.until(lambda: writer.chain.sequence > reached + 5)
            chain, records = await whole(client.ledger)
            assert chain.head == writer.chain.head or chain.sequence > writer.chain.sequence
            assert all(records[sequence - 1] == raw for sequence, raw in writer.acknowledged.items())
            bodies = [msgspec.msgpack.decode(raw)["body"]["type"] for raw in records]
            assert bodies.count(Move.__name__) == 1
            assert set(client.hubs) == {hub.peer for hub in hubs.hubs.values()}
            for hub in hubs.hubs.values():
                async with member(hub.invite()) as joiner:
                    assert (await whole(joiner.ledger))[0].head == chain.head
        assert await other_tasks() == set()

    asyncio.run(main())


def test_any_hub_may_end_and_its_peers_go_on_at_another(tmp_path):
    async def main():
        async with three(tmp_path) as hubs, member(hubs.hubs[1].invite()) as client:
            async with writing(client.ledger) as writer:
                await hubs.add(2, 3)
                await hubs.moved()
                for number in (1, 2, 3):
                    reached = writer.chain.sequence
                    await writer.until(lambda reached=reached: writer.chain.sequence > reached)
                    await hubs.end(number)
                    reached = writer.chain.sequence
                    await writer.until(lambda reached=reached: writer.chain.sequence > reached + 5)
                    await hubs.start(number)
                    await hubs.moved()
            _, records = await whole(client.ledger)
            assert all(records[sequence - 1] == raw for sequence, raw in writer.acknowledged.items())

    asyncio.run(main())


def test_peers_at_different_hubs_hear_each_other(tmp_path):
    async def main():
        async with three(tmp_path) as hubs, contextlib.AsyncExitStack() as stack:
            async with member(hubs.hubs[1].invite()) as founder:
                await founder.ledger.append(Chain().next(AUTHOR, Finish(0, "x")), 0)
            await hubs.add(2, 3)
            await hubs.moved()
            heard: dict[str, asyncio.Queue[Progress]] = {}
            clients: dict[str, HubClient] = {}
            while {client.hub for client in clients.values()} != {hub.peer for hub in hubs.hubs.values()}:
                key = Identity.generate()
                client = await stack.enter_async_context(member(hubs.hubs[1].invite(), key))
                heard[key.peer] = asyncio.Queue()
                client.on_progress(heard[key.peer].put_nowait)
                clients[key.peer] = client
            for peer, client in clients.items():
                await client.publish_progress(progress(peer))
            for queue in heard.values():
                async with asyncio.timeout(DEADLINE_S):
                    assert {(await queue.get()).peer for _ in clients} == set(clients)

    asyncio.run(main())


def test_a_lost_hub_is_replaced_and_gets_its_copy_from_the_others(tmp_path):
    async def main():
        async with three(tmp_path) as hubs, member(hubs.hubs[1].invite()) as client:
            async with writing(client.ledger) as writer:
                await hubs.add(2, 3)
                with pytest.raises(Refused, match=r"once the run has moved|is there"):
                    await helper(tmp_path / "early", hubs.hubs[1], 2).__aenter__()
                await hubs.moved()
                with pytest.raises(Refused, match=r"all 3 seats are taken.*--replace"):
                    await helper(tmp_path / "more", hubs.hubs[1]).__aenter__()
                await hubs.end(2)
                old = tmp_path / "2"
                new = helper(tmp_path / "new", hubs.hubs[3], 2)
                await hubs.start(2, new)
                assert (new.seat, new.run) == (2, hubs.hubs[1].run)
                await hubs.moved()
                reached = writer.chain.sequence
                await writer.until(lambda: writer.chain.sequence > reached + 5)
            chain, _ = await whole(client.ledger)
            async with member(new.invite()) as joiner:
                assert (await whole(joiner.ledger))[0].sequence >= chain.sequence
            # Its own copy counts from now on: with it, one of the others can be spared.
            await hubs.end(1)
            async with writing(client.ledger) as writer:
                await writer.until(lambda: writer.chain.sequence > chain.sequence + 5)
            # The one that it replaced hears of it, and is no hub any more.
            async with asyncio.timeout(DEADLINE_S), Hub(old, host=HOST) as stale:
                await stale.replaced()
            shutil.rmtree(old)

    asyncio.run(main())


def test_only_the_owners_token_makes_a_hub(tmp_path):
    async def main():
        async with three(tmp_path) as hubs:
            hub = hubs.hubs[1]
            text = (tmp_path / "1" / TOKEN_FILE).read_text()
            assert (tmp_path / "1" / TOKEN_FILE).stat().st_mode & 0o077 == 0
            assert parse_token(text) == hub.token()
            with pytest.raises(InviteError, match="no token"):
                parse_token(hub.invite().text())
            with pytest.raises(InviteError):
                Invite.parse(text)
            forged = [
                hub.invite(),  # a peer is no hub
                msgspec.structs.replace(hub.token(), secret=b"w" * 16),
                msgspec.structs.replace(hub.token(), run="another"),
            ]
            for number, token in enumerate(forged):
                with pytest.raises(InviteError):
                    await Hub(tmp_path / f"f{number}", host=HOST, enlistment=Enlistment(token)).__aenter__()
            with pytest.raises(InviteError):
                await HubClient.join(hub.token(), Identity.generate())
            assert len(hub._book.seats) == 1

    asyncio.run(main())


def test_a_hub_alone_of_three_leads_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "BEGIN_S", 1.0)

    async def main():
        async with three(tmp_path) as hubs, member(hubs.hubs[1].invite()) as client:
            async with writing(client.ledger):
                await hubs.add(2, 3)
                await hubs.moved()
            changes = Changes(client)
            await hubs.end(2)
            await hubs.end(3)
            with pytest.raises(Unreachable, match=r"but not its ledger.*reaches neither"):
                await HubClient.join(hubs.hubs[1].invite(), Identity.generate())
            while client.connected:
                await changes.next()
            with pytest.raises(LedgerUnavailable):
                await client.ledger.read(1)
            await hubs.start(2)
            while not client.connected:
                await changes.next()
            async with writing(client.ledger):
                pass

    asyncio.run(main())


def test_a_token_survives_its_text():
    token = Invite("run", "3f" * 32, ("127.0.0.1:1",), b"s" * 16)
    assert parse_token(token_text(token).upper().replace("A", "A \n")) == token
