"""Where a peer lives, and what the first one brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from potluck.identity import Identity
from potluck.peer.layout import Vector
from potluck.recipe import Recipe
from potluck.store.keep import USUAL, Keep
from potluck.wire.records import TensorSpec

if TYPE_CHECKING:
    from potluck.peer.frozen import Frozen

BASE = "base.safetensors"
"""What holds the frozen weights, among a run's files."""


@dataclass(frozen=True)
class Place:
    """Where a peer lives: its key, its directory, its name, the address it listens on, whether it trains, and
    what it keeps.
    """

    identity: Identity
    directory: Path
    name: str
    listen: str = "0.0.0.0"  # noqa: S104 – peers are on other machines; strangers are refused by TLS
    trains: bool = True
    keep: Keep = USUAL


@dataclass(frozen=True)
class Founding:
    """What the first peer brings: recipe, tensors, initial parameters [n], the run's files by name, how many
    blocks its data has, if it is to be leased, and what of its model is not trained.
    """

    recipe: Recipe
    tensors: tuple[TensorSpec, ...]
    theta: Vector
    assets: Mapping[str, bytes]
    blocks: int = 0
    frozen: Frozen | None = None
