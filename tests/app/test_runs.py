"""``potluck`` as people use it: real processes on one machine, each with a data directory of its own."""

from __future__ import annotations

import hashlib
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import potluck  # noqa: E402
from potluck.app import export as exporting  # noqa: E402
from potluck.optim.state import state_digest  # noqa: E402

from . import shells as command  # noqa: E402
from .shells import LEAVE_S, LISTEN, START_S, Shells, end_hubs, events, summary, write_recipe  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]


def test_either_may_leave_and_the_other_goes_on(shells: Shells, tmp_path: Path):
    anna = shells.peer("anna", "host", str(write_recipe(tmp_path)))
    invite = anna.wait("invite")["invite"]
    assert anna.wait("next")["command"] == f"potluck join {invite}"
    bert = shells.peer("bert", "join", invite)
    carl = shells.peer("carl", "join", invite)
    for peer in (bert, carl):
        peer.wait("joined")
        peer.wait("round", peers=3)

    seen = summary(command.potluck("status", invite, "--json"))
    assert {p["name"] for p in seen["peers"]} == {"anna", "bert", "carl"}
    assert {p["phase"] for p in seen["peers"]} == {"training"}
    assert seen["round"] >= 1
    assert seen["tokens"] >= 8_000
    assert seen["waiting"]
    assert any(e["record"] == "commit" and "held by" in e["reason"] for e in seen["events"])
    assert all("address" not in key for p in seen["peers"] for key in p)

    # From elsewhere: peers that were there have kept what the best state follows from.
    anna.wait("evaluation")
    options = ("--directory", str(shells.home("elsewhere")), "--listen", LISTEN, "--json")
    best = command.potluck("export", invite, str(tmp_path / "best"), "--best", *options)
    assert best.exit_code == 0, best.output
    said = events(command.potluck("log", invite, "--json"))
    assert summary(best)["state"] in {e["state"] for e in said if e["event"] == "evaluation"}

    bert.signal(signal.SIGINT)
    assert bert.ended() == 130
    assert bert.wait("summary")["next"] == f"potluck join {invite}"
    anna.wait("peer-gone", containing="bert")
    anna.wait("round", peers=2)

    anna.signal(signal.SIGINT)
    assert anna.ended() == 130
    last = anna.wait("summary")["round"]
    carl.wait("peer-gone", containing="anna")
    carl.wait("round", round=last + 2)

    left = command.potluck("leave", "--directory", str(shells.home("carl")), "--json")
    assert (left.exit_code, summary(left)["left"]) == (0, 1)
    assert carl.ended(0.5) == 143
    assert not list(shells.home("carl").glob("processes/*"))


