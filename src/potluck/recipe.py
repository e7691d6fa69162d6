"""A recipe: everything that all peers of a run agree on, as frozen dataclasses and as TOML.

A recipe never runs code from the network: it names built-in tasks only.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from potluck.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """What is trained, for people who bring no code: ``kind = "causal-lm"``, or ``"custom"`` for own code.

    ``config`` is a Hugging Face config (with ``model_type``), ``checkpoint`` a directory or name instead.
    ``tokenizer`` is ``"bpe-N"`` (trained by the host on the text) or a directory or name.
    ``text`` is ``"demo"``, a glob of text files, or ``"datasets:NAME[:COLUMN]"``.
    """

    kind: str = "custom"
    config: dict[str, Any] = field(default_factory=dict)
    checkpoint: str = ""
    tokenizer: str = "bpe-1024"
    text: str = "demo"
    context: int = 128
    batch: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Inner:
    """The inner optimizer of a task (with own code, yours): AdamW with linear warm-up."""

    lr: float = 2e-3
    weight_decay: float = 0.1
    warmup_steps: int = 20
    clip: float = 1.0


@dataclass(frozen=True)
class Outer:
    """The outer optimizer: ``"nesterov"`` SGD, or plain ``"average"`` (lr 1, momentum 0)."""

    kind: str = "average"
    lr: float = 0.7
    momentum: float = 0.9


@dataclass(frozen=True)
class Rounds:
    """When a round opens (``tokens`` of the whole swarm), and what travels (``codec``).

    ``grace_s`` is the least time that a reducer waits for a live member.
    """

    tokens: int = 65_536
    codec: str = "int8"
    grace_s: float = 4.0
    snapshot_every: int = 5
    parts: int = 16


@dataclass(frozen=True)
class End:
    """The run is over at so many ``tokens`` or ``rounds``, whichever comes first; 0 is no limit."""

    tokens: int = 0
    rounds: int = 0


@dataclass(frozen=True)
class Recipe:
    """A run's recipe; see the classes of its fields."""

    name: str = "run"
    task: Task = field(default_factory=Task)
    inner: Inner = field(default_factory=Inner)
    outer: Outer = field(default_factory=Outer)
    rounds: Rounds = field(default_factory=Rounds)
    end: End = field(default_factory=End)
