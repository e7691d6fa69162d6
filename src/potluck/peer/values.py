"""The values of a model's trained parameters: in this process, or spread over the peer's ranks.

Each kind of parameter does three things with the flat vectors [n] that rank 0 has: it gives its values, is
carried over to new shared states, is set. All ranks do so for the same parameter at the same time; on those
other than rank 0 vectors are empty. What travels between ranks are pieces of half a million values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.autograd.graph import increment_version

from potluck.errors import UsageError
from potluck.peer.handover import CutRequest
from potluck.peer.layout import Carry, Stretch, Vector, carried, within
from potluck.peer.pieces import Shard, asked, pieces, shards, touched
from potluck.wire.codec import digest

if TYPE_CHECKING:
    from potluck.peer.ranks import Ranks

SLICE = 1 << 19
"""Values that are carried over at a time: what is read twice is in the processor's cache the second time, and
the calls are few enough that waiting for the interpreter between them does not matter."""

WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module"}
"""What PyTorch's wrappers put into the names of parameters: ``torch.compile``, activation checkpointing."""


class Values(Protocol):
    """One parameter. ``place`` is its range of all trained values [n]."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole parameter, wherever it is."""

    def copy(self, place: slice, vector: Vector, stretches: Sequence[Stretch] | None) -> None:
        """Copy those of its values that are in the stretches (None: all) into ``vector`` [n]."""

    def carry(
        self, place: slice, carries: Sequence[Carry], vector: Vector | None, request: CutRequest | None
    ) -> None:
        """Carry it over; and put what is requested of it into ``vector``, as it is then in fp32."""

    def write(self, values: Vector) -> None:
        """Set it from its own values."""


class Whole:
    """All of it is in this process."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self._parameter = parameter

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._parameter.shape)

    def copy(self, place: slice, vector: Vector, stretches: Sequence[Stretch] | None) -> None:
        values, target = self._parameter.reshape(-1), torch.from_numpy(vector[place])
        for bounds, _ in (Stretch(slice(None)),) if stretches is None else within(stretches, place):
            target[bounds].copy_(values[bounds])

    def carry(
        self, place: slice, carries: Sequence[Carry], vector: Vector | None, request: CutRequest | None
    ) -> None:
        flat = _own_memory(self._parameter)
        values = self._parameter.reshape(-1).float().cpu().numpy() if flat is None else flat
        for some in _slices(place.start, place.stop):
            local = values[some.start - place.start : some.stop - place.start]
            carried(local, [carry.within(some) for carry in carries], out=local)
            if vector is not None:
                vector[some] = local
        if flat is None:
            self._parameter.copy_(torch.from_numpy(values).reshape(self._parameter.shape))
        else:
            increment_version(self._parameter)  # as copy_ does: a graph through the old values is void

    def write(self, values: Vector) -> None:
        found = torch.from_numpy(np.ascontiguousarray(values))
        self._parameter.copy_(found.reshape(self._parameter.shape))


class Copied:
    """Each rank has all of it, as under ``DistributedDataParallel``: rank 0's counts, the others get it."""

    def __init__(self, parameter: torch.Tensor, ranks: Ranks) -> None:
        self._parameter, self._ranks = parameter, ranks
        self._first = Whole(parameter)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._first.shape

    def copy(self, place: slice, vector: Vector, stretches: Sequence[Stretch] | None) -> None:
        if self._ranks.speaks:
            self._first.copy(place, vector, stretches)

    def carry(
        self, place: slice, carries: Sequence[Carry], vector: Vector | None, request: CutRequest | None
    ) -> None:
        if self._ranks.speaks:
            self._first.carry(place, carries, vector, request)
        spread(self._parameter, touched(carries, None, place), self._ranks)

    def write(self, values: Vector) -> None:
        if self._ranks.speaks:
            self._first.write(values)
        spread(self._parameter, [slice(0, self._parameter.numel())], self._ranks)

    def weigh(self) -> float:
        """The sum of its values' magnitudes on this rank."""
        return float(self._parameter.detach().abs().sum(dtype=torch.float64))


