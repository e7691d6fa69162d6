"""The public API as its users' type checkers see it: ``make types`` checks this file, nobody runs it.

``assert_type`` says what a checker must infer; where an ignore stands it must find that very mistake, since
one that is not needed is an error too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import torch

import potluck


def recipes() -> potluck.Recipe:
    made = potluck.Recipe(
        name="run",
        task=potluck.Task(kind="custom"),
        data=potluck.Data(samples=100, block=4),
        inner=potluck.Inner(lr=1e-3, schedule="cosine", warmup=1_000),
        outer=potluck.Outer("nesterov"),
        rounds=potluck.Rounds(tokens=1_000),
        end=potluck.End(rounds=3),
    )
    assert_type(made.rounds.tokens, int)
    assert_type(made.to_toml(), str)
    assert_type(potluck.Recipe.load("run.toml"), potluck.Recipe)
    assert_type(potluck.Recipe.load(Path("run.toml")), potluck.Recipe)
    potluck.Rounds(token=3)  # type: ignore[call-arg]
    potluck.End(rounds="three")  # type: ignore[arg-type]
    made.name = "other"  # type: ignore[misc]
    return potluck.Recipe.preset("wan", rounds={"tokens": 1_000}, end=potluck.End(rounds=3))


def starting(model: torch.nn.Module) -> None:
    run = potluck.host(recipes(), model, directory="here", listen="127.0.0.1", keep=potluck.Keep(snapshots=3))
    assert_type(run, potluck.Run)
    assert_type(run.invite, str)
    potluck.host(recipes(), nats=potluck.Nats("nats://a:4222"), watch=print)
    assert_type(potluck.join(run.invite, model, name="bert", trains=False), potluck.Run)
    assert_type(potluck.resume("disk", model), potluck.Run)
    potluck.join(model)  # type: ignore[arg-type]
    potluck.host("run.toml", model)  # type: ignore[arg-type]


def loop(run: potluck.Run, model: torch.nn.Module, dataset: list[torch.Tensor]) -> None:
    with run as same:
        assert_type(same, potluck.Run)
        plain = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = run.optimizer(plain, tokens_per_step=8, schedule=potluck.Schedule("cosine", warmup=5))
        assert_type(optimizer, torch.optim.Optimizer)
        run.optimizer(plain, schedule=lambda done: 1 - done)
        run.optimizer(plain, schedule="cosine")  # type: ignore[arg-type]
        assert_type(run.batches(dataset, collate=torch.stack), Iterator[Any])
        assert_type(run.blocks(), Iterator[int])
        run.log({"loss": torch.zeros(()), "lr": 0.1, "note": "warm"}, step=3)
        run.log(3.0)  # type: ignore[arg-type]
        run.track("tensorboard", Tracker())
        run.track(3)  # type: ignore[arg-type]


def told(run: potluck.Run) -> None:
    def note(event: potluck.Event) -> None:
        assert_type(event.reason, str)
        assert_type(event.round, int)
        assert_type(event.loss, float | None)

    run.on("round", note)
    run.on("peer", lambda event: print(event.peer))
    run.on("rounds", note)  # type: ignore[arg-type]
    run.on("evaluation", lambda event: print(event.metrics["loss"], event.best))
    run.evaluate(lambda model: 1.0)
    run.evaluate(lambda model: {"loss": 1.0, "accuracy": 0.5}, every=5, higher_is_better=True)
    run.evaluate(3)  # type: ignore[arg-type]
    run.on("over", lambda: None)  # type: ignore[arg-type, misc]


def standing(run: potluck.Run, model: torch.nn.Module) -> None:
    assert_type(run.round, int)
    assert_type(run.tokens, float)
    assert_type(run.done, float)
    assert_type(run.over, str | None)
    assert_type(run.state.activity, str)
    assert_type([peer.name for peer in run.peers], list[str])
    assert_type(run.recipe, potluck.Recipe)
    assert_type(run.task_files(), dict[str, bytes])
    run.adopt(model)
    run.wait_ready()
    assert_type(run.wait_over(timeout_s=3.0), bool)
    run.leave()
    run.leav()  # type: ignore[attr-defined]


def ending() -> str:
    try:
        raise potluck.RunOver("done")
    except potluck.PotluckError as error:
        return str(error)
    except potluck.RunOver as over:
        return str(over)


class Tracker:
    """Anything that takes metrics will do."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        print(step, values)
