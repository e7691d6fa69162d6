"""A run as its user has it in hand: a few lines around your own training loop. ``start`` has how it begins.

with potluck.join(invite, model) as run:
    optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=2e-3))
    for batch in loader:
        ...  # forward, backward, optimizer.step(), as ever
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from potluck.errors import EnvironmentProblem, RunOver, UsageError
from potluck.identity import Claim
from potluck.peer.background import Background
from potluck.peer.node import Node
from potluck.peer.place import BASE, Founding, Place
from potluck.recipe import Recipe
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
        self._claim = claimed
        self._trainer: Trainer | None = None
        self._failing: Any = None
        self._left = False
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
        self, optimizer: torch.optim.Optimizer, *, tokens_per_step: int | None = None
    ) -> torch.optim.Optimizer:
        """Join an optimizer to the run and return it: its ``step()`` becomes the boundary of an inner step.

        Args:
            optimizer: any PyTorch optimizer over the model's parameters.
            tokens_per_step: what one step counts as; by default what went into the model in training mode
                since the last step (elements of integer inputs, rows of others).

        Raises:
            UsageError: this run trains no model, or has an optimizer already.
        """
        if self._trainer is None:
            raise UsageError("this run was joined without a model: there is nothing to optimize")
        self._trainer.attach(optimizer, tokens_per_step)
        self._failing = optimizer.register_step_post_hook(lambda *_: self._check())
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
        if self._trainer is None:
            raise UsageError("this run was joined without a model: there is nothing to train")
        if not self._node.genesis.blocks:
            raise UsageError("this run does not share its data out: its host's recipe says nothing of data")
        return self._trainer.blocks()

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
    def done(self) -> float:
        """The share of the run, 0 to 1, that is committed, by ``end.tokens`` or ``end.rounds``."""
        return self.recipe.end.done(self.view.tokens, self.view.round)

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
        if self._trainer is not None:
            raise UsageError("this run trains a model already")
        self._adopt(model)

    # -- going -----------------------------------------------------------------------------------

    def wait_over(self, timeout_s: float | None = None) -> bool:
        """Wait until the run is over and its last round is applied here; False if time ran out first."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self.over is None:
            if deadline is not None and time.monotonic() > deadline:
                return False
            self._check()
            time.sleep(0.1)
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
                self._call(self._node.leave(), LEAVE_S + size * LEAVE_VALUE_S)
        finally:
            self._final_state()
            self._stop()

    def _final_state(self) -> None:
        """Leave the shared state in the model: what everybody has."""
        if self._failing is not None:
            self._failing.remove()
        if self._trainer is not None:
            self._trainer.detach()
            plane = self._node.actions.state.plane
            if plane is not None:
                self._trainer.write(plane.theta)

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

    def _check(self) -> None:
        failure = self._node.actions.handover.failure
        if failure is not None:
            raise failure

    def _stop(self) -> None:
        self._left = True
        self._background.stop(self._node.close(), STOP_S)
        sys.setswitchinterval(self._switch_s)
        self._claim.release()


def _warm_up() -> None:
    """The first optimizer of a process takes PyTorch a second, for what it imports: better while the state is
    on its way than after.
    """
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


async def _make(invite: Invite, place: Place, watch: Callable[[str], None] | None) -> Node:
    return Node(invite, place, watch)