class Sharded:
    """Rows of it are on each rank, as under ``fully_shard``: they come to rank 0 in pieces, and go back."""

    def __init__(self, parameter: Any, owners: Sequence[tuple[int, ...]], ranks: Ranks | None) -> None:
        self._parameter, self._ranks = parameter, ranks
        self._rank = 0 if ranks is None else ranks.rank
        self._shards = shards(self.shape, owners)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._parameter.shape)

    def copy(self, place: slice, vector: Vector, stretches: Sequence[Stretch] | None) -> None:
        target = vector[place]

        def keep(bounds: slice, values: Vector) -> None:
            target[bounds] = values

        self._visit(asked(stretches, place), keep, down=False)

    def carry(
        self, place: slice, carries: Sequence[Carry], vector: Vector | None, request: CutRequest | None
    ) -> None:
        def over(bounds: slice, values: Vector) -> None:
            some = slice(place.start + bounds.start, place.start + bounds.stop)
            carried(values, [carry.within(some) for carry in carries], out=values)
            if vector is not None:
                vector[some] = values

        self._visit(touched(carries, request, place), over)

    def write(self, values: Vector) -> None:
        def fill(bounds: slice, piece: Vector) -> None:
            piece[:] = values[bounds]

        self._visit([slice(0, math.prod(self.shape))], fill, up=False)

    def _visit(
        self,
        ranges: Sequence[slice],
        edit: Callable[[slice, Vector], None],
        *,
        up: bool = True,
        down: bool = True,
    ) -> None:
        """On rank 0 ``edit`` each piece, which came there if ``up``, and goes back if ``down``."""
        local = self._parameter.to_local().view(-1)
        for bounds, shard in pieces(self._shards, ranges):
            mine = None
            if self._rank in shard.owners:
                mine = local[bounds.start - shard.bounds.start : bounds.stop - shard.bounds.start]
            if self._rank:
                self._obey(mine, shard, up, down)
                continue
            count = bounds.stop - bounds.start
            values = self._fetch(mine, shard, count) if up else np.empty(count, np.float32)
            edit(bounds, values)
            if down:
                self._return(torch.from_numpy(values).to(local.dtype), mine, shard)

    def _fetch(self, mine: torch.Tensor | None, shard: Shard, count: int) -> Vector:
        """Rank 0: a piece [count], in fp32; perhaps in the parameter's own memory."""
        if mine is None:
            assert self._ranks is not None, "somebody else has it"
            mine = self._ranks.take(count, self._parameter.dtype, shard.owners[0])
        values: Vector = mine.float().cpu().numpy()
        return values

    def _return(self, values: torch.Tensor, mine: torch.Tensor | None, shard: Shard) -> None:
        """Rank 0: a piece to all that have it."""
        if mine is not None:
            mine.copy_(values)
        for owner in shard.owners:
            if owner:
                assert self._ranks is not None, "somebody else has it"
                self._ranks.give(values, owner)

    def _obey(self, mine: torch.Tensor | None, shard: Shard, up: bool, down: bool) -> None:
        """Others: their side of it."""
        if mine is None:
            return
        assert self._ranks is not None, "rank 0 is another one"
        if up and shard.owners[0] == self._rank:
            self._ranks.give(mine, 0)
        if down:
            mine.copy_(self._ranks.take(mine.numel(), mine.dtype, 0))


class Odd:
    """Spread over the ranks in another way: along another dimension, or in two ways at once (tensor
    parallel). Each rank has the whole of it for a moment.
    """

    def __init__(self, parameter: Any, ranks: Ranks | None) -> None:
        self._parameter, self._ranks = parameter, ranks

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._parameter.shape)

    def copy(self, place: slice, vector: Vector, stretches: Sequence[Stretch] | None) -> None:
        whole = self._parameter.full_tensor()
        if self._speaks:
            Whole(whole).copy(place, vector, stretches)

    def carry(
        self, place: slice, carries: Sequence[Carry], vector: Vector | None, request: CutRequest | None
    ) -> None:
        whole = self._parameter.full_tensor()
        if self._speaks:
            Whole(whole).carry(place, carries, vector, request)
        self._deal(whole)

    def write(self, values: Vector) -> None:
        local = self._parameter.to_local()
        whole = torch.empty(self.shape, dtype=local.dtype, device=local.device)
        if self._speaks:
            Whole(whole).write(values)
        self._deal(whole)

    @property
    def _speaks(self) -> bool:
        return self._ranks is None or self._ranks.speaks

    def _deal(self, whole: torch.Tensor) -> None:
        """Rank 0's to all; each keeps its share."""
        from torch.distributed.tensor import DTensor, Replicate

        if self._ranks is not None:
            spread(whole, [slice(0, whole.numel())], self._ranks)
        mesh, placements = self._parameter.device_mesh, self._parameter.placements
        everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
        self._parameter.to_local().copy_(everywhere.redistribute(mesh, placements).to_local())


