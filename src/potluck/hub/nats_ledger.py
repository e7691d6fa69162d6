"""The ledger on NATS JetStream: one stream per run, compare-and-set by the server, reads without state.

Reading is the batched direct get of NATS' ADR-31: one question, then records until the server says that the
batch is over. No consumer has to be kept or rebuilt, so after a restart of the hub the next read just works.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from potluck.errors import LedgerConflict, LedgerUnavailable, ProtocolError, UsageError
from potluck.hub.ledger import BATCH, Ledger, check_size
from potluck.wire.codec import MAX_MESSAGE_BYTES

MAX_PAYLOAD_BYTES = MAX_MESSAGE_BYTES + (1 << 16)
"""The server's limit for one message: a record and its headers."""

MAX_READ_BYTES = 4 << 20
"""About how much one read returns at most; always one record, though."""

ANSWER_S = 15.0
"""How long the server may be silent while we wait for it, in seconds. A lost connection is noticed sooner."""

APPEND_S = 5.0
"""How long an append waits for its answer, in seconds, besides the time it takes to arrive. A server that was
killed with a record in its hands says nothing: the sooner it is sent again, the sooner another takes it."""

FIRST_S = 4.0
"""How long a read waits for its first record, in seconds: the one of several servers asked may have died."""

SLOWEST = 64 << 10
"""Bytes/s that a record makes at least on its way to the hub."""

INBOX = "_INBOX"
"""What subjects begin with at which a NATS client waits for answers."""

EXPECTED_LAST, EXPECTED_STREAM = "Nats-Expected-Last-Sequence", "Nats-Expected-Stream"
"""The headers of an append: it is stored right after this record, in this ledger, or not at all."""

_LAG_S = 0.02
_LAG_TRIES = 50
_WRONG_LAST_SEQUENCE = 10071
_FEW_BYTES = 4 * MAX_MESSAGE_BYTES


def stream_name(run: str) -> str:
    """JetStream's name for the run's ledger.

    Raises:
        UsageError: the run's name would not do as a part of subjects.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run):
        raise UsageError(f"a run is named by 1 to 64 letters, digits, - and _, not {run[:80]!r}")
    return f"POTLUCK_{run}"


def ledger_subject(run: str) -> str:
    """Where records are appended."""
    return f"potluck.{run}.ledger"


def read_subject(run: str) -> str:
    """Where records are asked for."""
    return f"$JS.API.DIRECT.GET.{stream_name(run)}"


def peer_permissions(run: str) -> dict[str, Any]:
    """What a peer may say and hear, as nats-server is configured: nothing that could unmake the ledger."""
    own = f"potluck.{run}.>"
    return {
        "publish": {"allow": [own, read_subject(run)]},
        "subscribe": {"allow": [own, f"{INBOX}.>"]},
    }


def stream_settings(run: str) -> dict[str, Any]:
    """What makes a stream the run's ledger."""
    return {
        "name": stream_name(run),
        "subjects": [ledger_subject(run)],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msg_size": MAX_PAYLOAD_BYTES,
        "allow_direct": True,
        "deny_delete": True,
        "deny_purge": True,
        # Said by the server once a record is stored, so whoever then reads finds it.
        "republish": {
            "src": ledger_subject(run),
            "dest": f"potluck.{run}.appended",
            "headers_only": True,
        },
    }


async def ask(
    client: Client, subject: str, body: bytes, patience_s: float | None, headers: dict[str, str] | None = None
) -> Msg:
    """One request and its answer. A cancellation is never lost here, as it may be where the NATS client
    keeps the time itself: before Python 3.12, ``asyncio.wait_for`` drops one that comes with the answer.

    Raises:
        TimeoutError: no answer within so many seconds.
        nats.errors.Error: the connection is closed, or nobody answers there.
    """
    async with asyncio.timeout(patience_s):
        # None is allowed, though the client's own annotation does not say so.
        return await client.request(subject, body, timeout=cast("float", None), headers=headers)


async def create_stream(client: Client, run: str, replicas: int = 1, patience_s: float = ANSWER_S) -> None:
    """Make the run's ledger, or find it as it is; each record is kept by so many servers.

    Raises:
        LedgerUnavailable: the server does not, and why.
    """
    settings = stream_settings(run) | {"num_replicas": replicas}
    subject = f"$JS.API.STREAM.CREATE.{stream_name(run)}"
    try:
        reply = await ask(client, subject, json.dumps(settings).encode(), patience_s)
    except (TimeoutError, OSError, nats.errors.Error) as error:
        raise LedgerUnavailable(f"nats-server does not make the ledger: {error or 'no answer'}") from error
    if problem := _answer(reply).get("error"):
        raise LedgerUnavailable(f"nats-server does not make the ledger: {_description(problem)}")


