"""``potluck host --resume`` as people use it, when all else is lost: the run goes on, or a fork of it."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from potluck.peer.disks import find_disk  # noqa: E402
from potluck.peer.replay import survey  # noqa: E402
from potluck.store.copies import DiskCopy  # noqa: E402

from . import shells as command  # noqa: E402
from .shells import LISTEN, Shells, end_hubs, summary, write_recipe  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def survey_of(home: Path) -> int:
    """How many records the copy there has."""
    return survey(DiskCopy(find_disk(home))).view.sequence


def test_a_run_comes_back_from_one_disk_and_a_fork_of_it_begins(shells: Shells, tmp_path: Path):
    anna = shells.peer("anna", "host", str(write_recipe(tmp_path)), "--keep-snapshots", "9")
    bert = shells.peer("bert", "join", anna.wait("invite")["invite"], "--keep-snapshots", "9")
    bert.wait("joined")
    seen = bert.wait("round", round=5)["round"]
    for peer in (anna, bert):
        peer.signal(signal.SIGKILL)
        peer.ended()
    end_hubs(tmp_path)
    for place in (shells.home("anna") / "hubs", tmp_path / "text"):
        shutil.rmtree(place)

    # Who was killed last may have a round more, whose parts it had no time to fetch.
    first, second = sorted(("anna", "bert"), key=lambda name: -survey_of(shells.home(name)))
    held = survey(DiskCopy(find_disk(shells.home(first))))
    assert held.view.round >= seen
    sound = command.potluck("verify", str(shells.home(first)), "--json")
    assert sound.exit_code == (0 if held.reach(0) == held.view.round else 1), sound.output
    assert f"round {held.reach(0)}  state" in command.potluck("verify", str(shells.home(first))).stdout
    assert min(held.whole) == 0, "nine snapshots are kept, and it had no more"

    for wrong in (["--hub", "x"], ["other.toml"]):
        refused = command.potluck("host", "--resume", str(shells.home(first)), *wrong)
        assert refused.exit_code == 2
        assert "give no recipe and no --hub" in refused.stderr
    options = ("--name", "anna", "--listen", LISTEN, "--threads", "1", "--keep-snapshots", "9")
    back = shells.open("host", "--resume", str(shells.home(first)), *options)
    invite = back.wait("invite")
    assert invite["run"] == held.genesis.run
    again = shells.peer(second, "join", invite["invite"], "--keep-snapshots", "9")
    assert back.wait("joined")["round"] >= held.view.round
    again.wait("round", peers=2, round=held.view.round + 2)
    back.wait("round", peers=2, round=held.view.round + 2)
    up = command.potluck("host", "--resume", str(shells.home(first)), "--listen", LISTEN)
    assert up.exit_code == 2
    assert "is up on this machine" in up.stderr
    for peer in (back, again):
        peer.signal(signal.SIGINT)
        assert peer.ended() == 130

    new = tmp_path / "new"
    forked = summary(command.potluck("fork", "--round", "3", str(shells.home(first)), str(new), "--json"))
    assert forked["parent"] == held.genesis.run != forked["run"]
    other = shells.open("host", "--resume", str(new), *options)
    assert other.wait("invite")["run"] == forked["run"]
    assert other.wait("joined")["round"] == 0
    other.wait("round", round=2)
    other.signal(signal.SIGINT)
    assert other.ended() == 130
