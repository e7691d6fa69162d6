"""What a process is of its peer, between its trainer and the network.

``Alone`` is all of it: the trainer meets the handover itself. Of several ranks rank 0 is the ``Speaker``: it
has the handover, and tells the others what comes of it. They are each a ``Listener``. Both call the roll at
the same places.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace

from potluck.errors import PotluckError
from potluck.peer.handover import CutRequest, Handover, Reading, Taking
from potluck.peer.layout import Carry, Vector
from potluck.peer.told import Call, Deal, Doing, Done, Over, Read, Write, deal, failed, undeal

if TYPE_CHECKING:
    from potluck.peer.ranks import Ranks
    from potluck.peer.trainer import Trainer


EMPTY = np.empty(0, np.float32)


class Standing(NamedTuple):
    """How the run stands: the last round applied here, the share of the run that is done, and its tokens."""

    round: int = 0
    done: float = 0.0
    tokens: float = 0.0


class Alone:
    """A peer of one process. ``look`` says how the run stands; it has a ``handover`` once it is up."""

    rank, world = 0, 1
    problem: PotluckError | None = None

    def __init__(self, handover: Callable[[], Handover], look: Callable[[], Standing]) -> None:
        self._handover, self._look = handover, look

    @property
    def meeting(self) -> Handover:
        """What the trainer meets."""
        return self._handover()

    @property
    def over(self) -> str | None:
        """Why the run is over, once it is."""
        return self.meeting.over

    @property
    def ended(self) -> str | None:
        """Why the training ends here, though the run may go on."""
        return self.meeting.ended

    @property
    def failure(self) -> BaseException | None:
        """What ended the network's side, if something did."""
        return self.meeting.failure

    @property
    def standing(self) -> Standing:
        """How the run stands now."""
        return self._look()

    def write(self, trainer: Trainer, theta: Vector) -> None:
        """Set the model's parameters from [n]."""
        trainer.write(theta)

    def joined(self, told: Done) -> None:
        """Nobody else needs to know."""

    def wait(self) -> None:
        """Nobody else waits."""

    def meet_last(self, trainer: Trainer) -> None:
        """The last boundary."""
        trainer.meet()

    def finish(self, trainer: Trainer, theta: Vector | None) -> None:
        """Leave the shared parameters [n] in the model, if they are here."""
        if theta is not None:
            trainer.write(theta)

    def part(self, error: BaseException) -> None:
        """An error ended the loop."""

    def close(self) -> None:
        """There is nothing to close."""


