"""The files of a run: what the host prepares once, and every joiner gets from its peers by digest."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from potluck.data.images import hold_out_images, load_images
from potluck.data.text import hold_out, load_text
from potluck.data.tokens import END, MASK, pack, read_tokenizer, train_tokenizer
from potluck.errors import RecipeError
from potluck.recipe import Recipe
from potluck.recipe.checks import bpe_vocab, check_config
from potluck.recipe.kinds import IMAGES

log = logging.getLogger(__name__)

MAX_ASSETS_BYTES = 1 << 30


def build_assets(recipe: Recipe, *, base: Path | None = None) -> dict[str, bytes]:
    """The files that a built-in task needs; a joiner needs nothing else: no text, no download.

    On text: ``tokenizer.json`` and ``config.json`` as Hugging Face has them; ``train.bin`` and
    ``heldout.bin``, little-endian tokens of 16 bits up to a vocabulary of 65,536 and of 32 above;
    ``meta.json`` with ``heldout_bytes``, the length of the held-out text. On images: ``config.json``, and
    ``train.safetensors`` and ``heldout.safetensors`` with ``images`` and ``labels`` as in
    ``data.images.Images``.

    Args:
        recipe: with a built-in task.
        base: the directory that its paths are relative to; the working directory by default.

    Raises:
        RecipeError: the data, the tokenizer or the model can't be had, or it all is over 1 GiB.
    """
    recipe.validate()
    assets = (_image_files if recipe.task.kind == IMAGES else _text_files)(recipe, base or Path())
    total = sum(map(len, assets.values()))
    if total > MAX_ASSETS_BYTES:
        raise RecipeError(f"the packed data is {total:,} bytes, over {MAX_ASSETS_BYTES:,}: bring less of it")
    log.info("packed the data into %.1f MB for everyone who joins", total / 1e6)
    return assets


def _text_files(recipe: Recipe, base: Path) -> dict[str, bytes]:
    train, held = hold_out(load_text(recipe.task.text, base=base))
    vocab = bpe_vocab(recipe.task.tokenizer)
    if vocab is None:
        tokenizer = pretrained_file(recipe.task.tokenizer, "tokenizer.json", base)
    else:
        special = (END, MASK) if recipe.task.kind == "masked-lm" else (END,)
        tokenizer = train_tokenizer(train, vocab, special)
    config = _config(recipe, tokenizer, base)
    end = config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    end = end if isinstance(end, int) else None
    return {
        "tokenizer.json": tokenizer,
        "config.json": json.dumps(config, sort_keys=True).encode(),
        "train.bin": _little_endian(pack(tokenizer, train, end)),
        "heldout.bin": _little_endian(pack(tokenizer, held, end)),
        "meta.json": json.dumps({"heldout_bytes": sum(len(text.encode()) for _, text in held)}).encode(),
    }


def _image_files(recipe: Recipe, base: Path) -> dict[str, bytes]:
    from safetensors.numpy import save

    task = recipe.task
    images = load_images(task.images, base=base)
    train, held = hold_out_images(images)
    names = dict(enumerate(images.names))
    classes = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    if task.checkpoint:
        config = {**_checkpoint_config(task.checkpoint, base), **classes}
    else:
        _, channels, height, width = images.pixels.shape
        size = height if height == width else [height, width]
        config = {"num_channels": channels, "image_size": size, **classes, **task.config}
    return {
        "config.json": json.dumps(config, sort_keys=True).encode(),
        "train.safetensors": save({"images": train.pixels, "labels": train.labels}),
        "heldout.safetensors": save({"images": held.pixels, "labels": held.labels}),
    }


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
