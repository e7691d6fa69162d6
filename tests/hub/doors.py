"""Hubs that are doors to a site's NATS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potluck.hub.service import Hub
from potluck.hub.site import Nats

from .test_hub import HOST


def door(directory: Path, where: str | Nats | None = None, **options: Any) -> Hub:
    chosen = Nats(where) if isinstance(where, str) else where
    return Hub(directory, host=HOST, nats=chosen, **options)
