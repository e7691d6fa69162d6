"""The training thread's side: a PyTorch model and optimizer, joined to the run by hooks.

Only parameters with ``requires_grad`` are exchanged, as fp32, one after the other in the model's own order.
The user's loop, model and optimizer stay theirs: an optimizer's ``step`` is where the boundary is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from potluck.errors import ModelMismatch, RunOver, UsageError
from potluck.peer.handover import CutRequest, Handover
from potluck.peer.layout import Carry, Stretch, Vector, carried, within
from potluck.peer.spare import Spare
from potluck.wire.records import TensorSpec

WAIT_S = 0.2
"""How long a trainer without data sleeps before it looks whether the run is over, in seconds."""

SLICE = 1 << 19
"""Values that are carried over at a time: what is read twice is in the processor's cache the second time, and
the calls are few enough that waiting for the interpreter between them does not matter."""


class Trainer:
    """A model in training.

    Raises:
        UsageError: nothing in the model is trained.
    """

    def __init__(self, model: torch.nn.Module, handover: Handover) -> None:
        self._parameters = dict(_trained(model))
        if not self._parameters:
            raise UsageError("the model has no parameter with requires_grad: there is nothing to train")
        self._size = sum(p.numel() for p in self._parameters.values())
        self._model = model
        self._handover = handover
        self._seen = 0.0
        self._loss: torch.Tensor | None = None
        self._step_tokens: int | None = None
        self._threads = 0
        self._hooks: list[Any] = []
        self._spare = Spare()
        self.at_boundary: Callable[[], None] = lambda: None
        """Called at the end of each boundary."""

    def __deepcopy__(self, memo: object) -> Trainer:
        """Who copies the model copies our hooks with it: they stay those of one trainer."""
        return self

    @property
    def model(self) -> torch.nn.Module:
        """What is trained."""
        return self._model

    def copied(self) -> Trainer:
        """A trainer of a copy of the model, in evaluation mode and joined to nothing. Both share what is not
        trained, which may be most of it.

        Raises:
            UsageError: it can't be copied.
        """
        try:
            frozen = {id(p): p for p in self._model.parameters() if not p.requires_grad}
            model = copy.deepcopy(self._model, frozen)
        except Exception as error:
            raise UsageError(f"the model can't be copied, so it can't be evaluated: {error}") from error
        return Trainer(model.eval(), Handover(lambda *_: None))

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What is exchanged."""
        return tuple(TensorSpec(name, tuple(p.shape)) for name, p in self._parameters.items())

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
        """The trained parameters [n], a copy; with ``stretches`` only those, and the rest is anything."""
        vector, start = self._spare.take(self._size), 0
        with torch.no_grad():
            for parameter in self._parameters.values():
                stop = start + parameter.numel()
                _copy(parameter, slice(start, stop), vector, stretches)
                start = stop
        return vector

    def write(self, vector: Vector) -> None:
        """Set the trained parameters from [n]."""
        start = 0
        with torch.no_grad():
            for parameter in self._parameters.values():
                stop = start + parameter.numel()
                values = torch.from_numpy(np.ascontiguousarray(vector[start:stop]))
                parameter.copy_(values.reshape(parameter.shape))
                start = stop

    def attach(self, optimizer: torch.optim.Optimizer, step_tokens: int | None) -> None:
        """Make ``optimizer.step`` the boundary. ``step_tokens`` per step, or counted from the model's input.

        Raises:
            UsageError: another optimizer is attached already, or a step would count as nothing.
        """
        if self._hooks:
            raise UsageError("this run has an optimizer already; one run trains one model with one optimizer")
        if step_tokens is not None and step_tokens <= 0:
            raise UsageError(f"a step of {step_tokens} tokens counts as nothing: give a positive number")
        self._step_tokens = step_tokens
        self._hooks = [
            optimizer.register_step_post_hook(self._boundary),
            self._model.register_forward_pre_hook(self._count, with_kwargs=True),
            self._model.register_forward_hook(self._note_loss),
        ]

    def detach(self) -> None:
        """Take the hooks out again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def meet(self) -> None:
        """A boundary: take new shared states in, and meet a request for a cut."""
        self._handover.exchange(lambda request: self.read(request.stretches), self._take)
        self.at_boundary()

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

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is self._model and module.training:
            self._seen += _tokens((*args, *kwargs.values()))

    def _note_loss(self, module: torch.nn.Module, args: object, output: Any) -> None:
        loss = getattr(output, "loss", None)
        if module is self._model and module.training and isinstance(loss, torch.Tensor) and loss.numel() == 1:
            self._loss = loss.detach()

    def _boundary(self, optimizer: object, args: object, kwargs: object) -> None:
        """Between two inner steps; none was taken if a ``GradScaler`` found an infinite gradient. (It calls a
        fused optimizer's ``step`` all the same; any other's it does not.)
        """
        if float(getattr(optimizer, "found_inf", 0.0)):
            return
        tokens = self._step_tokens if self._step_tokens is not None else self._seen or 1
        loss = float(self._loss) if self._loss is not None else None
        self._seen, self._loss = 0.0, None
        self._handover.stepped(tokens, loss)
        self.meet()
        if self._threads != self._handover.threads:
            self._threads = self._handover.threads
            torch.set_num_threads(self._threads)
        self._check()

    def _check(self) -> None:
        if self._handover.failure is not None:
            raise self._handover.failure
        if self._handover.over is not None:
            raise RunOver(self._handover.over)

    def _take(self, carries: list[Carry], request: CutRequest | None) -> Vector | None:
        """Carry the model's progress over to new shared states, some values at a time and in the parameters'
        own memory where that is fp32: whole vectors would go through this machine's memory three times.
        Returns the parameters that are asked for as they are in fp32.
        """
        vector, start = self._spare.take(self._size) if request is not None else None, 0
        with torch.no_grad():
            for parameter in self._parameters.values():
                place = slice(start, start + parameter.numel())
                if any(carry.touches(place) for carry in carries):
                    _carry(parameter, place, carries, vector)
                elif vector is not None and request is not None:
                    _copy(parameter, place, vector, request.stretches)
                start = place.stop
        return vector


def _copy(
    parameter: torch.nn.Parameter, place: slice, vector: Vector, stretches: Sequence[Stretch] | None
) -> None:
    """Copy those of a parameter's values, which are this range of all [n], that are in the stretches."""
    values, target = parameter.reshape(-1), torch.from_numpy(vector[place])
    for bounds, _ in (Stretch(slice(None)),) if stretches is None else within(stretches, place):
        target[bounds].copy_(values[bounds])


