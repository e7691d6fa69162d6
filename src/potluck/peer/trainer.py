"""The training thread's side: a PyTorch model and optimizer, joined to the run by hooks.

Only parameters with ``requires_grad`` are exchanged, as fp32, one after the other in the model's own order.
Of a peer that has several ranks each has a trainer, and all of them do the same at the same time.
The user's loop, model and optimizer stay theirs: an optimizer's ``step`` is where the boundary is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from potluck.errors import ModelMismatch, RunOver, UsageError
from potluck.peer.handover import CutRequest, Handover, Reading, Taking
from potluck.peer.layout import Carry, Stretch, Vector
from potluck.peer.spare import Spare
from potluck.peer.told import Call, Doing
from potluck.peer.values import Copied, Values, reshard, values_of
from potluck.peer.watch import Watch
from potluck.wire.records import TensorSpec

if TYPE_CHECKING:
    from potluck.peer.ranks import Ranks

WAIT_S = 0.2
"""How long a trainer without data sleeps before it looks whether the run is over, in seconds."""


class Meeting(Protocol):
    """Where a trainer meets the network: the ``Handover``, or what stands for it on a rank of several."""

    @property
    def over(self) -> str | None:
        """Why the run is over, once it is."""

    @property
    def ended(self) -> str | None:
        """Why the training ends here, though the run may go on."""

    @property
    def failure(self) -> BaseException | None:
        """What ended the network's side, if something did."""

    @property
    def threads(self) -> int:
        """How many threads are this process's share of the machine."""

    def stepped(self, tokens: float, loss: float | None) -> None:
        """One inner step is done."""

    def exchange(self, read: Reading, take: Taking) -> None:
        """Take new shared states in, and meet a request for a cut."""

    def next_block(self, wait_s: float) -> int | None:
        """The position of the next data block."""

    def end(self, reason: str) -> None:
        """The training ends here, on all ranks of this peer, whatever becomes of the run."""


