"""Lightning's ``Trainer``: a callback.

trainer = lightning.Trainer(callbacks=[PotluckCallback(invite)], max_epochs=-1)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from potluck.errors import UsageError
from potluck.integrations.begin import Where, begin, figures, own_seed
from potluck.peer.watch import tokens_of
from potluck.run import Run


class PotluckCallback(Callback):
    """Takes part in a run from the beginning of training to its end.

    The loop, its optimizer, clipping and gradient accumulation stay Lightning's. When the run is over,
    training ends as by early stopping; when training ends before the run, this peer leaves. In both cases the
    module holds the run's shared state before the last validation and checkpoint.

    A step counts as the elements of a batch's first tensor if they are integers (ids), else as its rows.
    ``potluck_round``, ``potluck_peers`` and ``potluck_tokens`` go to the Trainer's loggers. Learning rate
    schedulers of the module go by its own steps; ``Run.optimizer`` has one by the run's, see ``schedule``.

    Args:
        where: a recipe, to host a run; an invite, to join one; or a run that was joined or resumed without
            a model. Whoever hosts prints the invite.
        schedule: as in ``Run.optimizer``: learning rates by the run's progress, whatever step a peer is at.
        options: more arguments of ``potluck.host`` or ``potluck.join``: ``name``, ``directory``, …

    Raises:
        UsageError: when training begins: the module optimizes by hand, or has several optimizers; the Trainer
            has ``min_steps`` or ``min_epochs``; or as ``potluck.host`` and ``potluck.join``.
    """

    def __init__(self, where: Where, *, schedule: Any = None, **options: Any) -> None:
        self._where, self._schedule, self._options = where, schedule, options
        self._left = False
        self.run: Run | None = None
        """The run, since training began."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Host or join the run, with the module and its optimizer."""
        if trainer.min_steps or trainer.min_epochs:
            raise UsageError("min_steps and min_epochs don't go together with a run, whose end is the end")
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise UsageError(
                "a run trains one model with one optimizer: the callback needs automatic_optimization = True "
                "and one optimizer in configure_optimizers; for other loops there is run.optimizer"
            )
        self.run = run = begin(self._where, pl_module, self._options)
        self._left = False
        run.optimizer(trainer.optimizers[0], schedule=self._schedule, raises=False)
        torch.manual_seed(own_seed(run, 0))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch: the module may call its parts, where nobody sees what goes in."""
        if self.run is not None and not self._left:
            self.run.count(_tokens(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The last step is that after which the run is over."""
        if self.run is None or self._left:
            return
        if isinstance(outputs, dict) and isinstance(outputs.get("loss"), torch.Tensor):
            # Its share of a step with several batches. It counts with the next step.
            self.run.count(0.0, outputs["loss"] * trainer.accumulate_grad_batches)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it from outside
        if every and trainer.loggers and trainer.global_step % every == 0:
            for logger in trainer.loggers:
                logger.log_metrics(figures(self.run), trainer.global_step)
        if self.run.ended is not None:
            trainer.should_stop = True
        last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        last = trainer.global_step == trainer.max_steps or (trainer.is_last_batch and last_epoch)
        if trainer.should_stop or last:
            self._leave()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Others may have stopped training since the last step."""
        if trainer.should_stop:
            self._leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """However it ended."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What has not been sent yet is kept for the next time."""
        self._leave()

    def _leave(self) -> None:
        if self.run is not None and not self._left:
            self._left = True
            self.run.leave()


def _tokens(batch: Any) -> float:
    """Of the first tensor in a batch, wherever it is."""
    if isinstance(batch, torch.Tensor):
        return tokens_of([batch])
    if isinstance(batch, dict):
        batch = batch.values()
    if isinstance(batch, Iterable) and not isinstance(batch, str):
        return next((found for found in map(_tokens, batch) if found), 0.0)
    return 0.0