def _carry(
    parameter: torch.nn.Parameter, place: slice, carries: Sequence[Carry], vector: Vector | None
) -> None:
    """Carry one parameter over, which is this range of all [n]; and put it there into ``vector``."""
    flat = _own_memory(parameter)
    values = parameter.reshape(-1).float().cpu().numpy() if flat is None else flat
    for some in _slices(place.start, place.stop):
        local = values[some.start - place.start : some.stop - place.start]
        carried(local, [carry.within(some) for carry in carries], out=local)
        if vector is not None:
            vector[some] = local
    if flat is None:
        parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
    else:
        increment_version(parameter)  # as copy_ does: a graph through the old values is void


def _trained(model: torch.nn.Module) -> Iterable[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _own_memory(parameter: torch.nn.Parameter) -> Vector | None:
    """The memory of a parameter [n], if it is fp32 on the CPU in the order of its values; else None."""
    plain = parameter.device.type == "cpu" and parameter.dtype == torch.float32 and parameter.is_contiguous()
    return parameter.detach().view(-1).numpy() if plain else None


def _slices(start: int, stop: int) -> Iterator[slice]:
    """A range, ``SLICE`` values at a time."""
    return (slice(at, min(at + SLICE, stop)) for at in range(start, stop, SLICE))


def _tokens(values: Iterable[Any]) -> float:
    """Tokens of the first tensor: its elements if they are integers (ids), else its rows (samples)."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.ndim:
            return float(value.shape[0] if value.is_floating_point() else value.numel())
    return 0.0


def _shape(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape)) or "a scalar" if shape is not None else "absent"
