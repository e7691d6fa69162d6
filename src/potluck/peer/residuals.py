"""Residuals of a peer's last life: when they still hold, and what is said of them.

They belong to the state after a round. So they wait until the new life has that state, and, if something of
the old one was in flight then, for the commit that tells what became of it. From then on they are as good as
the new life's own, for what was never sent can be added at any time. But once only: the file goes first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from potluck.errors import CorruptData, StoreError
from potluck.peer.dataplane import MAX_SHARE, DataPlane
from potluck.peer.layout import Carry, Layout
from potluck.protocol.view import RunView, contributors
from potluck.store.residuals import Kept, Owed
from potluck.wire.records import Commit


class Returning:
    """What an earlier life left, until it is taken up or dropped.

    Args:
        owed: what was found; None if nothing was.
        layout: how the run's vectors are cut.
        remove: removes it from the disk for good, or raises ``StoreError``.
    """

    def __init__(self, owed: Owed | None, layout: Layout, remove: Callable[[], None]) -> None:
        self._owed, self._layout, self._remove = owed, layout, remove
        self._said: list[str] = []
        self.taken_up = False

    @property
    def waiting(self) -> bool:
        """Whether it is not known yet if they hold."""
        return self._owed is not None

    def say(self, text: str) -> None:
        """Words for ``news``."""
        self._said.append(text)

    def news(self) -> list[str]:
        """What became of them since this was asked last, in words."""
        said, self._said = self._said, []
        return said

    def compare(self, view: RunView, peer: str) -> None:
        """Drop them if the ledger, read to its end, has a later life of ``peer`` among its contributors: that
        one had its own, so these were taken up once, and the disk is an older copy.
        """
        owed = self._owed
        if owed is None:
            return
        for round_ in [r for r in view.commits if r > owed.round]:
            commit, members = view.commits[round_], view.members[round_]
            there = {i for i in contributors(commit.parts) if members[i].peer == peer}
            if owed.flying is not None and owed.flying[:2] == (round_, commit.attempt):
                there.discard(owed.flying[2])
            if there:
                self._drop(f"a later life of this peer is in round {round_}")
                return

    def meet(self, plane: DataPlane, carry: Carry, commit: Commit | None) -> Carry:
        """The plane has a new state, by a commit or else loaded, which ``carry`` brings to the model. Returns
        what brings it there with what it is to hold of residuals that are taken up now.
        """
        owed = self._owed
        if owed is None or plane.round < owed.round:
            return carry
        if not fit(owed, self._layout):
            self._drop("they are of another size than this run's model")
            return carry
        if plane.round == owed.round:
            if plane.digest != owed.state:
                self._drop(f"the run's round {owed.round} is another than theirs")
                return carry
            in_flight = owed.flying is not None or owed.results
            return carry if in_flight else self._taken(plane, carry, owed)
        if commit is None or plane.round > owed.round + 1:
            self._drop(f"this peer came back by a later state, of round {plane.round}")
            return carry
        return self._taken(plane, carry, settled(owed, commit, self._layout))

    def _taken(self, plane: DataPlane, carry: Carry, owed: Owed) -> Carry:
        try:
            self._remove()
        except StoreError as error:
            self._drop(f"their file has to be removed first, and {error}")
            return carry
        self._owed, self.taken_up = None, True
        self.say(f"what was not sent yet when this peer left is taken up again (round {owed.round})")
        return plane.take_up(owed, carry)

    def _drop(self, why: str) -> None:
        assert self._owed is not None
        self.say(f"residuals kept after round {self._owed.round} are dropped: {why}")
        self._owed = None
        with contextlib.suppress(StoreError):  # it is replaced when this life ends
            self._remove()


def settled(owed: Owed, commit: Commit, layout: Layout) -> Owed:
    """What is owed now that the next round tells what became of that in flight; as ``DataPlane`` has it."""
    up, down = owed.up.copy(), dict(owed.down)
    ours = owed.flying is not None and owed.flying[:2] == (commit.round, commit.attempt)
    index = owed.flying[2] if ours and owed.flying is not None else None
    for info in commit.parts:
        place, within = layout.place(commit.round, info.part), layout.range(commit.round, info.part)
        weight = dict(info.contributors).get(index) if index is not None else None
        if weight is not None:
            up[within] = owed.counted.get(place, 0.0)
        digest, result = owed.results.get(place, ("", None))
        if result is not None and digest == info.digest:
            down[place] = result
        elif weight is not None and place in down:
            up[within] += np.float32(min(info.weight / weight, MAX_SHARE)) * down.pop(place)
    return replace(owed, up=up, down=down, flying=None, counted={}, results={})


def fit(owed: Owed, layout: Layout) -> bool:
    """Whether all is of the size that it has to be."""
    results = ((place, values) for place, (_, values) in owed.results.items())
    by_place = [*owed.down.items(), *owed.counted.items(), *results]
    sizes = [bounds.stop - bounds.start for bounds in layout.bounds]
    return owed.up.size == layout.n and all(
        place < len(sizes) and values.size == sizes[place] for place, values in by_place
    )


def found(file: Kept, layout: Layout) -> Returning:
    """What is in the file. If that is not what it should be, it is said, and nothing is taken up."""
    try:
        return Returning(file.read(), layout, file.remove)
    except (CorruptData, StoreError) as error:
        returning = Returning(None, layout, file.remove)
        returning.say(f"the residuals in {file.path} are dropped: {error}")
        return returning


def kept(file: Kept, owed: Owed | None, sent: float, over: bool) -> str:
    """Keep what is owed for the next life, and account for it in words; ``sent`` is the norm of the last
    contribution as it was sent, and in a run that is ``over`` there is nothing to keep it for.
    """
    if owed is None:
        return "this life had taken up nothing yet; what an earlier one had not sent is kept as it was"
    share = f"{owed.norm / sent:.3g} times" if sent else f"norm {owed.norm:.3g}, beside"
    what = f"not sent yet for compression ({share} what the last contribution sent)"
    try:
        if owed.nothing or over:
            file.remove()
            return "nothing is left unsent" if owed.nothing else f"{what}: lost, for the run is over"
        file.write(owed)
    except StoreError as error:
        return f"{what}: lost, for {error}"
    return f"{what}: kept in {file.path} until this peer comes back"
