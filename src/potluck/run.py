"""A run as its user has it in hand: a few lines around your own training loop. ``start`` has how it begins.

with potluck.join(invite, model) as run:
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=2e-3))
    for batch in loader:
        ...  # forward, backward, optimizer.step(), as ever
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from potluck.errors import EnvironmentProblem, RunOver, UsageError
from potluck.identity import Claim
from potluck.peer.actions import EVALUATE_S
from potluck.peer.background import Background
from potluck.peer.events import Event, Kind
from potluck.peer.metrics import Metrics, Tracker
from potluck.peer.node import Node
from potluck.peer.place import BASE, Founding, Place
from potluck.recipe import Recipe
from potluck.recipe.schedule import Schedule, follow
from potluck.wire.invite import Invite
from potluck.wire.messages import Progress

if TYPE_CHECKING:
    import torch

    from potluck.data.reader import Dataset
    from potluck.peer.layout import Vector
    from potluck.peer.trainer import Trainer
    from potluck.protocol.view import RunView

log = logging.getLogger("potluck")

T = TypeVar("T")

START_S = 150.0
"""How long admission and start may take, in seconds."""

SWITCH_S = 0.001
"""How often the training thread lets the network have the interpreter, in seconds."""

ANSWER_S = 5.0
"""How long the network thread may take for what it knows already, in seconds."""

LEAVE_S = 15.0
LEAVE_VALUE_S = 16 / 50e6
"""How long leaving may take in all, in seconds, and for each value of the model besides, for what is kept
on the disk: up to 16 bytes of each, at 50 MB/s."""

STOP_S = 3.0
"""How long what is left of a run that was broken off may take to close, in seconds."""


class Run:
    """This process's part in a run. A context manager: leaving the block leaves the run.

    The block swallows ``RunOver``, which ``optimizer.step()`` raises once the run has reached its goal; the
    model then holds the run's final parameters, the same on every peer.
    """

    def __init__(
        self, invite: Invite, claimed: Claim, place: Place, watch: Callable[[str], None] | None
    ) -> None:
        self.invite = invite.text()
        """What others join with: ``potluck join INVITE``."""
        self.directory = place.directory
        """This peer's copy of the run, as ``potluck verify`` reads it."""
        self._claim, self._place = claimed, place
        self._trainer: Trainer | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._hooks: list[Any] = []
        self._left = False
        self._metrics = Metrics(place.directory)
        # Python hands the interpreter over every 5 ms, which starves the network beside a loop in pure Python
        # (20 MB/s; 93 MB/s at 1 ms). It is put back when the run is left.
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_s, SWITCH_S))
        self._background = Background()
        self._node: Node = self._call(_make(invite, place, watch), START_S)

    # -- coming ----------------------------------------------------------------------------------

    def _begin(self, founding: Founding | None) -> None:
        try:
            self._call(self._node.start(founding), START_S)
        except BaseException:
            self._stop()
            raise

    def _adopt(self, model: torch.nn.Module) -> None:
        """Check the model against the run, wait for the run's state, and put it into the model."""
        from potluck.peer.frozen import Frozen, meet
        from potluck.peer.trainer import Trainer

        trainer = Trainer(model, self._node.actions.handover)
        trainer.check(self._node.genesis.tensors)
        self._call(meet(Frozen(model), self._node.genesis, self._node.files), None)
        trainer.at_boundary = self._node.events.tell
        self._trainer = trainer
        self._call(self._node.enlist(), ANSWER_S)
        _warm_up()
        self._call(self._node.ready(), None)
        self._take_state()
        self._call(self._node.train(), ANSWER_S)

    def _take_state(self) -> None:
        carries = self._node.actions.handover.wait_first()
        if carries and self._trainer is not None:
            self._trainer.write(carries[-1].theta)

    # -- the loop --------------------------------------------------------------------------------

    def optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        tokens_per_step: int | None = None,
        schedule: Schedule | Callable[[float], float] | None = None,
    ) -> torch.optim.Optimizer:
        """Join an optimizer to the run and return it: its ``step()`` becomes the boundary of an inner step.

        Args:
            optimizer: any PyTorch optimizer over the model's parameters.
            tokens_per_step: what one step counts as; by default what went into the model in training mode
                since the last step (elements of integer inputs, rows of others).
            schedule: sets the learning rates before each step, by the run's progress instead of this peer's:
                the optimizer's own times what the schedule says, or a function of the share of the run that
                is done. Without one they are yours.

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
        self._trainer.attach(optimizer, tokens_per_step)
        self._optimizer = optimizer
        self._hooks.append(optimizer.register_step_post_hook(self._stepped))
        if schedule is not None:
            rates = follow(schedule, lambda: self.done, lambda: self.tokens)
            self._hooks.append(optimizer.register_step_pre_hook(rates))
        return optimizer

    def batches(
        self, dataset: Dataset[T] | Iterable[T], collate: Callable[[list[T]], Any] | None = None
    ) -> Iterator[Any]:
        """Batches of the data that is leased to this peer: all peers together go through every sample once an
        epoch, whoever comes and goes. A batch is a block: ``recipe.data.block`` samples, an epoch's last one
        perhaps fewer. While there is nothing to train on it waits.

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
        read, make = reader(dataset, data.samples, data.block, data.seed), collate or default_collate
        return (make(read(position)) for position in self.blocks())

    def blocks(self) -> Iterator[int]:
        """Positions of the data blocks leased to this peer, as ``batches`` goes through them.

        Raises:
            UsageError: no model is trained here, or the run leases no data.
            RunOver: the run is over.
        """
        self._present()
        if self._trainer is None:
            raise UsageError("this run was joined without a model: there is nothing to train")
        if not self._node.genesis.blocks:
            raise UsageError("this run does not share its data out: its host's recipe says nothing of data")
        return self._trainer.blocks()

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

        if self._trainer is None:
            raise UsageError("this run was joined without a model: there is nothing to evaluate")
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
        return self._node.actions.handover.over

    @property
    def state(self) -> Progress:
        """How things stand (or stood, when we left): round, state digest, work, bytes, what is waited for."""
        return self._read(lambda: self._node.core.swarm.last(self._node.core.me.peer)) or Progress(
            peer=self._claim.identity.peer, session=self._node.session
        )

    @property
    def peers(self) -> list[Progress]:
        """Everybody who is there, as last heard, the longest present first; nobody once we have left."""
        return self._read(lambda: self._node.core.swarm.alive(self._background.now)) if not self._left else []

    @property
    def view(self) -> RunView:
        """The run as its ledger tells it; read it, don't change it."""
        return self._node.core.view

    @property
    def theta(self) -> Vector:
        """The shared parameters [n] after ``round``, a copy."""
        plane = self._node.actions.state.plane
        if plane is None:
            raise EnvironmentProblem("the run's state is not here yet: wait with wait_ready()")
        return plane.theta.copy()

    def wait_ready(self) -> None:
        """Wait until the run's state is here. ``join`` and ``adopt`` with a model do that by themselves."""
        self._call(self._node.ready(), None)

    @property
    def round(self) -> int:
        """The last round applied here."""
        return self._node.core.catchup.round

    @property
    def tokens(self) -> float:
        """Tokens that the run has done: what is committed, and what its peers say they have done since. The
        number never goes back.
        """
        return self._node.watcher.course.tokens

    @property
    def done(self) -> float:
        """The share of the run, 0 to 1, that is done, as ``tokens``: by the recipe's ``end``, whichever limit
        comes first; 0 if it has none.
        """
        return self._node.watcher.course.done

    def bring_best(self, patience_s: float = 10.0) -> int:
        """Have what the best evaluated state follows from on this disk too; returns that state's round.

        Raises:
            UsageError: nothing is evaluated yet.
            EnvironmentProblem: nobody who is there has kept it.
        """
        found = self.view.evaluations
        if found.best is None:
            raise UsageError("no state of this run is evaluated yet: take the last one")
        lost = f"nobody who is there has kept the best evaluated state, of round {found.best.round}"
        if found.grounds is None:
            raise EnvironmentProblem(f"{lost}: it was old already when it was evaluated")
        what = f"the best state, of round {found.best.round}"
        if not self._call(self._node.files.bring(found.grounds.content(), what, patience_s), None):
            raise EnvironmentProblem(f"{lost}: try again when other peers are there, or take the last one")
        return found.best.round

    def bring_base(self) -> None:
        """Have the weights that are not trained on this disk too, if the run hands them out."""
        for blob in self._node.genesis.assets:
            if blob.name == BASE:
                self._call(self._node.files.fetch(blob), None)

    def task_files(self) -> dict[str, bytes]:
        """The files that the run's host brought (tokenizer, text, …) by name, from peers if need be; without
        weights that are not trained, which ``adopt`` gets itself.
        """
        blobs = [blob for blob in self._node.genesis.assets if blob.name != BASE]
        return {blob.name: self._call(self._node.files.read(blob), None) for blob in blobs}

    def adopt(self, model: torch.nn.Module) -> None:
        """Train this model; for a run joined without one (built-in tasks make it from ``task_files``).

        Frozen weights of it that are not the run's are replaced by those, as trained ones are.

        Raises:
            ModelMismatch: it is not the run's model.
            UsageError: there is a model already.
        """
        self._present()
        if self._trainer is not None:
            raise UsageError("this run trains a model already")
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
        round, the step and the run's tokens; and in the trackers of ``track``.

        Args:
            values: numbers and text by name; tensors of one value will do.
            step: the peer's own inner steps by default, which go on counting when it comes back.

        Raises:
            UsageError: a value is neither number nor text.
        """
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
        for tracker in trackers:
            self._metrics.track(tracker, self.recipe.name)

    # -- going -----------------------------------------------------------------------------------

    def wait_over(self, timeout_s: float | None = None) -> bool:
        """Wait until the run is over and its last round is applied here; False if time ran out first."""
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
        """Leave in good order: the round in flight is seen through for up to 3 s. Safe to call twice."""
        if self._left:
            return
        self._left = True
        try:
            if self._background.alive:
                if self._trainer is not None:
                    self._trainer.meet()
                size = self._node.actions.state.size
                evaluates_s = EVALUATE_S if self.over is not None else 0.0
                self._call(self._node.leave(), LEAVE_S + size * LEAVE_VALUE_S + evaluates_s)
        finally:
            self._final_state()
            self._stop()
            with contextlib.suppress(RunOver):
                self._node.events.tell()
            self._metrics.close()

    def _final_state(self) -> None:
        """Leave the shared state in the model: what everybody has."""
        if self._trainer is not None:
            self._unhook()
            plane = self._node.actions.state.plane
            if plane is not None:
                self._trainer.write(plane.theta)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._trainer is not None:
            self._trainer.detach()

    def _present(self) -> None:
        if self._left:
            raise UsageError(
                f"this run is over ({self.over}): host another"
                if self.over
                else "this run was left: come back with potluck.join(run.invite, model)"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.leave()
        if isinstance(error, RunOver):
            log.info("the run is over: %s", error)
            return True
        return False

    # -- the network thread ----------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        return self._background.call(work, timeout_s)

    def _read(self, read: Callable[[], T]) -> T:
        """Something of the network thread's, as it is at one moment."""
        return read() if self._left else self._background.read(read, ANSWER_S)

    def _stepped(self, *_: object) -> None:
        self._metrics.step += 1

    def _check(self) -> None:
        failure = self._node.actions.handover.failure
        if failure is not None:
            raise failure

    def _stop(self) -> None:
        self._left = True
        self._background.stop(self._node.close(), STOP_S)
        sys.setswitchinterval(self._switch_s)
        self._claim.release()


def _trains(optimizer: torch.optim.Optimizer) -> set[int]:
    """Which parameters an optimizer has, as objects."""
    return {id(weight) for group in optimizer.param_groups for weight in group["params"]}


def _warm_up() -> None:
    """The first optimizer of a process takes PyTorch a second, for what it imports: better while the state is
    on its way than after.
    """
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


async def _make(invite: Invite, place: Place, watch: Callable[[str], None] | None) -> Node:
    return Node(invite, place, watch)
