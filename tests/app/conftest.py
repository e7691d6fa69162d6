from collections.abc import Iterator
from pathlib import Path

import pytest

from .shells import Shells


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[Shells]:
    opened = Shells(tmp_path)
    yield opened
    opened.end()
