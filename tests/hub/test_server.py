"""The embedded nats-server: found, started, stopped, restarted, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from potluck.errors import LedgerUnavailable, UsageError
from potluck.hub import guard
from potluck.hub import server as server_module
from potluck.hub.server import HUB, NatsServer, find_program

from .support import (
    DEADLINE_S,
    PEER_PASSWORD,
    RUN,
    alive,
    connection,
    nats_ledger,
    running_server,
    wait_for_end,
)

OWNER = """
import asyncio, os, signal, sys
from pathlib import Path
from potluck.hub.server import NatsServer

async def main():
    server = NatsServer(Path(sys.argv[1]), "test-run", "a password of peers")
    await server.start()
    child = 0
    if sys.argv[2] == "fork":
        child = os.fork()
        if not child:
            os.close(1)
            signal.pause()
    print(server.pid, server.guard_pid, child, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_it_starts_answers_and_stops(tmp_path):
    async def main():
        async with running_server(tmp_path) as server:
            pid, guard_pid, address = server.pid, server.guard_pid, server.address
            assert address[0] == "127.0.0.1"
            assert alive(pid)
            async with connection(server, HUB) as client:
                assert client.is_connected
        assert server.address is None
        assert not alive(pid)
        assert not alive(guard_pid)
        await server.stop()

    asyncio.run(main())


def test_its_secrets_are_the_owners_alone(tmp_path):
    async def main():
        async with running_server(tmp_path / "ledger"):
            mode = stat.S_IMODE((tmp_path / "ledger" / "nats.conf").stat().st_mode)
            assert mode == 0o600
            assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o700

    asyncio.run(main())


def test_records_survive_a_stop_and_a_kill(tmp_path):
    async def main():
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            await ledger.append(b"one", 0)
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            assert await ledger.append(b"two", 1) == 2
            end = os.pidfd_open(server.pid)
            os.kill(server.pid, signal.SIGKILL)
            assert wait_for_end(end)
        async with running_server(tmp_path) as server, nats_ledger(server) as ledger:
            assert await ledger.read(1) == [(1, b"one"), (2, b"two")]

    asyncio.run(main())


@pytest.mark.parametrize("victim", ["pid", "guard_pid"])
def test_it_is_started_again_when_it_dies(tmp_path, victim, monkeypatch):
    """Whether it is killed itself or its guard, which takes it along."""

    async def main():
        started = asyncio.Queue()
        launch = NatsServer._launch

        async def observed(self):
            await launch(self)
            started.put_nowait(self.pid)

        monkeypatch.setattr(NatsServer, "_launch", observed)
        async with running_server(tmp_path) as server:
            first = await started.get()
            end = os.pidfd_open(first)
            os.kill(getattr(server, victim), signal.SIGKILL)
            second = await asyncio.wait_for(started.get(), DEADLINE_S)
            assert wait_for_end(end)
            assert second != first
            async with nats_ledger(server) as ledger:
                assert await ledger.append(b"again", 0) == 1

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("way", ["alone", "fork"])
def test_it_does_not_outlive_its_owner(tmp_path, number, way):
    """Not even when a fork of the owner, say a loader of data, lives on and keeps the pipe open."""
    command = [sys.executable, "-c", OWNER, str(tmp_path), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None
        *pids, child = (int(word) for word in owner.stdout.readline().split())
        try:
            ends = [os.pidfd_open(pid) for pid in pids]
            owner.send_signal(number)
            assert owner.wait(DEADLINE_S) != 0
            assert all(map(wait_for_end, ends))
        finally:
            owner.kill()
            if child:
                os.kill(child, signal.SIGKILL)

    async def main():
        async with running_server(tmp_path) as server:
            assert alive(server.pid)

    asyncio.run(main())


def test_one_that_ignores_its_end_is_killed(tmp_path):
    impatient = tmp_path / "guard.py"
    impatient.write_text(Path(guard.__file__).read_text().replace("STOP_S = 5.0", "STOP_S = 0.1"))
    stubborn = script(tmp_path / "stubborn", "trap '' TERM; echo $$; while :; do sleep 1000; done")
    command = [sys.executable, "-I", "-S", impatient, str(os.getpid()), tmp_path / "lock", stubborn]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        running.stdin.close()
        assert running.wait(DEADLINE_S) != 0
        assert not alive(pid)


def test_a_second_one_on_its_directory_is_refused(tmp_path, monkeypatch):
    impatient = tmp_path / "guard.py"
    impatient.write_text(Path(guard.__file__).read_text().replace("LOCK_S = 10.0", "LOCK_S = 0.1"))

    async def main():
        async with running_server(tmp_path / "ledger") as server:
            monkeypatch.setattr(guard, "__file__", str(impatient))
            with pytest.raises(UsageError, match="another hub is running on"):
                await NatsServer(tmp_path / "ledger", RUN, PEER_PASSWORD).start()
            assert alive(server.pid)

    asyncio.run(main())


def test_why_it_does_not_start_is_said(tmp_path, monkeypatch):
    program = script(tmp_path / "nats-server", "echo '[FTL] the disk is made of cheese' >&2; exit 3")

    async def found():
        return program

    monkeypatch.setattr(server_module, "find_program", found)

    async def main():
        with pytest.raises(LedgerUnavailable, match=r"status 3: .*made of cheese"):
            await NatsServer(tmp_path / "ledger", RUN, PEER_PASSWORD).start()

    asyncio.run(main())


def test_one_that_never_answers_is_given_up(tmp_path, monkeypatch):
    program = script(tmp_path / "nats-server", "exec sleep 1000")

    async def found():
        return program

    monkeypatch.setattr(server_module, "find_program", found)
    monkeypatch.setattr(server_module, "START_S", 0.3)

    async def main():
        server = NatsServer(tmp_path / "ledger", RUN, PEER_PASSWORD)
        with pytest.raises(LedgerUnavailable, match="did not answer within"):
            await server.start()
        assert server.guard_pid is None

    asyncio.run(main())


def test_a_newer_one_is_chosen_and_an_older_one_named(tmp_path, monkeypatch):
    old = script(tmp_path / "old", "echo 'nats-server: v2.10.9'")
    new = script(tmp_path / "new", "echo 'nats-server: v2.11.0'")
    odd = script(tmp_path / "odd", "exit 1")
    choices = [old, odd, tmp_path / "absent", new]
    monkeypatch.setattr(server_module, "_candidates", lambda: choices)
    assert asyncio.run(find_program()) == new
    choices.pop()
    with pytest.raises(
        UsageError, match=r"needs nats-server 2\.11 .*old is 2\.10\.9.*odd is not one.*pip install"
    ):
        asyncio.run(find_program())
    choices.clear()
    with pytest.raises(UsageError, match="none was found"):
        asyncio.run(find_program())


def test_the_wheels_program_is_found_without_a_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert asyncio.run(find_program()).name == "nats-server"