class Trainer:
    """A model in training; of several ``ranks``, what of it is on this one.

    Raises:
        UsageError: nothing in the model is trained, or it is spread in a way that is not supported.
    """

    def __init__(self, model: torch.nn.Module, handover: Meeting, ranks: Ranks | None = None) -> None:
        reshard(model)
        self._parameters = values_of(model, ranks)
        if not self._parameters:
            raise UsageError("the model has no parameter with requires_grad: there is nothing to train")
        self._size = sum(math.prod(p.shape) for p in self._parameters.values())
        self._ranks, self._alike = ranks, False
        self._model = model
        self._handover = handover
        self.watch = Watch()
        """What a step was."""
        self._step_tokens: int | None = None
        self._ends = True
        self._threads = 0
        self._hooks: list[Any] = []
        self._spare = Spare()
        self.at_boundary: Callable[[], None] = lambda: None
        """Called at the end of each boundary. ``RunOver`` raised there ends the training of this peer."""

    def __deepcopy__(self, memo: object) -> Trainer:
        """Who copies the model copies our hooks with it: they stay those of one trainer."""
        return self

    @property
    def model(self) -> torch.nn.Module:
        """What is trained."""
        return self._model

    def copied(self) -> Trainer:
        """A trainer of a copy of the model, in evaluation mode and joined to nothing. Both share the memory
        of weights that are not trained, which may be most of it: nobody may change those in place.

        Raises:
            UsageError: it can't be copied.
        """
        try:
            frozen = {id(p): _alias(p) for p in self._model.parameters() if not p.requires_grad}
            model = copy.deepcopy(self._model, frozen)
        except Exception as error:
            raise UsageError(f"the model can't be copied, so it can't be evaluated: {error}") from error
        return Trainer(model.eval(), Handover(lambda *_: None))

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What is exchanged."""
        return tuple(TensorSpec(name, p.shape) for name, p in self._parameters.items())

    def check(self, tensors: Iterable[TensorSpec]) -> None:
        """Compare with the run's tensors.

        Raises:
            ModelMismatch: names the first difference.
        """
        theirs = {spec.name: spec.shape for spec in tensors}
        ours = {spec.name: spec.shape for spec in self.tensors}
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise ModelMismatch(
                    f"this model is not the run's: {name} is {_shape(ours.get(name))} here and "
                    f"{_shape(theirs.get(name))} in the run; build the model as the host did, with the "
                    "same parameters frozen"
                )
        if list(theirs) != list(ours):
            raise ModelMismatch("this model has the run's tensors in another order; build it as the host did")

    def read(self, stretches: Sequence[Stretch] | None = None) -> Vector:
        """The trained parameters [n], a copy; with ``stretches`` only those, and the rest is anything. Of
        several ranks rank 0 has them, the others nothing.
        """
        vector = self._vector()
        with torch.no_grad():
            for place, parameter in self._placed():
                parameter.copy(place, vector, stretches)
        return vector

    def write(self, vector: Vector) -> None:
        """Set the trained parameters from [n], rank 0's."""
        with torch.no_grad():
            for place, parameter in self._placed():
                parameter.write(vector[place])

    def attach(
        self, optimizer: torch.optim.Optimizer, step_tokens: int | None, ends: bool = True
    ) -> torch.optim.Optimizer:
        """Make ``optimizer.step`` the boundary. ``step_tokens`` per step, or counted from the model's input.
        ``ends``: with the run ``step`` raises ``RunOver``. Returns PyTorch's own optimizer, which that of
        another library may wrap.

        Raises:
            UsageError: another optimizer is attached already, or a step would count as nothing.
        """
        if self._hooks:
            raise UsageError("this run has an optimizer already; one run trains one model with one optimizer")
        if step_tokens is not None and step_tokens <= 0:
            raise UsageError(f"a step of {step_tokens} tokens counts as nothing: give a positive number")
        optimizer = _innermost(optimizer)
        self._step_tokens, self._ends = step_tokens, ends
        hook = optimizer.register_step_post_hook(self._boundary)
        self._hooks = [hook, *self.watch.hooks(self._model)]
        return optimizer

    def detach(self) -> None:
        """Take the hooks out again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def meet(self) -> None:
        """A boundary: take new shared states in, and meet a request for a cut."""
        self._handover.exchange(self._give, self._take)
        try:
            self.at_boundary()
        except RunOver as over:
            self._handover.end(str(over))

    def blocks(self) -> Iterator[int]:
        """Positions of the data leased to this peer, for ever; while there are none it waits, and goes on
        taking part in rounds.

        Raises:
            RunOver: no more will come.
        """
        while True:
            position = self._handover.next_block(WAIT_S)
            if position is not None:
                yield position
            else:
                self.meet()
                self._check()

    # -- hooks -----------------------------------------------------------------------------------

    def _boundary(self, optimizer: object, args: object, kwargs: object) -> None:
        """Between two inner steps; none was taken if a ``GradScaler`` found an infinite gradient. (It calls a
        fused optimizer's ``step`` all the same; any other's it does not.)
        """
        if float(getattr(optimizer, "found_inf", 0.0)):
            return
        tokens, loss = self.watch.take()
        self._handover.stepped(self._step_tokens if self._step_tokens is not None else tokens, loss)
        self.meet()
        threads = self._handover.threads
        if threads and self._threads != threads:  # 0: nobody knows
            self._threads = threads
            torch.set_num_threads(threads)
        self._check(self._ends)

    def _check(self, ends: bool = True) -> None:
        if self._handover.failure is not None:
            raise self._handover.failure
        ended = self._handover.over or self._handover.ended
        if ends and ended is not None:
            raise RunOver(ended)

    def _give(self, request: CutRequest) -> Vector:
        """The parameters that are asked for."""
        self._compare()
        return self.read(request.stretches)

    def _take(self, carries: list[Carry], request: CutRequest | None) -> Vector | None:
        """Carry the model's progress over to new shared states, some values at a time and in the parameters'
        own memory where that is fp32: whole vectors would go through this machine's memory three times.
        Returns the parameters that are asked for as they are in fp32.
        """
        if request is not None:
            self._compare()
        vector = self._vector() if request is not None else None
        with torch.no_grad():
            for place, parameter in self._placed():
                if any(carry.touches(place) for carry in carries):
                    parameter.carry(place, carries, vector, request)
                elif vector is not None and request is not None:
                    parameter.copy(place, vector, request.stretches)
        return vector

    def _compare(self) -> None:
        """The first time that progress is given: what each rank has whole must be the same on all of them."""
        if self._ranks is not None and not self._alike:
            copies = (p.weigh() for p in self._parameters.values() if isinstance(p, Copied))
            self._ranks.roll(Call(Doing.CUT, sign=sum(copies)))
            self._alike = True

    def _vector(self) -> Vector:
        speaks = self._ranks is None or self._ranks.speaks
        return self._spare.take(self._size) if speaks else np.empty(0, np.float32)

    def _placed(self) -> Iterator[tuple[slice, Values]]:
        """Each parameter, with its range of all [n]."""
        reshard(self._model)
        start = 0
        for parameter in self._parameters.values():
            stop = start + math.prod(parameter.shape)
            yield slice(start, stop), parameter
            start = stop


def _alias(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """Another parameter in the same memory, for a copy of the model; those of a library's own kind (quantized
    ones) as they are.
    """
    if type(parameter) is not torch.nn.Parameter:
        return parameter
    return torch.nn.Parameter(parameter.data, requires_grad=False)


def _innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """What takes the steps: libraries (accelerate) wrap an optimizer in another, as its ``optimizer``."""
    inner = getattr(optimizer, "optimizer", None)
    return _innermost(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer


def _shape(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape)) or "a scalar" if shape is not None else "absent"
