"""Peers of the product, with nothing between them but function calls: the algorithm as it really runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from potluck.codecs import codec
from potluck.optim.outer import OuterOptimizer
from potluck.peer.dataplane import DataPlane, Given
from potluck.peer.layout import Layout, carried
from potluck.recipe import Outer
from potluck.wire.codec import digest
from potluck.wire.records import Commit, PartInfo


class Swarm:
    """Members that start from ``theta`` [n]; part p of each round is reduced by member p mod their number."""

    def __init__(
        self, theta: NDArray[np.float32], members: int, outer: Outer, coder: str = "fp32", parts: int = 1
    ) -> None:
        self._parts, self._round = parts, 0
        layout = Layout(theta.size, parts)
        self.planes = [
            DataPlane(theta.copy(), np.zeros_like(theta), 0, layout, codec(coder), OuterOptimizer(outer))
            for _ in range(members)
        ]
        self.locals = [theta.copy() for _ in range(members)]

    @property
    def theta(self) -> NDArray[np.float32]:
        """The shared parameters, which all have to the bit."""
        assert len({plane.digest for plane in self.planes}) == 1
        return self.planes[0].theta

    def round(self, weights: Sequence[float]) -> None:
        """Everybody gives what it has learnt, of which a weight of 0 says that it gives nothing."""
        self._round += 1
        for plane, local in zip(self.planes, self.locals, strict=True):
            assert plane.cut(self._round, 0, local.copy())
        infos, raws = [], []
        for part in range(self._parts):
            reducer = self.planes[part % len(self.planes)]
            mean = reducer.reduce(
                self._round, part, [self._given(part, i, w) for i, w in enumerate(weights) if w]
            )
            info = PartInfo(part, digest(mean.raw), len(mean.raw), mean.contributors)
            reducer.reduced_to(self._round, info)
            infos.append(info)
            raws.append(mean.raw)
        commit = Commit(self._round, 0, tuple(infos), 1, None, "")
        for index, plane in enumerate(self.planes):
            self.locals[index] = carried(self.locals[index], [plane.apply(commit, raws, index)])

    def _given(self, part: int, index: int, weight: float) -> Given:
        raw = self.planes[index].contribution(self._round, 0, part)
        assert raw is not None
        return Given(((index, weight),), raw)
