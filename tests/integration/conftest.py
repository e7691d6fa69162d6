from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.swarm import Swarm


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Callable[..., Swarm]]:
    started: list[Swarm] = []

    def start(rounds: int, epochs: int = 0, hub: str = "", fragments: int = 1) -> Swarm:
        started.append(Swarm(tmp_path, rounds, epochs, hub, fragments))
        return started[-1]

    yield start
    for one in started:
        one.end()
