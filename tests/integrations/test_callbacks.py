"""Callbacks in Trainers that end before the run, or that are not as they must be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from potluck.errors import UsageError
from potluck.recipe import End, Recipe, Rounds

RECIPE = Recipe(rounds=Rounds(tokens=1_000_000), end=End(rounds=2))


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        predicted = self.linear(x)
        return {"loss": (predicted - x.sum(1, keepdim=True)).square().mean(), "logits": predicted}


def values(model: nn.Module) -> np.ndarray[Any, Any]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def test_a_trainer_that_would_spread_batches_over_gpus_is_refused() -> None:
    pytest.importorskip("transformers")
    from potluck.integrations.transformers import PotluckCallback

    args: Any = SimpleNamespace(n_gpu=2)
    with pytest.raises(UsageError, match="over 2 GPUs by DataParallel, where nobody sees what a step is"):
        PotluckCallback(RECIPE).on_train_begin(args, args, args, model=Regression(), optimizer=None)


@pytest.mark.integration
def test_a_trainer_that_ends_first_leaves_with_the_shared_state(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from potluck.integrations.transformers import PotluckCallback

    evaluated, tracked = [], []

    class Tracker(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: dict[str, Any], **more: Any) -> None:
            tracked.append(logs)

        def on_evaluate(self, *_: Any, model: nn.Module, **more: Any) -> None:
            evaluated.append(values(model))

    data = [{"x": torch.randn(3), "labels": torch.zeros(1)} for _ in range(64)]
    callback = PotluckCallback(RECIPE, directory=tmp_path / "peer", listen="127.0.0.1")
    trainer = transformers.Trainer(
        model=Regression(),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=6,
            eval_strategy="steps",
            eval_steps=3,
            logging_steps=2,
            per_device_train_batch_size=4,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=data,
        eval_dataset=data[:8],
        callbacks=[callback, Tracker()],
    )
    before = values(trainer.model)
    trainer.train()
    assert callback.run is not None
    assert (callback.run.over, callback.run.round) == (None, 0)
    assert trainer.state.global_step == 6
    np.testing.assert_array_equal(values(trainer.model), callback.run.theta)
    # Nothing was committed, so the shared state is that of the beginning; the last evaluation is of that.
    assert (evaluated[0] != before).any()
    np.testing.assert_array_equal(evaluated[1], before)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [(entry["step"], entry["potluck_round"]) for entry in logged] == [(2, 0), (4, 0), (6, 0)]
    assert all(logs["potluck_peers"] == 1 for logs in tracked), "a tracker behind the callback has it too"
    assert len(tracked) == 6, "three losses, two evaluations and the end"
    first = callback.run
    trainer.train()
    assert callback.run is not first, "a second training is another part in a run, and is left as well"
    with pytest.raises(UsageError, match="this run was left"):
        callback.run.adopt(trainer.model)


def test_a_schedule_is_the_runs_or_local() -> None:
    pytest.importorskip("transformers")
    from potluck.integrations.transformers import PotluckCallback

    with pytest.raises(UsageError, match='schedule = \'cosine\' should be "run" or "local"'):
        PotluckCallback(RECIPE, schedule="cosine")


class TestLightning:
    @pytest.fixture
    def module(self) -> Any:
        lightning = pytest.importorskip("lightning")

        class Module(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(3, 1)

            def training_step(self, batch: torch.Tensor) -> torch.Tensor:
                loss = self.linear(batch).square().mean()
                return loss - loss.detach() + 3.0

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return Module()

    @staticmethod
    def fit(module: Any, directory: Path, **options: Any) -> Any:
        import lightning

        from potluck.integrations.lightning import PotluckCallback

        callback = PotluckCallback(RECIPE, directory=directory, listen="127.0.0.1")
        trainer = lightning.Trainer(
            callbacks=[callback],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, torch.utils.data.DataLoader(torch.randn(64, 3), batch_size=4))
        return callback.run

    @pytest.mark.integration
    @pytest.mark.filterwarnings("ignore")
    def test_one_that_ends_first_leaves_with_the_shared_state(self, module: Any, tmp_path: Path) -> None:
        before = values(module)
        run = self.fit(module, tmp_path, max_epochs=2, accumulate_grad_batches=2)
        assert (run.over, run.round) == (None, 0)
        np.testing.assert_array_equal(values(module), before)
        work = run._node.actions.handover.work
        assert (work.total_tokens, work.steps) == (2 * 64, 2 * 8)
        assert work.loss == pytest.approx(3.0), "the mean of its batches"

    @pytest.mark.filterwarnings("ignore")
    def test_min_steps_are_refused(self, module: Any, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="min_steps and min_epochs don't go together with a run"):
            self.fit(module, tmp_path, max_epochs=1, min_steps=5)

    @pytest.mark.filterwarnings("ignore")
    def test_optimizing_by_hand_is_refused(self, module: Any, tmp_path: Path) -> None:
        module.automatic_optimization = False
        with pytest.raises(UsageError, match="one model with one optimizer"):
            self.fit(module, tmp_path, max_epochs=1)

    def test_tokens_of_a_batch_are_found_wherever_they_are(self) -> None:
        pytest.importorskip("lightning")
        from potluck.integrations.lightning import _tokens

        ids = torch.ones(2, 5, dtype=torch.int64)
        assert _tokens({"name": "text", "ids": [None, ids]}) == 10
        assert _tokens((torch.ones(3, 2), ids)) == 3
        assert _tokens("text") == 0
        assert _tokens(None) == 0
