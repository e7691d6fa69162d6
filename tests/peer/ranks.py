"""Ranks of a peer that are threads of this process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch

from potluck.errors import PotluckError
from potluck.peer.told import Call, Failed, Told, agree, error_of, pack, unpack

DEADLINE_S = 20


class Wires:
    """What travels between them, and how many values at a time."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.ways: dict[tuple[int, int], queue.Queue[torch.Tensor]] = {
            (a, b): queue.Queue() for a in range(world) for b in range(world)
        }
        self.told: list[queue.Queue[bytes]] = [queue.Queue() for _ in range(world)]
        self.calls: list[Call] = [Call(0)] * world
        self.met = threading.Barrier(world, timeout=DEADLINE_S)
        self.sizes: list[int] = []


class Rank:
    """One of them, as ``Ranks``."""

    def __init__(self, wires: Wires, rank: int) -> None:
        self.wires, self.rank, self.world, self.speaks = wires, rank, wires.world, rank == 0
        self.broken = False

    def threads(self, call: Call) -> int:
        return 0

    def roll(self, call: Call) -> Call:
        self.wires.calls[self.rank] = call
        self.wires.met.wait()
        calls = list(self.wires.calls)
        self.wires.met.wait()
        return agree(calls)

    def tell(self, told: Told) -> None:
        for way in self.wires.told[1:]:
            way.put(pack(told))

    def hear(self) -> Told:
        told = unpack(self.wires.told[self.rank].get(timeout=DEADLINE_S))
        if isinstance(told, Failed):
            raise error_of(told)
        return told

    def give(self, values: torch.Tensor, to: int) -> None:
        self.wires.sizes.append(values.numel())
        self.wires.ways[self.rank, to].put(values.clone())

    def take(self, count: int, dtype: torch.dtype, giver: int) -> torch.Tensor:
        values = self.wires.ways[giver, self.rank].get(timeout=DEADLINE_S)
        assert (values.numel(), values.dtype) == (count, dtype)
        return values

    def spread(self, values: torch.Tensor) -> None:
        if self.speaks:
            for other in range(1, self.world):
                self.give(values, other)
        else:
            values.copy_(self.take(values.numel(), values.dtype, 0))


def everywhere(world: int, act: Callable[[Rank], None]) -> Wires:
    """All ranks do it at the same time. Raises what rank 0 raised, or else another."""
    wires = Wires(world)
    errors: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            act(Rank(wires, rank))
        except BaseException as error:
            errors[rank] = error
            if not isinstance(error, PotluckError):
                wires.met.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    for rank in sorted(errors):
        raise errors[rank]
    assert all(way.empty() for way in (*wires.ways.values(), *wires.told)), "all that was sent was taken"
    return wires
