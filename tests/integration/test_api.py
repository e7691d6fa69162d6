"""The public API in a real run: events, metrics, and learning rates by the run's tokens."""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import potluck
from potluck import start
from potluck.peer.metrics import NAME

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]

LISTEN = "127.0.0.1"


def recipe(rounds: int, **more: Any) -> potluck.Recipe:
    settings = potluck.Rounds(tokens=2_000, parts=2, grace_s=2.0)
    return potluck.Recipe(name="api", rounds=settings, end=potluck.End(rounds=rounds), **more)


def steps(run: potluck.Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer, until: float) -> float:
    """Inner steps until a share of the run is done; the last loss."""
    x = torch.arange(24.0).reshape(3, 8) / 24
    loss = torch.zeros(())
    while run.done < until:
        optimizer.zero_grad()
        loss = (model(x) - x.flip(1)).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_a_run_tells_what_happens_in_it_and_keeps_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, events, threads = torch.nn.Linear(8, 8), list[potluck.Event](), set[str]()

    def note(event: potluck.Event) -> None:
        events.append(event)
        threads.add(threading.current_thread().name)
        assert run.round >= event.round
        run.log({"loss": event.loss if event.loss is not None else 0.0, "what": event.kind})

    def fails(event: potluck.Event) -> None:
        raise ValueError("not our day")

    where: dict[str, Any] = {"directory": tmp_path / "anna", "listen": LISTEN}
    hosted: list[potluck.Run] = []
    thread = threading.Thread(target=lambda: hosted.append(potluck.host(recipe(4), model, **where)))
    thread.start()  # any thread may host or join
    thread.join(60)
    with hosted[0] as run:
        run.on("problem", note)
        run.on("round", fails)
        for kind in ("round", "peer", "over"):
            run.on(kind, note)
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
        # From the same directory: who trains does not go because of one that only looks on.
        follower = potluck.join(run.invite, name="bert", trains=False, **where)
        with follower, caplog.at_level(logging.ERROR, "potluck"):
            follower.wait_ready()
            assert follower.theta.shape == (72,)
            assert {p.phase for p in follower.peers} == {"training", "following"}
            steps(run, model, optimizer, 0.3)
        told = [event.reason for event in events]
        assert told.count("bert is here") == 1
        steps(run, model, optimizer, 2.0)
    assert run.over == events[-1].reason == "round 4 committed, the last one asked for"
    assert [event.kind for event in events].count("over") == 1
    assert [event.reason for event in events].count("bert left") == 1
    rounds = [event for event in events if event.kind == "round"]
    assert [event.round for event in rounds] == [1, 2, 3, 4]
    assert all("held" in event.reason and event.tokens > 0 for event in rounds)
    assert threads == {threading.current_thread().name}
    assert "callback for 'round' events failed" in caplog.text

    [path] = (tmp_path / "anna" / "runs").glob(f"*/peer-*/{NAME}")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["values"]["what"] for line in lines] == [event.kind for event in events]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert lines[-1]["round"] == 4
    assert lines[-1]["tokens"] == run.view.tokens


def test_a_callback_ends_the_training_and_the_run_is_left_in_good_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, notes = torch.nn.Linear(8, 8), list[str]()

    def enough(event: potluck.Event) -> None:
        run.leave()

    def ends(event: potluck.Event) -> None:
        raise potluck.RunOver(f"good enough after round {event.round}")

    with potluck.host(recipe(9), model, directory=tmp_path, listen=LISTEN, watch=notes.append) as run:
        run.on("round", enough)
        run.on("round", ends)
        steps(run, model, run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05)), 2.0)
    assert run.over is None
    assert run.ended is not None
    assert run.ended.startswith("good enough after round")
    assert 1 <= run.round < 9
    with pytest.raises(potluck.PotluckError, match="this run was left: come back with"), run:
        raise AssertionError("the block of a run that was left is not entered")
    assert "a callback can't leave the run: raise potluck.RunOver" in caplog.text
    assert any("kept in" in note for note in notes), "what was not sent yet is on the disk"


