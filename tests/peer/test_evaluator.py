"""A shared state is measured on a copy of the model, beside the training and without touching it."""

from __future__ import annotations

import asyncio
import copy
import os
import sys
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from potluck.errors import UsageError  # noqa: E402
from potluck.peer import evaluator as evaluator_module  # noqa: E402
from potluck.peer.evaluator import EvaluationFailed, Evaluator, figures  # noqa: E402
from potluck.peer.handover import Handover  # noqa: E402
from potluck.peer.trainer import Trainer  # noqa: E402

SHARED = np.full(8, 0.5, np.float32)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.norm = torch.nn.BatchNorm1d(2, affine=False)

    def forward(self, x: Any) -> Any:
        return self.norm(self.layer(x))


def trained() -> tuple[Net, Trainer, Handover]:
    model, handover = Net(), Handover(lambda *_: None)
    trainer = Trainer(model, handover)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.attach(optimizer, None)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return model, trainer, handover


def run(evaluator: Evaluator) -> Any:
    return asyncio.run(evaluator.evaluate(SHARED))


def test_the_shared_parameters_are_measured_and_the_model_in_training_is_as_it_was() -> None:
    model, trainer, handover = trained()
    before, steps, seen = copy.deepcopy(model.state_dict()), handover.work.steps, []

    def measure(measured: Net) -> dict[str, Any]:
        seen.append(
            (measured is model, measured.training, torch.is_grad_enabled(), threading.current_thread())
        )
        assert all(bool((p == 0.5).all()) for p in measured.parameters())
        assert torch.equal(measured.norm.running_mean, model.norm.running_mean), (
            "what is not exchanged is ours"
        )
        measured(torch.ones(64, 3))
        return {"loss": torch.tensor(1.5), "accuracy": np.float32(0.25)}

    metrics, took_s = run(Evaluator(trainer, measure, 1, rises=False))
    assert metrics == (("loss", 1.5), ("accuracy", 0.25))
    assert took_s >= 0
    assert [what[:3] for what in seen] == [(False, False, False)]
    assert seen[0][3] is not threading.current_thread()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, handover.work.steps, trainer.watch.take()) == (True, steps, (1.0, None))


def test_a_copy_of_a_model_in_training_counts_nothing() -> None:
    model, trainer, _ = trained()
    twin = copy.deepcopy(model)
    twin(torch.ones(4, 3))
    assert twin.training
    assert trainer.watch.take() == (1.0, None)
    model(torch.ones(4, 3))
    assert trainer.watch.take()[0] == 4.0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (None, "which is no number"),
        ({}, "0 numbers"),
        ({"loss": float("nan")}, "only finite numbers"),
        (float("inf"), "only finite numbers"),
        ({"a|b": 1.0}, "named 'a|b'"),
        ({3: 1.0}, "named 3"),
        ({"loss": torch.ones(2)}, "which is no number"),
        ({f"m{n}": 1.0 for n in range(65)}, "65 numbers"),
    ],
)
def test_what_is_no_figure_is_told(said: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("|", r"\|")):
        figures(said, rises=False)


def test_one_number_has_a_name() -> None:
    assert figures(2, rises=False) == (("loss", 2.0),)
    assert figures(0.5, rises=True) == (("score", 0.5),)


def test_a_measuring_function_that_raises_fails_in_words() -> None:
    _, trainer, _ = trained()
    with pytest.raises(EvaluationFailed, match="ZeroDivisionError"):
        run(Evaluator(trainer, lambda _: 1 / 0, 1, rises=False))


def test_a_measuring_function_that_ends_its_thread_fails_too() -> None:
    _, trainer, _ = trained()
    with pytest.raises(EvaluationFailed, match="SystemExit: 3"):
        run(Evaluator(trainer, lambda _: sys.exit(3), 1, rises=False))


def test_that_no_thread_can_be_started_fails_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    _, trainer, _ = trained()
    evaluator = Evaluator(trainer, lambda _: 1.0, 1, rises=False)

    async def evaluate() -> None:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        await evaluator.evaluate(SHARED)

    with pytest.raises(EvaluationFailed, match="can't start new thread"):
        asyncio.run(evaluate())
    evaluator.close()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
def test_only_on_linux_a_threads_number_is_given_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(os, "setpriority", lambda _, who, nice: given.append(who))
    _, trainer, _ = trained()
    for platform, count in (("linux", 1), ("darwin", 1)):
        monkeypatch.setattr(evaluator_module.sys, "platform", platform)
        run(Evaluator(trainer, lambda _: 1.0, 1, rises=False))
        assert len(given) == count


def test_what_is_done_to_frozen_parameters_of_the_copy_is_not_done_to_the_models() -> None:
    model = Net()
    model.layer.weight.requires_grad_(False)
    weight, memory = model.layer.weight, model.layer.weight.data_ptr()
    copied = Trainer(model, Handover(lambda *_: None)).copied().model
    assert copied.layer.weight.data_ptr() == memory, "which may be most of the model"
    copied.layer.half()
    copied.layer.weight.requires_grad_(False).grad = torch.zeros_like(copied.layer.weight)
    assert (weight.dtype, weight.data_ptr(), weight.grad) == (torch.float32, memory, None)


def test_a_model_that_can_not_be_copied_is_told() -> None:
    model, trainer, _ = trained()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(EvaluationFailed, match="can't be copied"):
        run(Evaluator(trainer, lambda _: 1.0, 1, rises=False))


def test_what_is_going_on_ends_at_its_next_call_of_the_model_when_the_peer_leaves() -> None:
    _, trainer, _ = trained()
    began = threading.Event()

    def for_ever(measured: Net) -> float:
        while True:
            measured(torch.ones(2, 3))
            began.set()

    evaluator = Evaluator(trainer, for_ever, 1, rises=False)

    async def leave() -> None:
        going = asyncio.create_task(evaluator.evaluate(SHARED))
        assert await asyncio.to_thread(began.wait, 30)
        await asyncio.to_thread(evaluator.close)
        assert evaluator._thread is not None
        assert not evaluator._thread.is_alive()
        with pytest.raises(EvaluationFailed, match="the peer leaves"):
            await going

    asyncio.run(leave())
