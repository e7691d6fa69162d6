"""The text of a run, as its files hold it: to train on and held out, with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerFast

from potluck.data.blocks import blocks_of, samples_of
from potluck.data.tokens import Tokens, read_tokenizer, rows, token_kind
from potluck.errors import CorruptData, RecipeError
from potluck.recipe import Recipe
from potluck.tasks.models import read_config

_FILES = ("tokenizer.json", "config.json", "train.bin", "heldout.bin", "meta.json")


class Text:
    """What the tasks on text have in common.

    Raises:
        RecipeError: transformers can't make such a model, or the text is too short.
        CorruptData: a file is missing or is not what it should be.
    """

    def __init__(self, recipe: Recipe, assets: Mapping[str, bytes]) -> None:
        require(assets, _FILES)
        self._recipe = recipe
        self.tokenizer = read_tokenizer(assets["tokenizer.json"])
        self.config = read_config(assets["config.json"])
        context, limit = recipe.task.context, getattr(self.config, "max_position_embeddings", None)
        if isinstance(limit, int) and limit < context:
            raise RecipeError(
                f"task.context = {context} is over the model's max_position_embeddings = {limit}"
            )
        vocab = self.tokenizer.get_vocab_size()
        self.train = _tokens(assets["train.bin"], vocab, "train.bin")
        """Tokens to train on, in one row."""
        self.rows = rows(self.train, context)
        """The same as windows ``[windows, context]``."""
        self.heldout = _tokens(assets["heldout.bin"], vocab, "heldout.bin")
        self.heldout_bytes = _heldout_bytes(assets["meta.json"])

    @property
    def blocks(self) -> int:
        """Batches in an epoch."""
        return blocks_of(len(self.rows), self._recipe.task.batch)

    def batch(self, position: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The windows ``[batch, context]`` at a position of the data: in an epoch each comes once, and the
        last batch may be smaller.
        """
        batch, seed = self._recipe.task.batch, self._recipe.data.seed
        return self.rows[samples_of(position, len(self.rows), batch, seed)].astype(np.int64)

    def wrapped(self, **special: str | None) -> Any:
        """The tokenizer as transformers has it; ``special`` tokens by what they are for."""
        # Positions past the context were never trained.
        limit = self._recipe.task.context
        named = {key: word for key, word in special.items() if word is not None}
        wrap = cast("Any", PreTrainedTokenizerFast)
        return wrap(tokenizer_object=self.tokenizer, model_max_length=limit, **named)

    @property
    def end(self) -> int | None:
        """The token that ends a document, if the model has one."""
        ids = self.config.eos_token_id
        return (ids[0] if ids else None) if isinstance(ids, list) else ids

    @property
    def end_word(self) -> str | None:
        """How that is spelt."""
        return None if self.end is None else self.tokenizer.id_to_token(self.end)


def require(assets: Mapping[str, bytes], names: tuple[str, ...]) -> None:
    """Checks that the run's files are there.

    Raises:
        CorruptData: some are not.
    """
    missing = [name for name in names if name not in assets]
    if missing:
        raise CorruptData(f"the run's files lack {', '.join(missing)}: its host made them wrongly")


def _tokens(raw: bytes, vocab: int, name: str) -> Tokens:
    kind = np.dtype(token_kind(vocab)).newbyteorder("<")
    if len(raw) % kind.itemsize:
        raise CorruptData(f"{name} of {len(raw)} bytes is no whole number of tokens")
    tokens = np.frombuffer(raw, kind)
    if len(tokens) and int(tokens.max()) >= vocab:
        raise CorruptData(f"{name} holds a token that the vocabulary of {vocab} lacks")
    return tokens


def _heldout_bytes(raw: bytes) -> int:
    try:
        size = json.loads(raw)["heldout_bytes"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptData(f"meta.json does not say heldout_bytes: {error}") from error
    if type(size) is not int or size < 1:
        raise CorruptData(f"meta.json says heldout_bytes = {size}")
    return size