class OneOfSeveral(ABC):
    """What all ranks of a peer do alike."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.rank, self.world = ranks, ranks.rank, ranks.world
        self.over: str | None = None
        self.ended: str | None = None
        self.failure: BaseException | None = None
        self.problem: PotluckError | None = None
        """What kept the ranks from leaving together."""
        self.threads = 0
        self.standing = Standing()
        """As all ranks know it, since the last roll call."""

    @abstractmethod
    def _roll(self, call: Call) -> Call:
        """Call the roll, and know what comes of it."""

    def meet_last(self, trainer: Trainer) -> None:
        """All ranks leave the run, after one more boundary."""

        def act() -> None:
            self._roll(Call(Doing.LEAVE))
            trainer.meet()

        self._together(act)

    def part(self, error: BaseException) -> PotluckError | None:
        """An error ended the loop, on this rank at least. Returns what there is to say of it in our words."""
        return self.ranks.part(error)

    def close(self) -> None:
        """The ranks do nothing together any more."""
        self.ranks.close()

    def _together(self, act: Callable[[], None]) -> None:
        self.problem = _attempt(self.ranks, act) or self.problem


class Speaker(OneOfSeveral):
    """Rank 0 of several. ``look`` says how the run stands."""

    def __init__(self, handover: Handover, ranks: Ranks, look: Callable[[], Standing]) -> None:
        super().__init__(ranks)
        self._handover, self._look = handover, look
        self._news = False
        self.meeting = self

    def stepped(self, tokens: float, loss: float | None) -> None:
        """One inner step is done, on all ranks."""
        together = self._roll(Call(Doing.STEP, tokens, math.nan if loss is None else loss))
        self._handover.stepped(together.tokens, None if math.isnan(together.loss) else together.loss)

    def next_block(self, wait_s: float) -> int | None:
        """The position of the next block, the same on all ranks; None if there is something else to do."""
        position = self._handover.next_block(wait_s)
        if position is None:
            self._roll(Call(Doing.BLOCK))
        else:
            self._roll(Call(Doing.BLOCK, position=position), quiet=True)
        return position

    def end(self, reason: str) -> None:
        """The training ends here, at the next roll call: on all ranks at once."""
        self._handover.end(reason)

    def exchange(self, read: Reading, take: Taking) -> None:
        """As ``Handover.exchange``, with the others; as the last roll call said."""
        if not self._news:
            return
        self._news = told = False

        def tell(carries: list[Carry], request: CutRequest | None) -> None:
            nonlocal told
            told = True
            self.ranks.tell(deal(carries, request))

        def reading(request: CutRequest) -> Vector:
            tell([], request)
            return read(request)

        def taking(carries: list[Carry], request: CutRequest | None) -> Vector | None:
            tell(carries, request)
            return take(carries, request)

        self._handover.exchange(reading, taking)
        if not told:
            self.ranks.tell(Deal())

    def write(self, trainer: Trainer, theta: Vector) -> None:
        """All ranks set their parameters from rank 0's [n]."""
        self.ranks.tell(Write())
        trainer.write(theta)

    def joined(self, told: Done) -> None:
        """All ranks have joined."""
        now = self.standing = self._look()
        self.ranks.tell(replace(told, round=now.round, share=now.done, tokens=now.tokens))

    def wait(self) -> None:
        """The others are told, now and then, that they wait for something."""
        self.ranks.wait()

    def finish(self, trainer: Trainer, theta: Vector | None) -> None:
        """All ranks have left; the shared parameters are in their models."""

        def act() -> None:
            if theta is not None:
                self.write(trainer, theta)
            self.joined(Done())

        self._together(act)

    def _roll(self, call: Call, quiet: bool = False) -> Call:
        over, failure, self.standing = self._handover.over, self._handover.failure, self._look()
        ended = over or self._handover.ended
        ends = not quiet and (ended is not None or failure is not None)
        self._news = not quiet and not ends and self._handover.news
        round_, share, tokens = self.standing
        together = self.ranks.roll(
            call._replace(
                news=self._news or ends,
                threads=self._handover.threads,
                round=round_,
                done=share,
                run_tokens=tokens,
            )
        )
        self.threads = self.ranks.threads(together)
        if ends:
            self.ranks.tell(failed(failure) if failure is not None else Over(ended or ""))
            self.over, self.ended, self.failure = over, ended, failure
        return together


class Listener(OneOfSeveral):
    """The other ranks'."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(ranks)
        self._deal: Deal | None = None
        self.meeting = self

    def stepped(self, tokens: float, loss: float | None) -> None:
        """One inner step is done, on all ranks."""
        self._roll(Call(Doing.STEP, tokens, math.nan if loss is None else loss))

    def next_block(self, wait_s: float) -> int | None:
        """As rank 0's."""
        position = int(self._roll(Call(Doing.BLOCK)).position)
        return position if position >= 0 else None

    def end(self, reason: str) -> None:
        """Rank 0 says when."""

    def exchange(self, read: Reading, take: Taking) -> None:
        """This rank's part in rank 0's."""
        told, self._deal = self._deal, None
        if told is None:
            return
        carries, request = undeal(told)
        if carries:
            take(carries, request)
        elif request is not None:
            read(request)

    def wait(self) -> None:
        """Nobody waits for this rank."""

    def finish(self, trainer: Trainer, theta: Vector | None) -> None:
        """As rank 0's, which has the parameters."""

        def act() -> None:
            self.obey(trainer)

        self._together(act)

    def obey(self, trainer: Trainer) -> Done:
        """Do what rank 0 tells until something is done.

        Raises:
            PotluckError: rank 0 failed, and how.
        """
        while not isinstance(told := self.ranks.hear(), Done):
            if isinstance(told, Read):
                trainer.read()
            elif isinstance(told, Write):
                trainer.write(EMPTY)
        self.standing = Standing(told.round, told.share, told.tokens)
        return told

    def _roll(self, call: Call) -> Call:
        together = self.ranks.roll(call)
        self.threads = self.ranks.threads(together)
        self.standing = Standing(int(together.round), together.done, together.run_tokens)
        if together.news:
            told = self.ranks.hear()
            if isinstance(told, Over):
                self.over = self.ended = told.reason
            elif isinstance(told, Deal):
                self._deal = told
        return together


def _attempt(ranks: Ranks, act: Callable[[], None]) -> PotluckError | None:
    """Do something that all ranks do at the end. One that is gone keeps this one from nothing else."""
    try:
        if not ranks.broken:
            act()
    except PotluckError as error:
        return error
    return None
