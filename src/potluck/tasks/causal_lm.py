"""Causal language modelling: next-token prediction with any model of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from potluck.data.tokens import bits_per_byte, heldout_batches, windows
from potluck.recipe import Recipe
from potluck.tasks.exporting import write_export
from potluck.tasks.lora import merged as with_adapters
from potluck.tasks.lora import write_adapters
from potluck.tasks.models import make_model
from potluck.tasks.text import Text
from potluck.tasks.training import Batch, Trained, evaluating, loss_of

_TEMPERATURE = 0.8


class CausalLM(Trained):
    """A causal language model, its text and its loss, as a recipe and the run's files define them.

    Raises:
        RecipeError: transformers can't make such a model.
        CorruptData: a file is missing or is not what it should be.
    """

    def __init__(self, recipe: Recipe, assets: Mapping[str, bytes]) -> None:
        self.recipe = recipe
        self.text = Text(recipe, assets)

    measure = "bits per byte"
    """What the second figure of ``evaluate`` is."""

    @property
    def step_tokens(self) -> int:
        """Tokens of one inner step."""
        return self.recipe.task.batch * self.recipe.task.context

    def model(self, *, base: Path | None = None) -> Any:
        """A new model, as ``models.make_model``.

        Raises:
            RecipeError: the model can't be made, or the checkpoint can't be had.
        """
        return make_model(AutoModelForCausalLM, self.text.config, self.recipe, base)

    @property
    def blocks(self) -> int:
        """Batches in an epoch of the training text."""
        return self.text.blocks

    def batches(self, positions: Iterable[int]) -> Iterator[Batch]:
        """The batches at these positions of the data: ``input_ids`` and ``labels``, ``[batch, context]``.

        In an epoch every window of the text comes once; its last batch may be smaller.
        """
        return (_batch(self.text.batch(position)) for position in positions)

    def random_batches(self, seed: int) -> Iterator[Batch]:
        """Endless batches of windows drawn at random, to train without a run: ``[batch, context]`` each."""
        task = self.recipe.task
        for ids in windows(self.text.train, task.context, task.batch, np.random.default_rng(seed)):
            yield _batch(ids)

    def evaluate(self, model: torch.nn.Module, max_batches: int | None = None) -> tuple[float, float]:
        """Loss on the held-out text: nats per token, and bits per byte."""
        nats, rows = 0.0, 0
        task, text = self.recipe.task, self.text
        with evaluating(model):
            for ids in islice(heldout_batches(text.heldout, task.context, task.batch), max_batches):
                nats += loss_of(model, _batch(ids)).item() * len(ids)
                rows += len(ids)
        loss = nats / rows
        return loss, bits_per_byte(loss, len(text.heldout), text.heldout_bytes)

    def sample(self, model: torch.nn.Module, prompt: str, n: int, seed: int | None = None) -> str:
        """The prompt's continuation by up to ``n`` tokens: the likeliest, or drawn at random from a seed."""
        start = self.text.tokenizer.encode(prompt, add_special_tokens=False).ids
        ids = start or [self.text.end or 0]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with evaluating(model) as device:
            for _ in range(n):
                seen = torch.tensor([ids[-self.recipe.task.context :]], device=device)
                logits = model(input_ids=seen).logits[0, -1].float().cpu()
                if generator is None:
                    ids.append(int(logits.argmax()))
                else:
                    chances = torch.softmax(logits / _TEMPERATURE, 0)
                    ids.append(int(torch.multinomial(chances, 1, generator=generator)))
                if ids[-1] == self.text.end:
                    break
        return cast("str", self.text.tokenizer.decode(ids))

    def export(self, model: torch.nn.Module, directory: Path | str, *, merged: bool = False) -> None:
        """Writes the model and its tokenizer so that ``from_pretrained(directory)`` reads them; of a model
        with adapters those alone, in peft's format, or the model that they are ``merged`` into. That uses the
        model up.

        It is written beside the directory and put in its place when whole; an earlier export is replaced.

        Raises:
            UsageError: the directory holds something else than an export; or there is nothing to merge.
            StoreError: the disk refuses.
        """
        whole: Any = with_adapters(model) if merged else model

        def write(folder: Path) -> None:
            if self.recipe.task.lora.rank and not merged:
                write_adapters(whole, folder)
            else:
                whole.save_pretrained(folder)
            word = self.text.end_word
            self.text.wrapped(bos_token=word, eos_token=word, pad_token=word).save_pretrained(folder)

        write_export(self.recipe, directory, write)


def _batch(ids: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
    rows = torch.from_numpy(ids)
    return {"input_ids": rows, "labels": rows}