def test_a_run_that_reaches_its_end_and_what_is_left_of_it(
    shells: Shells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = write_recipe(tmp_path, rounds=7)
    # Its learning rate falls with the commits, which each peer follows.
    cooling = recipe.read_text("utf-8").replace("[inner]", '[inner]\nkind = "muon"\ncooldown = 0.5')
    recipe.write_text(cooling, "utf-8")
    anna = shells.peer("anna", "host", str(recipe))
    invite = anna.wait("invite")["invite"]
    bert = shells.peer("bert", "join", invite)
    follower = shells.peer("follower", "join", invite, "--follow")
    ends = {}
    for peer in (anna, bert, follower):
        end = ends[peer] = peer.wait("summary", START_S)
        assert end["over"] == "round 7 committed, the last one asked for"
        assert peer.ended(START_S) == end["code"] == 0
    assert len({end["state"] for end in ends.values()}) == 1
    assert ends[anna]["round"] == 7
    assert ends[anna]["loss"] < anna.said[[e["event"] for e in anna.said].index("round")]["loss"]

    # Everybody has gone and the hub is down: what this machine kept is enough.
    end_hubs(tmp_path)
    gone = command.potluck("status", invite)
    assert gone.exit_code == 1
    assert "is away" in gone.stderr
    assert len(gone.stderr.splitlines()) == 1
    model = tmp_path / "model"
    options = ("--directory", str(shells.home("anna")), "--listen", LISTEN)
    export = shells.open("export", invite, str(model), *options)
    export.wait("note", containing="it is started again")
    written = export.wait("summary")
    assert export.ended() == 0
    assert (written["state"], written["round"]) == (ends[anna]["state"], 7)
    assert "from transformers import" in written["next"]
    assert "is over" in summary(command.potluck("status", invite, "--json"))["waiting"]
    check_model(model, ends[anna]["state"])
    check_evaluations(shells.home("anna"), invite, tmp_path)
    check_replay(model, shells.home("anna"), written)

    # A machine that was no part of it has nothing to write from, and says so.
    elsewhere = ["--directory", str(shells.home("elsewhere")), "--listen", LISTEN]
    monkeypatch.setattr(exporting, "ALONE_S", 2.0)
    lost = command.potluck("export", invite, str(tmp_path / "other"), *elsewhere)
    assert lost.exit_code == 1
    assert "nobody who is there has the state of this run" in lost.stderr


def check_evaluations(home: Path, invite: str, place: Path) -> None:
    """Peers measured the shared state in turn, the last one too; the best is on the disk and comes out."""
    said = events(command.potluck("log", invite, "--json"))
    judged = {e["round"]: e["metrics"] for e in said if e["event"] == "evaluation"}
    assert 7 in judged
    assert all(list(metrics) == ["loss", "bits per byte"] for metrics in judged.values())
    assert len(judged) == len([e for e in said if e["event"] == "evaluation"]) >= 3
    assert said[:-1] == events(command.potluck("log", str(home), "--json"))[:-1]
    best = said[-1]["best"]
    assert judged[best]["loss"] == min(metrics["loss"] for metrics in judged.values())
    result = command.potluck("export", str(home), str(place / "best"), "--best", "--json")
    assert result.exit_code == 0, result.output
    assert summary(result)["round"] == best
    card = (place / "best" / "README.md").read_text("utf-8")
    assert f"after round {best}, " in card
    assert "the best one that was evaluated" in card
    assert f"| {judged[best]['loss']:.5g} |" in card


def check_replay(model: Path, home: Path, written: dict[str, Any]) -> None:
    """The card's command writes the same weights again, and its digests are those of the run."""
    card = (model / "README.md").read_text("utf-8")
    assert written["sha256"] in card
    assert written["state"] in card
    assert hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest() == written["sha256"]
    [line] = re.findall(r"^potluck (export .*)$", card, re.M)
    again = model.with_name("again")
    words = [{"COPY": str(home), "model": str(again)}.get(word, word) for word in line.split()]
    result = command.potluck(*words, "--json")
    assert result.exit_code == 0, result.output
    assert {k: summary(result)[k] for k in ("sha256", "state")} == {
        k: written[k] for k in ("sha256", "state")
    }
    assert (again / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    verified = summary(command.potluck("verify", str(home), "--json"))
    assert verified["state"] == written["state"]
    refused = command.potluck("export", str(home), str(again), "--round", "8")
    assert "up to round 7, not 8" in refused.stderr


def check_model(directory: Path, state: str) -> None:
    """The exported model is the run's, and transformers reads it and writes with it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
    assert state_digest(7, theta, np.zeros_like(theta)) == state
    ids = tokenizer("The 7th cat", return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(written[0]).startswith("The 7th cat")
    assert written.shape[1] > ids.shape[1]


def test_training_goes_on_without_the_hub_and_commits_again_with_it(shells: Shells, tmp_path: Path):
    place = ("--directory", str(tmp_path / "hub"), "--listen", LISTEN)
    hub = shells.open("hub", *place)
    first, invite = hub.wait("hub"), hub.wait("invite")["invite"]
    recipe = str(write_recipe(tmp_path))
    anna = shells.peer("anna", "host", recipe, "--hub", invite)
    anna.wait("joined")
    bert = shells.peer("bert", "join", invite)
    bert.wait("round", peers=2)

    hub.signal(signal.SIGKILL)
    assert hub.ended() == -signal.SIGKILL
    for peer in (anna, bert):
        peer.wait("note", containing="training goes on, rounds wait")
    last = max(event["round"] for event in bert.said if event["event"] == "round")

    again = shells.open("hub", *place)
    assert again.wait("hub")["run"] == first["run"]
    for peer in (anna, bert):
        peer.wait("note", containing="the hub is back")
        peer.wait("round", peers=2, round=last + 2)

    # The hub's own invites, old and new, let others in; and it ends in good order.
    new = again.wait("invite")["invite"]
    assert {p["name"] for p in summary(command.potluck("status", new, "--json"))["peers"]} == {"anna", "bert"}
    again.signal(signal.SIGTERM)
    assert again.ended() == 143
    assert "potluck hub --directory" in again.wait("summary")["next"]
    asked = anna.signal(signal.SIGTERM)
    assert anna.ended() == 143
    assert time.monotonic() - asked < LEAVE_S


def test_a_run_of_own_code_is_joined_in_python(shells: Shells, tmp_path: Path):
    hub = shells.open("hub", "--directory", str(tmp_path / "hub"), "--listen", LISTEN)
    invite = hub.wait("invite")["invite"]
    assert "not begun" in command.potluck("status", invite).stdout
    recipe = potluck.Recipe(name="own", rounds=potluck.Rounds(parts=1))
    model = torch.nn.Linear(3, 1)
    with potluck.host(recipe, model, directory=tmp_path / "anna", listen=LISTEN, hub=invite, name="anna"):
        options = ["--directory", str(tmp_path / "bert"), "--listen", LISTEN]
        for words in (["join", invite], ["export", invite, str(tmp_path / "model")]):
            refused = command.potluck(*words, *options)
            assert refused.exit_code == 2, refused.output
            assert "potluck.join(invite, model" in refused.stderr
        begun = command.potluck("host", "--hub", invite, str(write_recipe(tmp_path)), *options, "--json")
        assert begun.exit_code == 2
        assert "has begun already" in summary(begun)["text"]
        screen = command.potluck("status", invite, "--plain").stdout
        assert "anna" in screen
        assert f"potluck join {invite}" in screen.splitlines()[-1]


def train(run: potluck.Run, model: torch.nn.Linear, until: int) -> None:
    """Inner steps until so many rounds are committed."""
    optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
    inputs = torch.arange(24.0).reshape(3, 8) / 24
    while run.round < until:
        optimizer.zero_grad()
        (model(inputs) - inputs.flip(1)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("keeps", [False, True])
def test_who_comes_back_takes_up_what_it_had_not_sent(shells: Shells, tmp_path: Path, keeps: bool):
    hub = shells.open("hub", "--directory", str(tmp_path / "hub"), "--listen", LISTEN)
    invite = hub.wait("invite")["invite"]
    recipe = potluck.Recipe(rounds=potluck.Rounds(tokens=600, codec="topk", keeps=keeps, parts=2))
    where = {"directory": tmp_path / "anna", "listen": LISTEN, "name": "anna"}
    for life in range(3):
        model, notes = torch.nn.Linear(8, 8), list[str]()
        start = potluck.join if life else potluck.host
        first = invite if life else recipe
        more = {} if life else {"hub": invite}
        with start(first, model, watch=notes.append, **where, **more) as run:  # type: ignore[operator]
            assert any("taken up again" in note for note in notes) == (life > 0), notes
            assert any("dropped" in note for note in notes) is False, notes
            off = run._trainer.read() - run.theta
            assert np.abs(off).max() > 0 if life and keeps else not off.any()
            train(run, model, run.round + 3)
        assert len(list((tmp_path / "anna" / "runs").glob("*/*/residuals.safetensors"))) == 1
        assert "times what the last contribution sent): kept in" in notes[-1]
