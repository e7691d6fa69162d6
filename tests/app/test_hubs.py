"""From one hub to three by the command line alone, as the README says, while peers train; then hubs die."""

from __future__ import annotations

import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from . import shells as command
from .shells import LISTEN, START_S, Shell, Shells, kill_hub, summary, write_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def go_on(*peers: Shell, rounds: int = 2) -> None:
    """Both peers see so many more rounds than anybody has seen, with both in them."""
    last = max(said["round"] for peer in peers for said in peer.said if said["event"] == "round")
    for peer in peers:
        peer.wait("round", peers=len(peers), round=last + rounds)


def token_of(words: list[str]) -> str:
    """What ``potluck hub token`` shows."""
    shown: Any = command.potluck(*words[1:], "--json")
    assert shown.exit_code == 0, shown.output
    token: str = next(said["token"] for said in command.events(shown) if said["event"] == "token")
    return token


def add(shells: Shells, name: str, token: str, *more: str) -> Shell:
    place = ("--directory", str(shells.home(name)), "--listen", LISTEN)
    return shells.open("hub", "add", token, *more, *place)


def take_over(shells: Shells, name: str, token: str, seat: int) -> tuple[Shell, str]:
    """Add a hub in place of a lost one, again while it is said that the others are not ready; and its invite.

    (What they know of each other's copy may be some seconds old, and one of them has just become the leader.)
    """
    deadline = time.monotonic() + START_S
    while True:
        hub = add(shells, name, token, "--replace", str(seat))
        try:
            return hub, hub.wait("invite")["invite"]
        except AssertionError:
            assert "try again in a few seconds" in str(hub), hub
            assert time.monotonic() < deadline, hub


def test_one_hub_becomes_three_and_any_may_die_and_be_replaced(shells: Shells, tmp_path: Path):
    anna = shells.peer("anna", "host", str(write_recipe(tmp_path)))
    invite = anna.wait("invite")["invite"]
    show = shlex.split(anna.wait("next", containing="hub token")["command"])
    first = Path(show[-1])
    bert = shells.peer("bert", "join", invite)
    for peer in (anna, bert):
        peer.wait("round", peers=2)

    token = token_of(show)
    second = add(shells, "second", token)
    second.wait("invite")
    third = add(shells, "third", token)
    for seat, hub in ((2, second), (3, third)):
        assert hub.wait("hubs")["seat"] == seat
    go_on(anna, bert)

    kill_hub(tmp_path)
    go_on(anna, bert)

    # It is lost with its disk; its token is of no use, since nobody is where that leads.
    shutil.rmtree(first)
    token = token_of(["potluck", "hub", "token", "--directory", str(shells.home("second"))])
    taken = add(shells, "fourth", token)
    assert "all 3 seats are taken" in taken.wait("error")["text"]
    again, new = take_over(shells, "again", token, 1)
    assert again.wait("hubs")["seat"] == 1
    go_on(anna, bert)

    # Its copy counts: with the newcomer's, another hub can be spared.
    second.signal(signal.SIGKILL)
    go_on(anna, bert)
    seen = summary(command.potluck("status", new, "--json"))
    assert {peer["name"] for peer in seen["peers"]} == {"anna", "bert"}
    for peer in (anna, bert):
        peer.signal(signal.SIGINT)
        assert peer.ended() == 130
    for hub in (third, again):
        hub.signal(signal.SIGTERM)
        assert hub.ended(20) == 143