def spread(tensor: torch.Tensor, ranges: Sequence[slice], ranks: Ranks) -> None:
    """Some of a tensor's values from rank 0 to all others, in pieces."""
    values, everybody = tensor.detach().reshape(-1), (Shard(slice(0, tensor.numel()), ()),)
    for bounds, _ in pieces(everybody, ranges):
        piece = values[bounds].cpu()
        ranks.spread(piece)
        if not ranks.speaks:
            values[bounds] = piece
    if not ranks.speaks and not tensor.is_contiguous():
        tensor.copy_(values.reshape(tensor.shape))


# -- a model's ---------------------------------------------------------------------------------------


def values_of(model: torch.nn.Module, ranks: Ranks | None) -> dict[str, Values]:
    """The trained parameters of a model, by the names that they have without wrappers.

    Raises:
        UsageError: they are spread in a way that is not supported.
    """
    return {name: _values(name, parameter, ranks) for name, parameter in trained(model)}


def trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """What of a model is trained, as ``named``."""
    return ((name, parameter) for name, parameter in named(model) if parameter.requires_grad)


def named(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """A model's parameters. Names are those of the model as it was built, without PyTorch's wrappers: one
    that is compiled, or in ``DistributedDataParallel``, is the same model.

    Raises:
        UsageError: it is in the first FSDP, which has no parameters of its own any more.
    """
    for name, parameter in _unwrapped(model).named_parameters():
        yield ".".join(word for word in name.split(".") if word not in WRAPPERS), parameter


def signed(model: torch.nn.Module) -> int:
    """48 bits of the trained tensors' names, shapes, types and of how they are spread over ranks."""
    told = [f"{name} {tuple(p.shape)} {p.dtype} {getattr(p, 'placements', '')}" for name, p in trained(model)]
    return int(digest("\n".join(told).encode())[:12], 16)


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            break
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "FullyShardedDataParallel" in kinds:
            raise UsageError(
                "the model is in FullyShardedDataParallel: shard it with torch.distributed.fsdp.fully_shard "
                "instead (PyTorch's FSDP2), which keeps its parameters"
            )
    return model


def reshard(model: torch.nn.Module) -> None:
    """Let each rank hold its own part only, under FSDP2. After a forward pass without a backward one modules
    are still whole, and would go on with what they were before their parts are changed.
    """
    for module in model.modules():
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            module.reshard()  # type: ignore[operator]


def _values(name: str, parameter: Any, ranks: Ranks | None) -> Values:
    if not hasattr(parameter, "device_mesh"):
        return Whole(parameter) if ranks is None else Copied(parameter, ranks)
    mesh, world = parameter.device_mesh.mesh, 1 if ranks is None else ranks.world
    if mesh.numel() != world:
        raise UsageError(
            f"{name} is spread over {mesh.numel()} ranks, and this peer has {world}: give the model to host "
            "or join on every rank, with all ranks of torch.distributed in its mesh (parameters that only "
            "some of them have, as under tensor parallel, are not supported)"
        )
    owners = _owners(mesh, parameter.placements)
    return Odd(parameter, ranks) if owners is None else Sharded(parameter, owners, ranks)


def _owners(mesh: torch.Tensor, placements: Sequence[Any]) -> list[tuple[int, ...]] | None:
    """Which ranks have each shard of a parameter, if it is cut along its first dimension, once at most."""
    cut = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    if not cut:
        return [tuple(sorted(mesh.reshape(-1).tolist()))]
    first = placements[cut[0]]
    if len(cut) > 1 or type(first).__name__ != "Shard" or first.dim != 0:
        return None
    rows = mesh.movedim(cut[0], 0).reshape(mesh.shape[cut[0]], -1)
    return [tuple(sorted(row)) for row in rows.tolist()]


def _own_memory(parameter: torch.Tensor) -> Vector | None:
    """The memory of a parameter [n], if it is fp32 on the CPU in the order of its values; else None."""
    plain = parameter.device.type == "cpu" and parameter.dtype == torch.float32 and parameter.is_contiguous()
    return parameter.detach().view(-1).numpy() if plain else None


def _slices(start: int, stop: int) -> Iterator[slice]:
    """A range, ``SLICE`` values at a time."""
    return (slice(at, min(at + SLICE, stop)) for at in range(start, stop, SLICE))
