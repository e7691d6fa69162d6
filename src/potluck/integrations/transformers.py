"""``transformers.Trainer``, and what is built on it (TRL's trainers): a callback.

trainer = Trainer(model, args, train_dataset=dataset, callbacks=[PotluckCallback(invite)])
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler, get_sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potluck.errors import UsageError
from potluck.integrations.begin import Where, begin, figures, own_seed
from potluck.integrations.schedule import RunSchedule
from potluck.run import Run


class PotluckCallback(TrainerCallback):
    """Takes part in a run from the beginning of training to its end.

    The loop, its optimizer, clipping and gradient accumulation stay the Trainer's. When the run is over,
    training ends as with ``max_steps``; when training ends before the run, this peer leaves. In both cases
    the model holds the run's shared state before the last evaluation and checkpoint.

    Each peer goes through the Trainer's data in an order of its own. ``TrainingArguments`` should let it:
    with a ``max_steps`` that the run does not reach. The learning rate schedule is spread over the run (see
    ``RunSchedule``): ``warmup_steps`` of ``max_steps`` are that share of the run.

    Logs get ``potluck_round``, ``potluck_peers`` and ``potluck_tokens``. A tracker that stands before this
    callback, as those of ``report_to`` do, has logged by then: give it in ``callbacks`` too, after this one.

    Args:
        where: a recipe, to host a run; an invite, to join one; or a run that was joined or resumed without
            a model. Whoever hosts prints the invite.
        schedule: ``"run"``, or ``"local"``: the schedule goes by this peer's own steps.
        options: more arguments of ``potluck.host`` or ``potluck.join``: ``name``, ``directory``, …

    Raises:
        UsageError: no such schedule; when training begins, as ``potluck.host`` and ``potluck.join``.
    """

    def __init__(self, where: Where, *, schedule: str = "run", **options: Any) -> None:
        if schedule not in ("run", "local"):
            raise UsageError(f'schedule = {schedule!r} should be "run" or "local"')
        self._where, self._by_run, self._options = where, schedule == "run", options
        self._schedule: RunSchedule | None = None
        self._last: dict[str, float] = {}
        self.run: Run | None = None
        """The run, since training began."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Host or join the run, with the Trainer's own model and optimizer."""
        if args.n_gpu > 1:
            raise UsageError(
                f"this Trainer would spread each batch over {args.n_gpu} GPUs by DataParallel, where nobody "
                "sees what a step is: set CUDA_VISIBLE_DEVICES to one of them, or use a loop of your own "
                "with DDP or FSDP2 (docs/gpus.md)"
            )
        self.run = run = begin(self._where, kwargs["model"], self._options)
        self._schedule, self._last = None, {}
        run.optimizer(kwargs["optimizer"], raises=False)
        seed = own_seed(run, args.seed)
        torch.manual_seed(seed)
        sampler = get_sampler(kwargs["train_dataloader"])
        if isinstance(sampler, SeedableRandomSampler):
            sampler.initial_seed = seed
        if self._by_run:
            self._schedule = RunSchedule(run, kwargs["lr_scheduler"], state.max_steps)
            self._schedule.begin()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The Trainer steps its schedule next."""
        if self._schedule is not None:
            self._schedule.before_next()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The last step is that after which the run is over."""
        if self.run is not None and self.run.ended is not None:
            control.should_training_stop = True
        self._leave_if(control.should_training_stop)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Others may have stopped training since the last step."""
        self._leave_if(control.should_training_stop)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add how the run stands."""
        if self.run is not None and logs is not None:
            now = self._last or figures(self.run)
            logs.update(now)
            state.log_history[-1].update(now)  # a copy was put there before

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """However it ended."""
        self._leave_if(True)

    def _leave_if(self, stops: bool) -> None:
        if self.run is not None and stops and not self._last:
            self._last = figures(self.run)
            self.run.leave()
