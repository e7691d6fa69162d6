"""Masked language modelling: words left out, with any model of transformers that reads both ways
(Devlin et al., arXiv 1810.04805, §3.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModelForMaskedLM

from potluck.data.tokens import MASK, heldout_batches
from potluck.errors import RecipeError
from potluck.recipe import Recipe
from potluck.tasks.exporting import write_export
from potluck.tasks.lora import merged as with_adapters
from potluck.tasks.lora import write_adapters
from potluck.tasks.models import make_model
from potluck.tasks.text import Text
from potluck.tasks.training import Batch, Trained, evaluating, run_model

CHOSEN = 0.15
"""The share of tokens that are to be told."""

MASKED, RANDOM = 0.8, 0.1
"""Of those, the share that is masked, and that becomes any token. The others stay."""

_MASKS = (MASK, "[MASK]", "<mask>")
_NOT_ASKED = -100
_HELD_OUT_SEED = 1


class MaskedLM(Trained):
    """A masked language model, its text and its loss, as a recipe and the run's files define them. Its second
    measure is the share of masked tokens that are told rightly.

    Raises:
        RecipeError: transformers can't make such a model, or its tokenizer has no mask.
        CorruptData: a file is missing or is not what it should be.
    """

    measure = "accuracy"

    def __init__(self, recipe: Recipe, assets: Mapping[str, bytes]) -> None:
        self.recipe = recipe
        self.text = Text(recipe, assets)
        known = [word for word in _MASKS if self.text.tokenizer.token_to_id(word) is not None]
        if not known:
            raise RecipeError(
                f"the tokenizer {recipe.task.tokenizer!r} has no mask ({', '.join(_MASKS)}): take one that "
                'was made for masked language models, or "bpe-N"'
            )
        self._mask_word = known[0]
        self._mask = int(self.text.tokenizer.token_to_id(known[0]))

    def model(self, *, base: Path | None = None) -> Any:
        """A new model, as ``models.make_model``.

        Raises:
            RecipeError: the model can't be made, or the checkpoint can't be had.
        """
        return make_model(AutoModelForMaskedLM, self.text.config, self.recipe, base)

    @property
    def blocks(self) -> int:
        """Batches in an epoch of the training text."""
        return self.text.blocks

    def batches(self, positions: Iterable[int]) -> Iterator[Batch]:
        """The batches at these positions of the data: ``input_ids`` and ``labels``, ``[batch, context]``,
        with -100 where nothing is asked. What is masked follows from seed and position.
        """
        for position in positions:
            draw = np.random.default_rng((self.recipe.data.seed, position))
            yield self._masked(self.text.batch(position), draw)

    def evaluate(self, model: torch.nn.Module, max_batches: int | None = None) -> tuple[float, float]:
        """Loss on the held-out text, with the same tokens masked each time: nats per masked token, and the
        share of them that is told rightly.
        """
        nats, right, asked = 0.0, 0, 0
        task, draw = self.recipe.task, np.random.default_rng(_HELD_OUT_SEED)
        with evaluating(model):
            for ids in islice(heldout_batches(self.text.heldout, task.context, task.batch), max_batches):
                batch = self._masked(ids, draw)
                found = run_model(model, batch)
                those = batch["labels"] != _NOT_ASKED
                count = int(those.sum())
                nats += found.loss.item() * count
                right += int((found.logits.argmax(-1).cpu() == batch["labels"])[those].sum())
                asked += count
        return nats / asked, right / asked

    def sample(self, model: torch.nn.Module, prompt: str, n: int, seed: int | None = None) -> str:
        """The prompt with each mask in it told, the likeliest token one after the other; or, if it has none,
        with ``n`` more tokens.
        """
        tokenizer = self.text.tokenizer
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        ids = (ids if self._mask in ids else [*ids, *[self._mask] * n])[-self.recipe.task.context :]
        with evaluating(model) as device:
            while self._mask in ids:
                place = ids.index(self._mask)
                logits = model(input_ids=torch.tensor([ids], device=device)).logits[0, place].float().cpu()
                logits[self._mask] = -torch.inf
                ids[place] = int(logits.argmax())
        return cast("str", tokenizer.decode(ids))

    def export(self, model: torch.nn.Module, directory: Path | str, *, merged: bool = False) -> None:
        """As ``CausalLM.export``."""
        whole: Any = with_adapters(model) if merged else model

        def write(folder: Path) -> None:
            if self.recipe.task.lora.rank and not merged:
                write_adapters(whole, folder)
            else:
                whole.save_pretrained(folder)
            word = self.text.end_word
            self.text.wrapped(eos_token=word, pad_token=word, mask_token=self._mask_word).save_pretrained(
                folder
            )

        write_export(self.recipe, directory, write)

    def _masked(self, ids: np.ndarray[Any, np.dtype[np.int64]], draw: np.random.Generator) -> Batch:
        """What is asked of ``ids`` [batch, context]; at least one token of them."""
        chosen = draw.random(ids.shape) < CHOSEN
        chosen.flat[draw.integers(ids.size)] = True
        fate, others = (
            draw.random(ids.shape),
            draw.integers(0, self.text.tokenizer.get_vocab_size(), ids.shape),
        )
        seen = np.where(chosen & (fate < MASKED), self._mask, ids)
        seen = np.where(chosen & (fate >= 1 - RANDOM), others, seen)
        labels = np.where(chosen, ids, _NOT_ASKED)
        return {"input_ids": torch.from_numpy(seen), "labels": torch.from_numpy(labels)}
