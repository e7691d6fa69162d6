"""A run whose ledger is a stream at its site's NATS: its hubs are doors to that, and keep none themselves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats.errors
from nats.aio.client import Client

from potluck.errors import EnvironmentProblem, LedgerUnavailable, PotluckError, UsageError
from potluck.hub.behind import Behind, Target
from potluck.hub.book import Book
from potluck.hub.engine import end
from potluck.hub.gated import Gated
from potluck.hub.nats_ledger import ask, read_subject, stream_name, stream_settings
from potluck.hub.seats import SEATS
from potluck.hub.site import Nats, connect
from potluck.hub.tell import FLUSH_S, tell_on, tell_once
from potluck.net.transport import Transport

ASK_S = 5.0
"""How long the site's JetStream may take for one answer, in seconds."""

AGAIN_S = 1.0
"""Pause before a site that is away is tried again, in seconds."""

OWNER = "potluck"
"""In the stream's metadata: the key of the run's authority, so that no hub takes another's ledger for it."""

_NO_STREAM = 10059
_NO_CLUSTER = 10074
_NOT_ENABLED = (10039, 10076)
_KEEPS_ALL = {"max_age": 0, "max_msgs": -1, "max_msgs_per_subject": -1}

log = logging.getLogger(__name__)


class SiteEngine(Behind):
    """A site's NATS behind one hub's door."""

    def __init__(self, site: Nats, book: Book) -> None:
        self._site, self._book = site, book
        self._way = Gated(site, book.run)
        self._teller: asyncio.Task[None] | None = None

    @property
    def target(self) -> Target:
        if self._book.replaced:
            return None, "another hub has this one's place"
        return self._way, ""

    @property
    def reached(self) -> frozenset[int]:
        return frozenset(seat.number for seat in self._book.others if seat.hub in self._book.told)

    async def prepare(self) -> None:
        """Make the ledger, or find it as it must be.

        Raises:
            UsageError, Unreachable, EnvironmentProblem: the site's NATS won't do, and why.
        """
        book = self._book
        async with site_client(self._site) as client:
            await settle(client, book.run, book.authority.peer, may_make=not book.state.made)
            await check_rights(client, book)
        book.update(made=True)
        log.info("the ledger of %s is kept by NATS at %s", book.run, self._site)

    async def start(self, transport: Transport) -> None:
        self._teller = asyncio.create_task(self._tell())

    async def stop(self) -> None:
        if self._teller is not None:
            await end([self._teller])

    async def _tell(self) -> None:
        """Tell peers of the run's hubs, and the log when the site's NATS goes and comes."""
        told = ""
        while True:
            try:
                async with site_client(self._site) as client:
                    if told:
                        log.warning("the site's NATS is back")
                    told = ""
                    await tell_on(client, self._book, lambda client=client: client.is_connected)  # type: ignore[misc]
                    problem = str(client.last_error or "it closed the connection")
            except (PotluckError, OSError, nats.errors.Error) as error:
                problem = str(error)
            if problem != told:
                log.warning("the site's NATS is away; peers train on meanwhile: %s", problem)
                told = problem
            await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def site_client(site: Nats) -> AsyncIterator[Client]:
    """A connection with the site's credentials.

    Raises: as ``connect``.
    """
    client = await connect(site)
    own = (client._reading_task, client._ping_interval_task, client._flusher_task)
    try:
        yield client
    finally:
        await client.close()
        await asyncio.gather(*filter(None, own), return_exceptions=True)


