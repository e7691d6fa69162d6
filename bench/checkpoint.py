"""A checkpoint to train on from, for ``bench.convergence``: made by a plain AdamW loop, kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from potluck.peer.handover import Handover
from potluck.peer.layout import Vector
from potluck.peer.trainer import Trainer
from potluck.recipe import Recipe
from potluck.tasks.causal_lm import CausalLM

NAME = "theta"
DATA_SEED = 900_000
"""Of the checkpoint's own text; those who train on from it draw other windows."""


class Begun(CausalLM):
    """A task whose models begin with ``first`` [n] instead of random weights, if there is one."""

    def __init__(self, recipe: Recipe, assets: Mapping[str, bytes], first: Vector | None = None) -> None:
        super().__init__(recipe, assets)
        self._first = first

    def model(self, *, base: Path | None = None) -> Any:
        model = super().model(base=base)
        if self._first is not None:
            vectors(model).write(self._first)
        return model


def vectors(model: Any) -> Trainer:
    """Its parameters as one vector."""
    return Trainer(model, Handover(lambda *_: None))


@dataclass(frozen=True)
class Checkpoints:
    """In ``folder``, one for each seed: its first weights after ``tokens`` with the recipe's own AdamW."""

    folder: Path
    tokens: int

    def of(self, recipe: Recipe, assets: Mapping[str, bytes], seed: int) -> Vector:
        """Trained first, if it isn't there yet."""
        path = self.folder / f"seed-{seed}-{self.tokens}.safetensors"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({NAME: self._trained(recipe, assets, seed)}, path)
        found: Vector = load_file(path)[NAME]
        return found

    def _trained(self, recipe: Recipe, assets: Mapping[str, bytes], seed: int) -> Vector:
        lm = Begun(recipe, assets)
        model = lm.model()
        batches = islice(lm.random_batches(DATA_SEED + seed), self.tokens // lm.step_tokens)
        lm.train(model, lm.optimizer(model), batches)
        return vectors(model).read()
