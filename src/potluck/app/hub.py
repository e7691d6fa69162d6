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
from potluck.errors import PotluckError, StoreError, Unreachable
from potluck.hub.launch import launch_hub
from potluck.hub.service import Hub, serve
from potluck.hub.state import HubState
from potluck.identity import Identity
from potluck.wire.invite import Invite

T = TypeVar("T")


def run_hub(out: Output, directory: Path, listen: str, port: int, valid_days: float) -> None:
    """Run a hub until a signal ends it.

    Raises:
        Leaving: what a signal ends in, once the hub is down.
        PotluckError: as entering ``Hub``.
    """
    is_known = HubState.load(directory) is not None

    def ready(hub: Hub) -> None:
        invite = hub.invite(valid_days * 86_400.0 or None).text()
        out.say("hub", f"the hub of run {hub.run} is up, on {', '.join(hub.addresses)}", run=hub.run)
        out.say("invite", invite, invite=invite)
        if not is_known:
            out.next("start a run on it", f"potluck host shakespeare --hub {invite}")
        out.next("join its run from any machine", f"potluck join {invite}")

    number = asyncio.run(_serve(directory, listen, port, ready))
    out.summary(
        "the hub is down; peers train on without it",
        ("start it again where it was", again(directory)),
        code=128 + number,
    )
    raise Leaving(number)


async def _serve(directory: Path, listen: str, port: int, ready: Callable[[Hub], None]) -> int:
    """Serve until a signal comes; returns its number."""
    stop = asyncio.Event()
    came: list[int] = []

    def ended(number: int) -> None:
        came.append(number)
        stop.set()

    for number in ENDING:
        asyncio.get_running_loop().add_signal_handler(number, ended, number)
    await serve(directory, host=listen, port=port, ready=ready, until_idle_s=None, stop=stop)
    return came[0] if came else signal.SIGTERM


def again(directory: Path) -> str:
    """The command that starts the hub of a directory again."""
    return f"potluck hub --directory {shlex.quote(str(directory))}"


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
