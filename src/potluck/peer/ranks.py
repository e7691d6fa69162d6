"""The ranks of this peer: processes that train one model together, joined by ``torch.distributed``.

They have a group of their own, over gloo on the CPU, beside the one that the model trains with. Nothing that
travels in it is unpickled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from potluck.errors import EnvironmentProblem, PotluckError
from potluck.peer.machine import machine_id
from potluck.peer.told import (
    MAX_BYTES,
    Call,
    Doing,
    Failed,
    Told,
    Wait,
    agree,
    error_of,
    failed,
    pack,
    unpack,
)

WORD_S = 10.0
"""While rank 0 waits for others it says so, so often, in seconds: else its ranks would take it for dead."""

GONE_S = 3.0
"""So long a rank is asked whether it is there, in seconds."""


class Ranks:
    """All ranks of the default process group, which are one peer. ``beside`` of them are on this machine.

    Every method is for all ranks at once, unless it says otherwise.

    Raises:
        UsageError: they have different models; ``sign`` stands for this one's.
    """

    def __init__(self, sign: int) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._broken, self._told = False, time.monotonic()
        self._group: Any = dist.new_group(backend="gloo", timeout=_timeout())
        try:
            machine = float(int(machine_id()[:12], 16))
            calls = self._all(Call(Doing.JOIN, sign=float(sign), machine=machine))
            self.beside = sum(call.machine == machine for call in calls)
            self.beside_first = calls[0].machine == machine
            agree(calls)
        except BaseException:
            self.close()
            raise

    @property
    def speaks(self) -> bool:
        """Whether this is the rank that speaks for the peer."""
        return self.rank == 0

    @property
    def broken(self) -> bool:
        """Whether the ranks are out of step, or one is gone: they do nothing together any more."""
        return self._broken

    def threads(self, call: Call) -> int:
        """This rank's share of those that rank 0 has for the peer; 0 if this is another machine."""
        return max(1, int(call.threads) // self.beside) if self.beside_first else 0

    # -- few bytes -------------------------------------------------------------------------------

    def roll(self, call: Call) -> Call:
        """Call the roll: what all say together.

        Raises:
            UsageError: they don't do the same.
            EnvironmentProblem: one is gone.
        """
        try:
            return agree(self._all(call))
        except PotluckError:
            self._broken = True
            raise

    def tell(self, told: Told) -> None:
        """Rank 0: say it to the others.

        Raises:
            EnvironmentProblem: one is gone.
        """
        raw, self._told = pack(told), time.monotonic()
        with self._in_words():
            dist.broadcast(torch.tensor([len(raw)], dtype=torch.int64), 0, group=self._group)
            dist.broadcast(torch.frombuffer(bytearray(raw), dtype=torch.uint8), 0, group=self._group)

    def hear(self) -> Told:
        """Others: what rank 0 says next, when it has something to say.

        Raises:
            PotluckError: it failed, and how.
        """
        while True:
            with self._in_words():
                size = torch.empty(1, dtype=torch.int64)
                dist.broadcast(size, 0, group=self._group)
                raw = torch.empty(min(int(size), MAX_BYTES), dtype=torch.uint8)
                dist.broadcast(raw, 0, group=self._group)
            told = unpack(raw.numpy().tobytes())
            if isinstance(told, Failed):
                raise error_of(told)
            if not isinstance(told, Wait):
                return told

    def wait(self) -> None:
        """Rank 0, often while it waits: now and then the others are told that it does."""
        if not self._broken and time.monotonic() - self._told > WORD_S:
            with contextlib.suppress(EnvironmentProblem):  # what is done together next says so
                self.tell(Wait())

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """Rank 0: if something fails inside, the others are told."""
        try:
            yield
        except BaseException as error:
            if not self._broken:
                with contextlib.suppress(PotluckError):
                    self.tell(failed(error))
            self.close()
            raise

    # -- many values -----------------------------------------------------------------------------

    def give(self, values: torch.Tensor, to: int) -> None:
        """One rank: send values to another, which takes them."""
        with self._in_words():
            dist.send(values.cpu(), to, group=self._group)

    def take(self, count: int, dtype: torch.dtype, giver: int) -> torch.Tensor:
        """One rank: so many values from another."""
        values = torch.empty(count, dtype=dtype)
        with self._in_words():
            dist.recv(values, giver, group=self._group)
        return values

    def spread(self, values: torch.Tensor) -> None:
        """Values on the CPU from rank 0 to all others, into what is there."""
        with self._in_words():
            dist.broadcast(values, 0, group=self._group)

    # -- the end ---------------------------------------------------------------------------------

    def part(self, error: BaseException) -> EnvironmentProblem | None:
        """This rank alone, whose loop an error ended: nothing goes on together any more. Returns another
        error in our words, if it was that of a model whose other ranks are gone.
        """
        broken, self._broken = self._broken, True
        return (
            _gone_words(self.rank, error) if isinstance(error, RuntimeError) and self._gone(broken) else None
        )

    def _gone(self, known: bool) -> bool:
        """Whether a rank is gone for good. A process that ended is noticed at once, one that is only busy
        when time is up.
        """
        if known or self._group is None:
            return known
        began = time.monotonic()
        try:
            dist.monitored_barrier(self._group, timedelta(seconds=GONE_S), wait_all_ranks=True)
        except RuntimeError:
            return time.monotonic() - began < GONE_S / 2
        return False

    def close(self) -> None:
        """This rank alone: nothing goes on together any more. Ranks that wait for this one get an error."""
        self._broken = True
        if self._group is not None:
            group, self._group = self._group, None
            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group(group)

    # -- underneath ------------------------------------------------------------------------------

    def _all(self, call: Call) -> list[Call]:
        mine = torch.tensor(call, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        with self._in_words():
            dist.all_gather(found, mine, group=self._group)
        return [Call(*said.tolist()) for said in found]

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        if self._broken:
            raise EnvironmentProblem("the ranks of this peer are not together any more")
        try:
            yield
        except RuntimeError as error:
            self._broken = True
            raise _gone_words(self.rank, error) from error


def _gone_words(rank: int, error: BaseException) -> EnvironmentProblem:
    """An error of ``torch.distributed``, in our words and its own."""
    return EnvironmentProblem(
        f"another rank of this peer ended or does not answer, so rank {rank} can't go on (its own output "
        f"says why it ended); start all ranks of the peer again, and it comes back to the run: {error}"
    )


def spread_over_ranks() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _timeout() -> timedelta:
    """That of the default group, as far as it can be found out, or PyTorch's own."""
    world: Any = dist.group.WORLD
    try:
        found = [world._get_backend(device).options._timeout for device in world._device_types]
    except (AttributeError, RuntimeError):
        found = []
    return max(found, default=timedelta(minutes=30))