def test_a_run_that_was_left_is_not_held_on_to_and_its_data_ends(tmp_path: Path) -> None:
    usual_s, model = sys.getswitchinterval(), torch.nn.Linear(8, 8)
    made = recipe(9, data=potluck.Data(samples=64, block=4))
    where: dict[str, Any] = {"listen": LISTEN}
    with potluck.host(recipe(9), torch.nn.Linear(8, 8), directory=tmp_path / "other", **where) as other:
        run = potluck.host(made, model, directory=tmp_path / "anna", **where)
        assert {run, other} <= set(start._here)
        run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05))
        batches = run.batches(torch.randn(64, 8))
        assert next(batches).shape == (4, 8)
        run.leave()
        with pytest.raises(potluck.PotluckError, match="this run was left"):
            next(batches)
        with pytest.raises(potluck.PotluckError, match="this run was left"):
            run.evaluate(lambda model: 0.0)
        assert run not in start._here
        assert sys.getswitchinterval() < usual_s, "the other goes on"
    assert other not in start._here
    assert sys.getswitchinterval() == usual_s


def test_a_joiner_has_the_learning_rate_that_the_others_have(tmp_path: Path) -> None:
    schedule = potluck.Schedule("linear", warmup=3_000)
    made, rates = recipe(4), dict[str, list[float]](anna=[], bert=[])

    def joined(name: str, run: potluck.Run, model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.1), schedule=schedule)
        optimizer.register_step_post_hook(lambda own, *_: rates[name].append(own.param_groups[0]["lr"]))
        return optimizer

    first, second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    with potluck.host(made, first, directory=tmp_path / "anna", listen=LISTEN) as anna:
        with pytest.raises(potluck.PotluckError, match=r"schedule\.kind = 'lnear' should be one of"):
            anna.optimizer(torch.optim.SGD(first.parameters()), schedule=potluck.Schedule("lnear"))
        optimizer = joined("anna", anna, first)
        steps(anna, first, optimizer, 0.5)
        with potluck.join(anna.invite, second, directory=tmp_path / "bert", listen=LISTEN) as bert:
            others = joined("bert", bert, second)
            x = torch.ones(3, 8)
            for model, one in ((first, optimizer), (second, others)):
                model(x).square().mean().backward()
                one.step()
            assert anna.done == pytest.approx(bert.done, abs=0.25), "but for what is in an exchange"
            assert rates["bert"][0] == pytest.approx(rates["anna"][-1], abs=0.025)
        steps(anna, first, optimizer, 2.0)
    assert anna.over
    assert rates["anna"][0] < 0.001, "the run has just begun"
    top = rates["anna"].index(max(rates["anna"]))
    assert rates["anna"][:top] == sorted(rates["anna"][:top])
    assert rates["anna"][top:] == sorted(rates["anna"][top:], reverse=True)
    assert max(rates["bert"]) < 0.08, "a joiner does not begin at the run's start"


def test_shared_states_are_evaluated_and_the_last_one_too(tmp_path: Path) -> None:
    model, seen, told = torch.nn.Linear(8, 8), list[float](), list[potluck.Event]()

    def measure(measured: torch.nn.Module) -> float:
        assert not measured.training
        assert measured is not model
        seen.append(float(next(measured.parameters()).sum()))
        return len(seen)

    where: dict[str, Any] = {"directory": tmp_path / "anna", "listen": LISTEN}
    with potluck.host(recipe(4), model, **where) as run:
        run.on("evaluation", told.append)
        with pytest.raises(potluck.PotluckError, match="every -1 rounds makes no sense"):
            run.evaluate(measure, every=-1)
        run.evaluate(measure, every=3, higher_is_better=True)
        with pytest.raises(potluck.PotluckError, match="has an evaluation already"):
            run.evaluate(measure)
        steps(run, model, run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05)), 2.0)
    found = run.view.evaluations
    assert found.last == 4
    assert found.best is not None
    assert (found.best.round, found.best.metrics, found.best.rises) == (
        4,
        (("score", float(len(seen))),),
        True,
    )
    assert seen[-1] == float(next(model.parameters()).detach().sum()), (
        "the shared state is what the model ends with"
    )
    assert [(event.round, event.metrics) for event in told] == [
        (body.round, dict(body.metrics)) for body in found.of.values()
    ]
    follower = potluck.join(run.invite, trains=False, directory=tmp_path / "bert", listen=LISTEN)
    with follower, pytest.raises(potluck.PotluckError, match="nothing to evaluate"):
        follower.evaluate(measure)
