"""This process's part in a run: how it comes and goes, between the user's thread and the network's.

``run.Run`` is the same with all that a user calls.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from potluck.errors import RunOver, UsageError
from potluck.identity import Claim
from potluck.peer.background import Background
from potluck.peer.elsewhere import Elsewhere
from potluck.peer.metrics import Metrics
from potluck.peer.node import Node
from potluck.peer.place import Founding, Place
from potluck.peer.speaker import Alone, Listener, Speaker, Standing
from potluck.peer.told import Done
from potluck.wire.invite import Invite

if TYPE_CHECKING:
    import torch

    from potluck.peer.ranks import Ranks
    from potluck.peer.trainer import Trainer

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


class _Switches:
    """Python hands the interpreter over every 5 ms, which starves the network beside a loop in pure Python
    (20 MB/s; 93 MB/s at 1 ms). It is put back when the last run of this process is left.
    """

    def __init__(self) -> None:
        self._usual_s = 0.0
        self._of: set[Part] = set()

    def begin(self, part: Part) -> None:
        """A run begins."""
        if not self._of:
            self._usual_s = sys.getswitchinterval()
            sys.setswitchinterval(min(self._usual_s, SWITCH_S))
        self._of.add(part)

    def end(self, part: Part) -> None:
        """A run ends. Safe to call twice."""
        if part in self._of:
            self._of.remove(part)
            if not self._of:
                sys.setswitchinterval(self._usual_s)


_switches = _Switches()


class Part:
    """A peer's threads, disk and model, held together from its coming to its going."""

    def __init__(
        self,
        invite: Invite,
        claimed: Claim | None,
        place: Place | Elsewhere,
        watch: Callable[[str], None] | None,
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
        self._gone: Callable[[], None] = lambda: None
        """Called once this has ended."""
        self._metrics = Metrics(place.directory)
        self._side: Alone | Speaker | Listener
        if isinstance(place, Elsewhere):
            self._background, self._node = cast("Background", place), cast("Node", place)
            self._side = place.listener
        else:
            self._background = Background()
            self._node = self._call(_make(invite, place, watch), START_S)
            self._side = Alone(lambda: self._node.actions.handover, self._look)
        _switches.begin(self)

    # -- coming ----------------------------------------------------------------------------------

    def _begin(self, founding: Founding | None) -> None:
        try:
            self._call(self._node.start(founding), START_S)
        except BaseException:
            self._stop()
            raise

    def _adopt(self, model: torch.nn.Module, ranks: Ranks | None = None) -> None:
        """Check the model against the run, wait for the run's state, and put it into the model."""
        from potluck.peer.frozen import Frozen, meet
        from potluck.peer.trainer import Trainer

        handover = self._node.actions.handover
        look = self._look
        side = Alone(lambda: handover, look) if ranks is None else Speaker(handover, ranks, look)
        trainer = Trainer(model, side.meeting, ranks)
        trainer.check(self._node.genesis.tensors)
        if ranks is None:
            self._call(meet(Frozen(model), self._node.genesis, self._node.files), None)
        trainer.at_boundary = self._node.events.tell
        self._trainer, self._side = trainer, side
        self._call(self._node.enlist(), ANSWER_S)
        _warm_up()
        self._background.call(self._node.ready(), None, side.wait)
        carries = handover.wait_first()
        if carries:
            side.write(trainer, carries[-1].theta)
        self._call(self._node.train(), ANSWER_S)
        side.joined(Done(self.invite, self._node.recipe.to_toml(), self._node.genesis.blocks))

    def _beside(self, trainer: Trainer) -> Self:
        """This is not rank 0, and has joined with it."""
        self._trainer = trainer
        return self

    def _look(self) -> Standing:
        course = self._node.watcher.course
        return Standing(self._node.core.catchup.round, course.done, course.tokens)

    # -- going -----------------------------------------------------------------------------------

    def _final_state(self) -> None:
        """Leave the shared state in the model: what everybody has."""
        if self._trainer is not None:
            self._unhook()
            plane = self._node.actions.state.plane
            self._side.finish(self._trainer, plane.theta if plane is not None else None)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._trainer is not None:
            self._trainer.detach()

    def _present(self) -> None:
        over = self._side.over
        if self._left:
            raise UsageError(
                f"this run is over ({over}): host another"
                if over
                else "this run was left: come back with potluck.join(run.invite, model)"
            )

    # -- the network thread ----------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        return self._background.call(work, timeout_s)

    def _read(self, read: Callable[[], T]) -> T:
        """Something of the network thread's, as it is at one moment."""
        return read() if self._left else self._background.read(read, ANSWER_S)

    def _stepped(self, *_: object) -> None:
        self._metrics.step += 1

    def _check(self) -> None:
        if self._side.failure is not None:
            raise self._side.failure

    def _stop(self) -> None:
        self._left = True
        try:
            self._background.stop(self._node.close(), STOP_S)
            self._side.close()
        finally:
            _switches.end(self)
            self._gone()
            if self._claim is not None:
                self._claim.release()

    def _tell_all(self) -> None:
        """What is left to be told. A callback can't end the training any more."""
        told = False
        while not told:
            with contextlib.suppress(RunOver):
                self._node.events.tell()
                told = True


def _warm_up() -> None:
    """The first optimizer of a process takes PyTorch a second, for what it imports: better while the state is
    on its way than after.
    """
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


async def _make(invite: Invite, place: Place, watch: Callable[[str], None] | None) -> Node:
    return Node(invite, place, watch)
