"""The files of a run: what the host prepares once, and every joiner gets from its peers by digest."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from potluck.data.text import hold_out, load_text
from potluck.data.tokens import END, pack, read_tokenizer, train_tokenizer
from potluck.errors import RecipeError
from potluck.recipe import Recipe
from potluck.recipe.checks import bpe_vocab, check_config

log = logging.getLogger(__name__)

MAX_ASSETS_BYTES = 1 << 30


def build_assets(recipe: Recipe, *, base: Path | None = None) -> dict[str, bytes]:
    """The files that a built-in task needs; a joiner needs nothing else: no text, no download.

    ``tokenizer.json`` and ``config.json`` are as Hugging Face has them; ``train.bin`` and ``heldout.bin``
    are little-endian tokens, of 16 bits up to a vocabulary of 65,536 and of 32 above;
    ``meta.json`` holds ``heldout_bytes``, the length of the held-out text.

    Args:
        recipe: with a built-in task.
        base: the directory that its paths are relative to; the working directory by default.

    Raises:
        RecipeError: the text, the tokenizer or the model can't be had, or it all is over 1 GiB.
    """
    recipe.validate()
    base = base or Path()
    train, held = hold_out(load_text(recipe.task.text, base=base))
    vocab = bpe_vocab(recipe.task.tokenizer)
    if vocab is None:
        tokenizer = pretrained_file(recipe.task.tokenizer, "tokenizer.json", base)
    else:
        tokenizer = train_tokenizer(train, vocab)
    config = _config(recipe, tokenizer, base)
    end = config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    end = end if isinstance(end, int) else None
    assets = {
        "tokenizer.json": tokenizer,
        "config.json": json.dumps(config, sort_keys=True).encode(),
        "train.bin": _little_endian(pack(tokenizer, train, end)),
        "heldout.bin": _little_endian(pack(tokenizer, held, end)),
        "meta.json": json.dumps({"heldout_bytes": sum(len(text.encode()) for _, text in held)}).encode(),
    }
    total = sum(map(len, assets.values()))
    if total > MAX_ASSETS_BYTES:
        raise RecipeError(f"the packed text is {total:,} bytes, over {MAX_ASSETS_BYTES:,}: bring less text")
    log.info("packed %d documents into %.1f MB for everyone who joins", len(train), total / 1e6)
    return assets


def pretrained_file(source: str, name: str, base: Path) -> bytes:
    """One small file of a model: from a directory, or else from the Hugging Face Hub.

    Raises:
        RecipeError: there is none.
    """
    folder = base / source
    try:
        if folder.is_dir():
            return (folder / name).read_bytes()
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(source, name)).read_bytes()
    except ImportError as error:
        raise RecipeError(
            f"{source} is no directory here, and to fetch it takes: pip install 'potluck[train]'"
        ) from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{name} of {source!r} can't be had, from {folder} or the Hub: {error}") from error


def _config(recipe: Recipe, tokenizer: bytes, base: Path) -> dict[str, Any]:
    """The model's config: the checkpoint's, or the recipe's with what follows from the tokenizer."""
    task = recipe.task
    read = read_tokenizer(tokenizer)
    vocab = read.get_vocab_size()
    if task.checkpoint:
        config = _checkpoint_config(task.checkpoint, base)
    else:
        end = read.token_to_id(END)
        implied = {"vocab_size": vocab} | ({} if end is None else {"bos_token_id": end, "eos_token_id": end})
        config = {**implied, **task.config}
    if isinstance(config.get("vocab_size"), int) and config["vocab_size"] < vocab:
        raise RecipeError(
            f"the model's vocab_size is {config['vocab_size']}, and the tokenizer has {vocab} tokens: "
            "leave vocab_size out of task.config, or name another tokenizer"
        )
    return config


def _checkpoint_config(checkpoint: str, base: Path) -> dict[str, Any]:
    try:
        config = json.loads(pretrained_file(checkpoint, "config.json", base))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"config.json of {checkpoint} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise RecipeError(f"config.json of {checkpoint} is not a table")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    check_config(config, f"{checkpoint}: config")
    return config


def _little_endian(tokens: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    return tokens.astype(tokens.dtype.newbyteorder("<")).tobytes()
