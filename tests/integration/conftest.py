from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.swarm import Swarm


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Callable[[int], Swarm]]:
    started: list[Swarm] = []

    def start(rounds: int) -> Swarm:
        started.append(Swarm(tmp_path, rounds))
        return started[-1]

    yield start
    for one in started:
        one.end()