class NatsLedger(Ledger):
    """The ledger of one run, over whichever NATS connection there is at the moment.

    ``attach`` gives it one, ``detach`` takes it away; in between, calls raise ``LedgerUnavailable`` at once.
    One task should read: only the last one to do so is sure to be woken without delay.
    """

    def __init__(self, run: str) -> None:
        self._stream = stream_name(run)
        self._run = run
        self._client: Client | None = None
        self._away = "not connected yet"
        self._changed = asyncio.Event()
        self._known = 0
        self._deadlines: set[asyncio.Timeout] = set()

    async def attach(self, client: Client) -> None:
        """Go on over this connection.

        Raises:
            nats.errors.Error: it is closed already.
        """
        await client.subscribe(f"potluck.{self._run}.appended", cb=self._appended)
        self._client = client
        self._changed.set()

    def detach(self, reason: str) -> None:
        """The connection is lost: calls in progress and to come raise ``LedgerUnavailable`` with ``reason``.

        Safe to call twice.
        """
        self._client, self._away = None, reason
        for deadline in self._deadlines:
            deadline.reschedule(0)

    async def append(self, raw: bytes, after: int) -> int:
        check_size(raw)
        headers = {EXPECTED_LAST: str(after), EXPECTED_STREAM: self._stream}
        patience_s = APPEND_S + len(raw) / SLOWEST
        async with self._asking(patience_s) as (client, _):
            reply = await ask(client, ledger_subject(self._run), raw, None, headers)
        answer = _answer(reply)
        if problem := answer.get("error"):
            if isinstance(problem, dict) and problem.get("err_code") == _WRONG_LAST_SEQUENCE:
                self._know(_number(_description(problem).rpartition(" ")[2]))
                raise LedgerConflict(f"record {after + 1} can't be appended: {_description(problem)}")
            raise LedgerUnavailable(f"the hub did not store record {after + 1}: {_description(problem)}")
        if answer.get("seq") != after + 1:
            raise ProtocolError(f"the hub stored record {after + 1} as {answer.get('seq')!r}")
        self._know(after + 1)
        return after + 1

    async def read(self, start: int, limit: int = BATCH) -> list[tuple[int, bytes]]:
        # Of several servers any one answers, and it may lag a little behind what we were told of.
        for _ in range(_LAG_TRIES):
            self._changed.clear()
            found = await self._read(start, limit)
            if found or self._known < max(start, 1):
                break
            await asyncio.sleep(_LAG_S)
        else:
            self._known = 0  # whoever told of more made that up
        return found

    async def _read(self, start: int, limit: int) -> list[tuple[int, bytes]]:
        question = {"seq": max(start, 1), "batch": limit, "max_bytes": MAX_READ_BYTES}
        async with self._asking(FIRST_S) as (client, deadline):
            batch = _Batch(limit, deadline)
            inbox = client.new_inbox()
            replies = await client.subscribe(inbox, cb=batch.take)
            try:
                await client.publish(read_subject(self._run), json.dumps(question).encode(), reply=inbox)
                return await batch.whole
            finally:
                if not client.is_closed:
                    await replies.unsubscribe()

    async def changed(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def _appended(self, message: Msg) -> None:
        self._know(_number((message.headers or {}).get("Nats-Sequence", "")))
        self._changed.set()

    def _know(self, sequence: int) -> None:
        """There is a record at ``sequence``."""
        self._known = max(self._known, sequence)

    @asynccontextmanager
    async def _asking(self, patience_s: float = ANSWER_S) -> AsyncIterator[tuple[Client, asyncio.Timeout]]:
        client = self._client
        if client is None:
            raise LedgerUnavailable(f"the hub is away: {self._away}")
        if client.pending_data_size > _FEW_BYTES:
            raise LedgerUnavailable("the hub does not take what has been sent to it already")
        try:
            async with asyncio.timeout(patience_s) as deadline:
                self._deadlines.add(deadline)
                try:
                    yield client, deadline
                finally:
                    self._deadlines.discard(deadline)
        except TimeoutError as error:
            reason = f"no answer within {patience_s:.0f} s" if self._client is client else self._away
            raise LedgerUnavailable(f"the hub is away: {reason}") from error
        except nats.errors.MaxPayloadError as error:
            raise ProtocolError(f"this hub's ledger takes {client.max_payload} bytes at a time") from error
        except (OSError, nats.errors.Error) as error:
            raise LedgerUnavailable(f"the hub is away: {error}") from error


class _Batch:
    """Gathers the replies to one batched read; each puts the deadline off."""

    def __init__(self, limit: int, deadline: asyncio.Timeout) -> None:
        self.whole: asyncio.Future[list[tuple[int, bytes]]] = asyncio.get_running_loop().create_future()
        self._records: list[tuple[int, bytes]] = []
        self._bytes = 0
        self._limit = limit
        self._deadline = deadline

    async def take(self, reply: Msg) -> None:
        if self.whole.done():
            return
        headers = reply.headers or {}
        status = headers.get("Status")
        if status in ("204", "404"):
            self.whole.set_result(self._records)
        elif status is not None:
            reason = headers.get("Description") or "nobody keeps this ledger there"
            self.whole.set_exception(LedgerUnavailable(f"the hub can't read the ledger: {status} {reason}"))
        else:
            self._add(headers.get("Nats-Sequence", ""), reply.data)

    def _add(self, sequence: str, raw: bytes) -> None:
        self._bytes += len(raw)
        # The server stops after the record that goes over the limit.
        room = len(self._records) < self._limit and self._bytes <= MAX_READ_BYTES + MAX_PAYLOAD_BYTES
        if not room or not sequence.isdecimal():
            self.whole.set_exception(
                ProtocolError("the hub answers a read with something else than was asked")
            )
            return
        self._records.append((int(sequence), raw))
        now = asyncio.get_running_loop().time()
        if (self._deadline.when() or now) > now:
            self._deadline.reschedule(now + ANSWER_S)


def _answer(reply: Msg) -> dict[str, Any]:
    try:
        answer = json.loads(reply.data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ProtocolError("the hub's answer can't be read")
    return answer


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def _description(problem: Any) -> str:
    return str(problem.get("description", "") if isinstance(problem, dict) else problem)[:500]
