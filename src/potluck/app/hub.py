"""``potluck hub``, and what to do about a hub that is away."""

from __future__ import annotations

import asyncio
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from potluck.app.interrupts import ENDING, Leaving
from potluck.app.output import Output
from potluck.errors import PotluckError, StoreError, Unreachable, UsageError
from potluck.hub.between import parse_token
from potluck.hub.launch import launch_hub
from potluck.hub.service import TOKEN_FILE, Enlistment, Hub, serve
from potluck.hub.site import Nats
from potluck.hub.state import HubState
from potluck.identity import Identity
from potluck.wire.invite import Invite

T = TypeVar("T")


def enlistment(what: str, token: str, seat: int) -> Enlistment | None:
    """What ``potluck hub add TOKEN`` asks for; ``None`` for a plain ``potluck hub``.

    Raises:
        UsageError: it is neither, or the token is none.
    """
    if what == "add" and token:
        return Enlistment(parse_token(token), seat)
    if what or token or seat:
        raise UsageError(
            "it is `potluck hub`, `potluck hub add TOKEN [--replace SEAT]` or `potluck hub token`"
        )
    return None


def show_token(out: Output, directory: Path) -> None:
    """Print the line that makes another machine a hub of the run.

    Raises:
        UsageError: there is no hub in this directory.
        StoreError: it can't be read.
    """
    try:
        token = (directory / TOKEN_FILE).read_text("utf-8").strip()
    except FileNotFoundError:
        raise UsageError(f"{directory} has no hub: start one there with `potluck hub`") from None
    except OSError as error:
        raise StoreError(f"the token can't be read: {error.strerror or error}") from error
    out.say("token", token, token=token)
    out.next("make another machine a hub (whoever has this line can)", "potluck hub add TOKEN")


def run_hub(
    out: Output,
    directory: Path,
    listen: str,
    port: int,
    valid_days: float,
    enlisted: Enlistment | None = None,
    nats: Nats | None = None,
) -> None:
    """Run a hub until a signal ends it.

    Raises:
        Leaving: what a signal ends in, once the hub is down.
        PotluckError: as entering ``Hub``.
    """
    is_known = HubState.load(directory) is not None

    def ready(hub: Hub) -> None:
        invite = hub.invite(valid_days * 86_400.0 or None).text()
        out.say("hub", f"the hub of run {hub.run} is up, on {', '.join(hub.addresses)}", run=hub.run)
        if hub.nats is not None:
            out.say("ledger", f"its ledger is kept by the site's NATS, {hub.nats}")
        out.say("invite", invite, invite=invite)
        watches.append(asyncio.ensure_future(_say_when_whole(out, hub)))
        if not is_known and enlisted is None:
            out.next("start a run on it", f"potluck host shakespeare --hub {invite}")
        out.next("join its run from any machine", f"potluck join {invite}")

    watches: list[asyncio.Future[None]] = []
    hub = Hub(directory, host=listen, port=port, enlistment=enlisted, nats=nats)
    number = asyncio.run(_serve(hub, ready))
    out.summary(
        "the hub is down; peers go on at the others, or train on without one",
        ("start it again where it was", again(directory)),
        code=128 + number,
    )
    raise Leaving(number)


async def _say_when_whole(out: Output, hub: Hub) -> None:
    await hub.whole()
    out.say(
        "hubs", f"three hubs keep the ledger, this one on seat {hub.seat}: any one may be lost", seat=hub.seat
    )


async def _serve(hub: Hub, ready: Callable[[Hub], None]) -> int:
    """Serve until a signal comes; returns its number."""
    stop = asyncio.Event()
    came: list[int] = []

    def ended(number: int) -> None:
        came.append(number)
        stop.set()

    for number in ENDING:
        asyncio.get_running_loop().add_signal_handler(number, ended, number)
    await serve(hub, ready=ready, until_idle_s=None, stop=stop)
    return came[0] if came else signal.SIGTERM


def again(directory: Path) -> str:
    """The command that starts the hub of a directory again."""
    return f"potluck hub --directory {shlex.quote(str(directory))}"


def show_token_of(directory: Path) -> str:
    """The command that shows the token of the hub in a directory."""
    return f"potluck hub token --directory {shlex.quote(str(directory))}"


def own_hub(home: Path, invite: Invite) -> Path | None:
    """The directory of an invite's hub, if it was started on this machine; a resumed run has several."""
    for path in sorted((home / "hubs").glob("*/hub.json")):
        try:
            state = HubState.load(path.parent)
        except StoreError:
            continue  # another run's; its own hub says so when it is started
        if state is None or state.run != invite.run:
            continue
        if Identity.load_or_create(path.parent / "key.pem").peer == invite.hub:
            return path.parent
    return None


def away(error: PotluckError, run: str) -> Unreachable:
    """What a user should know when nobody answers at the hub's addresses."""
    return Unreachable(
        f"the hub of run {run} is away ({error}); whoever trains goes on meanwhile. Try again soon, or start "
        "it again on its machine: potluck hub --directory DIRECTORY"
    )


def with_hub(out: Output, invite: Invite, home: Path, listen: str, reach: Callable[[], T]) -> T:
    """What ``reach`` returns; if the hub is away and was this machine's, it is started again for that.

    Raises:
        Unreachable: it is away, and not ours to start.
        PotluckError: what ``reach`` raises.
    """
    try:
        return reach()
    except Unreachable as error:
        directory = own_hub(home, invite)
        if directory is None:
            raise away(error, invite.run) from error
    out.say("note", f"the run's hub was on this machine and has ended: it is started again ({directory})")
    launch_hub(directory, host=listen)
    return reach()
