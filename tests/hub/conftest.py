from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .sites import USERS, SiteServer, site


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[SiteServer]:
    """A site's NATS with the users of a laboratory."""
    with site(tmp_path / "site", **USERS) as running:
        yield running