async def settle(client: Client, run: str, authority: str, *, may_make: bool) -> None:
    """See that the site's JetStream has the run's ledger; make it unless it must be there already.

    Raises:
        UsageError: the stream there is another's or lacks something, or is not there though it must be.
        EnvironmentProblem: JetStream is not enabled, or refuses, and why.
    """
    wanted = stream_settings(run) | {"metadata": {OWNER: authority}}
    found = await _ask(client, run, "INFO")
    if _code(found) == _NO_STREAM and not may_make:
        raise UsageError(
            f"this NATS has no ledger of {run}: name the one that the run's hubs use; if its stream "
            f"{stream_name(run)} was lost, bring the run back from a peer's disk, with "
            "`potluck host --resume DIR --nats URL`"
        )
    if _code(found) == _NO_STREAM:
        found = await _make(client, run, wanted)
    if problem := found.get("error"):
        raise EnvironmentProblem(f"the site's JetStream refuses the run's ledger: {_words(problem)}")
    _compare(found.get("config") or {}, wanted, run)


async def check_rights(client: Client, book: Book) -> None:
    """See that the site's user may do what is done for peers: the server says nothing until somebody tries.

    Raises:
        UsageError: it may not, and what is missing.
    """
    await client.subscribe(f"potluck.{book.run}.>")
    await tell_once(client, book)
    await client.publish(read_subject(book.run), b'{"seq":1}', reply=client.new_inbox())
    await client.flush(FLUSH_S)
    _check_for_refusal(client)


def _check_for_refusal(client: Client) -> None:
    words = str(client.last_error).lower()
    if "permissions violation" in words:
        raise UsageError(
            f"the site's NATS does not let this user keep a ledger ({words}): it must be allowed to publish "
            "and subscribe to potluck.>, $JS.API.> and _INBOX.>"
        )


async def _make(client: Client, run: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """Kept by three servers, if the site has so many."""
    made = await _ask(client, run, "CREATE", wanted | {"num_replicas": SEATS})
    if "error" not in made:
        return made
    alone = await _ask(client, run, "CREATE", wanted | {"num_replicas": 1})
    if "error" not in alone and _code(made) != _NO_CLUSTER:
        log.warning(
            "one server of the site keeps the ledger, not %d (`nats stream edit --replicas` mends that): %s",
            SEATS,
            _words(made["error"]),
        )
    return alone


def _compare(config: dict[str, Any], wanted: dict[str, Any], run: str) -> None:
    owner = (config.get("metadata") or {}).get(OWNER)
    if owner != wanted["metadata"][OWNER]:
        raise UsageError(
            f"the stream {stream_name(run)} at this NATS is not this hub's: it is another run's, or that of "
            "one whose hub is lost. For the second have it removed (`nats stream rm`): a run that is resumed "
            "brings its records with it"
        )
    for name, value in (wanted | _KEEPS_ALL).items():
        if name != "metadata" and config.get(name) != value:
            raise UsageError(
                f"the stream {stream_name(run)} at this NATS has {name} {config.get(name)!r} and must have "
                f"{value!r}: have it changed back (`nats stream edit`)"
            )


async def _ask(client: Client, run: str, what: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    subject = f"$JS.API.STREAM.{what}.{stream_name(run)}"
    try:
        reply = await ask(client, subject, json.dumps(body or {}).encode(), ASK_S)
        answer: dict[str, Any] = json.loads(reply.data)
    except nats.errors.NoRespondersError as error:
        raise EnvironmentProblem(_no_jetstream("nobody answers there")) from error
    except (OSError, nats.errors.Error, ValueError) as error:
        _check_for_refusal(client)
        raise LedgerUnavailable(f"the site's JetStream does not answer: {error or 'too slow'}") from error
    if _code(answer) in _NOT_ENABLED:
        raise EnvironmentProblem(_no_jetstream(_words(answer["error"])))
    return answer


def _no_jetstream(why: str) -> str:
    return (
        f"the site's NATS has no JetStream for this account ({why}): enable it there, or name a user of an "
        "account that has it"
    )


def _code(answer: dict[str, Any]) -> int:
    return int((answer.get("error") or {}).get("err_code", 0))


def _words(problem: dict[str, Any]) -> str:
    return str(problem.get("description", problem))[:500]
