"""A run as its user has it in hand: a few lines around your own training loop. ``start`` has how it begins.

with potluck.join(invite, model) as run:
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=2e-3))
    for batch in loader:
        ...  # forward, backward, optimizer.step(), as ever
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from potluck.data.blocks import share
from potluck.errors import EnvironmentProblem, RunOver, UsageError
from potluck.peer.actions import EVALUATE_S, LINGER_S
from potluck.peer.events import Event, Kind
from potluck.peer.metrics import Tracker
from potluck.peer.part import ANSWER_S, LEAVE_S, LEAVE_VALUE_S, Part
from potluck.peer.place import BASE
from potluck.recipe import Recipe
from potluck.recipe.schedule import Schedule, follow
from potluck.wire.messages import Progress

if TYPE_CHECKING:
    import torch

    from potluck.data.reader import Dataset
    from potluck.peer.layout import Vector
    from potluck.peer.trainer import Trainer
    from potluck.protocol.view import RunView

log = logging.getLogger("potluck")

T = TypeVar("T")


class Run(Part):
    """This process's part in a run. A context manager: leaving the block leaves the run.

    The block swallows ``RunOver``, which ``optimizer.step()`` raises once the run has reached its goal; the
    model then holds the run's final parameters, the same on every peer.

    Of a peer that has several ranks each has one. All of them join, step, take data and leave together; what
    else there is only rank 0 knows, and the others say so.
    """

    # -- the loop --------------------------------------------------------------------------------

    def optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        tokens_per_step: int | None = None,
        schedule: Schedule | Callable[[float], float] | None = None,
        raises: bool = True,
    ) -> torch.optim.Optimizer:
        """Join an optimizer to the run and return it: its ``step()`` becomes the boundary of an inner step.

        Args:
            optimizer: any PyTorch optimizer over the model's parameters.
            tokens_per_step: what one step counts as; by default what went into the model in training mode
                since the last step (elements of integer inputs, rows of others). Of several ranks each has
                its own, and they add up.
            schedule: sets the learning rates before each step, by the run's progress instead of this peer's:
                the optimizer's own times what the schedule says, or a function of the share of the run that
                is done. Without one they are yours.
            raises: False: the end of the training raises nothing, for a loop that some library owns; look at
                ``ended``, and ``leave`` then.

        Raises:
            UsageError: this run was left or trains no model, or has an optimizer of other parameters.
            RecipeError: the schedule does not make sense, or falls towards an end that the run does not have.
        """
        self._present()
        if self._trainer is None:
            raise UsageError("this run was joined without a model: there is nothing to optimize")
        if isinstance(schedule, Schedule):
            schedule.validate(self.recipe.end.exists)
        if self._optimizer is not None and _trains(self._optimizer) == _trains(optimizer):
            self._unhook()  # the same once more, as when a notebook's cell is run again
        steps = self._trainer.attach(optimizer, tokens_per_step, raises)
        self._optimizer = optimizer
        self._hooks.append(steps.register_step_post_hook(self._stepped))
        if schedule is not None:
            rates = follow(schedule, lambda: self.done, lambda: self.tokens)
            self._hooks.append(steps.register_step_pre_hook(rates))
        return optimizer

    def count(self, tokens: float, loss: torch.Tensor | float | None = None) -> None:
        """Tell what goes into the model before the next ``step()``, where that can't be seen: in a loop that
        calls the model's parts, and not the model. With several batches in a step, once for each. What is
        seen does not count any more.

        Args:
            tokens: or samples; the same on all peers.
            loss: their mean loss; it is shown to others.

        Raises:
            UsageError: this run trains no model.
        """
        if self._trainer is None:
            raise UsageError("this run was joined without a model: there is nothing to train")
        self._trainer.watch.tell(tokens, loss)

    def batches(
        self, dataset: Dataset[T] | Iterable[T], collate: Callable[[list[T]], Any] | None = None
    ) -> Iterator[Any]:
        """Batches of the data that is leased to this peer: all peers together go through every sample once an
        epoch, whoever comes and goes. A batch is a block: ``recipe.data.block`` samples, an epoch's last one
        perhaps fewer. While there is nothing to train on it waits. Of several ranks each gets its share of
        the block's samples.

        Args:
            dataset: the same on every peer. Anything with a length and samples by number is shuffled; a
                stream (``datasets.IterableDataset``, or any iterable that begins anew) is taken as it comes.
            collate: makes a batch of a list of samples; PyTorch's ``default_collate`` by default.

        Raises:
            UsageError: the recipe says nothing of the data, or something else; or no model is trained here.
            RunOver: the run is over (the ``with`` block takes care of it).
        """
        from torch.utils.data import default_collate

        from potluck.data.reader import reader

        data = self.recipe.data
        if not data.samples:
            raise UsageError(
                "this run does not share its data out: set data.samples and data.block in the host's recipe, "
                "Recipe(data=Data(samples=len(dataset), block=32))"
            )
        rank, ranks = self._side.rank, self._side.world
        if data.block < ranks:
            raise UsageError(
                f"a block of {data.block} samples is too small for a peer of {ranks} ranks: each needs one "
                "at least; set data.block higher in the host's recipe, or start fewer ranks"
            )
        read, make = reader(dataset, data.samples, data.block, data.seed), collate or default_collate
        return (make(share(read(position), rank, ranks)) for position in self.blocks())

    def blocks(self) -> Iterator[int]:
        """Positions of the data blocks leased to this peer, as ``batches`` goes through them; the same on all
        its ranks.

        Raises:
            UsageError: no model is trained here, or the run leases no data.
            RunOver: the run is over.
        """
        self._present()
        if self._trainer is None:
            raise UsageError("this run was joined without a model: there is nothing to train")
        if not self._node.genesis.blocks:
            raise UsageError("this run does not share its data out: its host's recipe says nothing of data")
        return self._leased(self._trainer)

    def _leased(self, trainer: Trainer) -> Iterator[int]:
        for position in trainer.blocks():
            yield position
            self._present()

    def evaluate(
        self, measure: Callable[[Any], Any], every: int = 0, *, higher_is_better: bool = False
    ) -> None:
        """Have the run's shared states measured on held-out data, and the figures recorded in its ledger.

        Of all peers that call this, one at a time does it, in turn: in a thread of its own, on a copy of the
        model with the shared parameters, while training goes on.

        Args:
            measure: called with that copy, in evaluation mode and without gradients. It returns a number, or
                numbers by name; by the first of them states are compared.
            every: rounds between two evaluations; those between two snapshots by default.
            higher_is_better: of the first number; else less of it is better, as of a loss.

        Raises:
            UsageError: no model is trained here, it is measured already, or ``every`` is no number of rounds.
        """
        from potluck.peer.evaluator import Evaluator

        self._present()
        if self._trainer is None:
            raise UsageError("this run was joined without a model: there is nothing to evaluate")
        if self._side.world > 1:
            raise UsageError("a peer of several ranks evaluates nothing: let a peer of one process do it")
        if self._node.actions.evaluator is not None:
            raise UsageError("this run has an evaluation already: return several numbers by name from one")
        if every < 0:
            raise UsageError(f"an evaluation every {every} rounds makes no sense: give 1 or more")
        every = every or self.recipe.rounds.snapshot_every
        self._call(
            self._node.actions.evaluates(Evaluator(self._trainer, measure, every, higher_is_better)), ANSWER_S
        )

    @property
    def recipe(self) -> Recipe:
        """What all peers of the run agree on."""
        return self._node.recipe

    @property
    def over(self) -> str | None:
        """Why the run is over, or None while it goes on."""
        return self._side.over

    @property
    def ended(self) -> str | None:
        """Why the training ends here: the run is over, or a callback said so; None while it goes on."""
        return self._side.over or self._side.ended

    @property
    def state(self) -> Progress:
        """How things stand, or stood when we left, as a ``Progress``: round, digest of the state, work done,
        bytes moved, what is waited for.
        """
        return self._read(lambda: self._node.core.swarm.last(self._node.core.me.peer)) or Progress(
            peer=self._node.core.me.peer, session=self._node.session
        )

    @property
    def peers(self) -> list[Progress]:
        """Everybody who is there, this peer too, as last heard, the longest present first; nobody once it has
        left.
        """
        return self._read(lambda: self._node.core.swarm.alive(self._background.now)) if not self._left else []

    @property
    def view(self) -> RunView:
        """The run as its ledger tells it: ``round``, ``tokens`` and ``loss`` of the last commit, ``commits``
        and ``snapshots`` by round. Read it, don't change it.
        """
        return self._node.core.view

    @property
    def theta(self) -> Vector:
        """The shared parameters after ``round`` as one vector [n] of fp32, a copy.

        Raises:
            EnvironmentProblem: the run's state is not here yet.
        """
        plane = self._node.actions.state.plane
        if plane is None:
            raise EnvironmentProblem("the run's state is not here yet: wait with wait_ready()")
        return plane.theta.copy()

    def wait_ready(self) -> None:
        """Wait until the run's state is here. ``join`` and ``adopt`` with a model do that by themselves."""
        self._call(self._node.ready(), None)

    @property
    def round(self) -> int:
        """The last round applied here; 0 is the state that the run began with, -1 that it is not here yet."""
        return self._side.standing.round

    @property
    def tokens(self) -> float:
        """Tokens that the run has done: what is committed, and what its peers say they have done since. The
        number never goes back.
        """
        return self._side.standing.tokens

    @property
    def done(self) -> float:
        """The share of the run, 0 to 1, that is done, as ``tokens``: by the recipe's ``end``, whichever limit
        comes first; 0 if it has none.
        """
        return self._side.standing.done

    def bring_best(self, patience_s: float = 10.0) -> int:
        """Have what the best evaluated state follows from on this disk too; returns that state's round.

        Raises:
            UsageError: nothing is evaluated yet.
            EnvironmentProblem: nobody who is there has kept it.
        """
        found = self.view.evaluations
        best, grounds = self._read(lambda: (found.best, found.grounds))
        if best is None:
            raise UsageError("no state of this run is evaluated yet: take the last one")
        lost = f"nobody who is there has kept the best evaluated state, of round {best.round}"
        if grounds is None:
            raise EnvironmentProblem(f"{lost}: it was old already when it was evaluated")
        what = f"the best state, of round {best.round}"
        if not self._call(self._node.files.bring(grounds.content(), what, patience_s), None):
            raise EnvironmentProblem(f"{lost}: try again when other peers are there, or take the last one")
        return best.round

    def task_files(self) -> dict[str, bytes]:
        """The files that the run's host brought (tokenizer, text, …) by name, from peers if need be; without
        weights that are not trained, which ``adopt`` gets itself.
        """
        blobs = [blob for blob in self._node.genesis.assets if blob.name != BASE]
        return {blob.name: self._call(self._node.files.read(blob), None) for blob in blobs}

    def bring_files(self) -> None:
        """Have all files of the run on this disk, those with weights that are not trained too."""
        for blob in self._node.genesis.assets:
            self._call(self._node.files.fetch(blob), None)

    def adopt(self, model: torch.nn.Module) -> None:
        """Train this model; for a run joined without one (built-in tasks make it from ``task_files``).

        Frozen weights of it that are not the run's are replaced by those, as trained ones are.

        Raises:
            ModelMismatch: it is not the run's model.
            UsageError: there is a model already, or this is one of several ranks.
        """
        from potluck.peer.ranks import spread_over_ranks

        self._present()
        if self._trainer is not None:
            raise UsageError("this run trains a model already")
        if spread_over_ranks():
            raise UsageError(
                "this process is one of several ranks: give the model to host or join, on every rank, so "
                "that all of them join together"
            )
        self._adopt(model)

    # -- telling ---------------------------------------------------------------------------------

    def on(self, event: Kind, callback: Callable[[Event], object]) -> None:
        """Call ``callback`` with each event of a kind: ``"round"`` (a committed round is in the model here),
        ``"evaluation"`` (a shared state was measured), ``"peer"`` (somebody came or went), ``"over"`` or
        ``"problem"``; ``Event.reason`` says it in words.

        It is called by the thread that trains, at its next boundary (an optimizer step, or while ``batches``
        or ``wait_over`` wait), and at the latest by ``leave``; never by the network's. One that fails is told
        in the log, and the run goes on. To end the training from there, raise ``RunOver``.

        Raises:
            UsageError: there are no such events.
        """
        self._node.events.on(event, callback)

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Keep metrics of this peer: in ``metrics.jsonl`` in its directory, a line of JSON with the time, the
        round, the step and the run's tokens; and in the trackers of ``track``. Of several ranks rank 0's
        are kept.

        Args:
            values: numbers and text by name; tensors of one value will do.
            step: the peer's own inner steps by default, which go on counting when it comes back.

        Raises:
            UsageError: a value is neither number nor text.
        """
        if self._side.rank == 0:
            self._metrics.log(values, self.round, self.view.tokens, step)

    def track(self, *trackers: str | Tracker) -> None:
        """Give what is logged to trackers as well.

        Args:
            trackers: names that ``accelerate.tracking`` knows (``"tensorboard"``, which writes to this peer's
                directory, ``"wandb"``, ``"trackio"``, ``"mlflow"``), with the recipe's name as the project;
                or trackers of your own, an ``Accelerator``, or whatever has ``log(values, step=…)``.

        Raises:
            UsageError: there is none of this name, or its package is missing.
        """
        for tracker in trackers if self._side.rank == 0 else ():
            self._metrics.track(tracker, self.recipe.name)

    # -- going -----------------------------------------------------------------------------------

    def wait_over(self, timeout_s: float | None = None) -> bool:
        """Wait until the run is over and its last round is applied here; False if time ran out first.

        Raises:
            UsageError: this is one of several ranks, which only go on together.
        """
        if self._side.world > 1:
            raise UsageError("several ranks go on by steps only: train on until optimizer.step() ends it")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.over is None:
            if deadline is not None and time.monotonic() > deadline:
                return False
            self._check()
            self._node.events.tell()
            time.sleep(0.1)
        self._node.events.tell()
        return True

    def leave(self) -> None:
        """Leave in good order: the round in flight is seen through for up to 3 s. Safe to call twice.

        Raises:
            UsageError: called by a callback of ``on``, which raises ``RunOver`` instead.
        """
        if self._left:
            return
        if self._node.events.telling:
            raise UsageError("a callback can't leave the run: raise potluck.RunOver, and the loop ends")
        self._left = True
        try:
            if self._background.alive:
                if self._trainer is not None:
                    with contextlib.suppress(RunOver):  # of a callback: we are leaving already
                        self._side.meet_last(self._trainer)
                limit_s = LEAVE_S + self._node.actions.state.size * LEAVE_VALUE_S
                limit_s += EVALUATE_S + LINGER_S if self.over is not None else 0.0
                self._background.call(self._node.leave(), limit_s, self._side.wait)
        finally:
            try:
                self._final_state()
            finally:
                self._stop()
                self._tell_all()
                self._metrics.close()
        if self._side.problem is not None:
            raise self._side.problem

    def __enter__(self) -> Self:
        self._present()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        lost = self._side.part(error) if error is not None and not isinstance(error, RunOver) else None
        self.leave()
        if lost is not None:
            raise lost from error
        if isinstance(error, RunOver):
            log.info("the run is over: %s", error)
            return True
        return False


def _trains(optimizer: torch.optim.Optimizer) -> set[int]:
    """Which parameters an optimizer has, as objects."""
    return {id(weight) for group in optimizer.param_groups for weight in group["params"]}
