"""Causal language modelling: next-token prediction with any model of transformers."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from potluck.data.blocks import blocks_of, samples_of
from potluck.data.tokens import (
    Tokens,
    bits_per_byte,
    heldout_batches,
    read_tokenizer,
    rows,
    token_kind,
    windows,
)
from potluck.errors import CorruptData, RecipeError, StoreError, UsageError
from potluck.recipe import Recipe
from potluck.recipe.checks import check_config
from potluck.recipe.schedule import follow
from potluck.tasks.muon import Muon

Batch = dict[str, torch.Tensor]

_FILES = ("tokenizer.json", "config.json", "train.bin", "heldout.bin", "meta.json")
_EXPORT_SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".toml", ".txt")
_EXPORT_MARK = "potluck-recipe.toml"
_TEMPERATURE = 0.8
_BETAS = (0.9, 0.95)

# What transformers and torch raise at a config that names no possible model, or a checkpoint that is none.
_LIBRARY_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


class CausalLM:
    """A causal language model, its text and its loss, as a recipe and the run's files define them.

    Raises:
        RecipeError: transformers can't make such a model.
        CorruptData: a file is missing or is not what it should be.
    """

    def __init__(self, recipe: Recipe, assets: Mapping[str, bytes]) -> None:
        missing = [name for name in _FILES if name not in assets]
        if missing:
            raise CorruptData(f"the run's files lack {', '.join(missing)}: its host made them wrongly")
        self.recipe = recipe
        self.tokenizer = read_tokenizer(assets["tokenizer.json"])
        self.config = _config(assets["config.json"], recipe.task.context)
        vocab = self.tokenizer.get_vocab_size()
        self._train = _tokens(assets["train.bin"], vocab, "train.bin")
        self._rows = rows(self._train, recipe.task.context)
        self._heldout = _tokens(assets["heldout.bin"], vocab, "heldout.bin")
        self._heldout_bytes = _heldout_bytes(assets["meta.json"])

    @property
    def step_tokens(self) -> int:
        """Tokens of one inner step."""
        return self.recipe.task.batch * self.recipe.task.context

    def model(self, *, base: Path | None = None) -> Any:
        """A new model in fp32 on the CPU, its random weights drawn from the recipe's seed.

        Args:
            base: the recipe's own directory, given by the host alone: if the recipe names a checkpoint, the
                weights are then the checkpoint's. All others take the weights from the run.

        Raises:
            RecipeError: the model can't be made, or the checkpoint can't be had.
        """
        checkpoint = self.recipe.task.checkpoint
        # Nothing outside may notice that random numbers were drawn.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.task.seed)
            try:
                if checkpoint and base is not None:
                    return _pretrained(checkpoint, base)
                make = cast("Any", AutoModelForCausalLM.from_config)
                model = make(self.config, trust_remote_code=False)
            except _LIBRARY_ERRORS as error:
                raise RecipeError(f"transformers can't make the recipe's model: {error}") from error
        return model.float()

    @property
    def blocks(self) -> int:
        """Batches in an epoch of the training text."""
        return blocks_of(len(self._rows), self.recipe.task.batch)

    def batches(self, positions: Iterable[int]) -> Iterator[Batch]:
        """The batches at these positions of the data: ``input_ids`` and ``labels``, ``[batch, context]``.

        In an epoch every window of the text comes once; its last batch may be smaller.
        """
        task = self.recipe.task
        for position in positions:
            numbers = samples_of(position, len(self._rows), task.batch, self.recipe.data.seed)
            yield _batch(self._rows[numbers].astype(np.int64))

    def random_batches(self, seed: int) -> Iterator[Batch]:
        """Endless batches of windows drawn at random, to train without a run: ``[batch, context]`` each."""
        task = self.recipe.task
        for ids in windows(self._train, task.context, task.batch, np.random.default_rng(seed)):
            yield _batch(ids)

    def optimizer(
        self,
        model: torch.nn.Module,
        done: Callable[[], float] = lambda: 0.0,
        tokens: Callable[[], float] = lambda: math.inf,
    ) -> torch.optim.Optimizer:
        """The recipe's inner optimizer and its learning rate; vectors (norms, biases) do not decay.

        Args:
            done: tells the share of the run that is done, 0 to 1, by which the learning rate falls.
            tokens: tells the run's tokens, by which it rises.
        """
        inner = self.recipe.inner
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        matrices = _matrices(model) if inner.kind == "muon" else []
        rest = [weight for weight in trained if all(weight is not matrix for matrix in matrices)]
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in rest if weight.ndim > 1], "weight_decay": inner.weight_decay},
            {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer: torch.optim.Optimizer
        if matrices:
            optimizer = Muon(matrices, groups, inner.lr, inner.weight_decay, _BETAS)
        else:
            optimizer = torch.optim.AdamW(groups, lr=inner.lr, betas=_BETAS)
        optimizer.register_step_pre_hook(follow(inner.rate, done, tokens))
        return optimizer

    def train(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Batch],
        on_loss: Callable[[float], None] | None = None,
    ) -> None:
        """Inner steps until the batches end, or until what hooks on ``optimizer.step`` ends them.

        ``on_loss`` gets each batch's loss, in nats per token, before the step that it leads to.
        """
        model.train()
        for batch in batches:
            loss = _loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.recipe.inner.clip)
            if on_loss is not None:
                on_loss(loss.item())
            optimizer.step()
            optimizer.zero_grad()

    @torch.no_grad()
    def evaluate(self, model: torch.nn.Module, max_batches: int | None = None) -> tuple[float, float]:
        """Loss on the held-out text: nats per token, and bits per byte."""
        training = model.training
        model.eval()
        nats, rows = 0.0, 0
        task = self.recipe.task
        for ids in islice(heldout_batches(self._heldout, task.context, task.batch), max_batches):
            nats += _loss(model, _batch(ids)).item() * len(ids)
            rows += len(ids)
        model.train(training)
        loss = nats / rows
        return loss, bits_per_byte(loss, len(self._heldout), self._heldout_bytes)

    @torch.no_grad()
    def sample(self, model: torch.nn.Module, prompt: str, n: int, seed: int | None = None) -> str:
        """The prompt's continuation by up to ``n`` tokens: the likeliest, or drawn at random from a seed."""
        training = model.training
        model.eval()
        device = next(model.parameters()).device
        end = _first(self.config.eos_token_id)
        start = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        ids = start or [end or 0]
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for _ in range(n):
            seen = torch.tensor([ids[-self.recipe.task.context :]], device=device)
            logits = model(input_ids=seen).logits[0, -1].float().cpu()
            if generator is None:
                ids.append(int(logits.argmax()))
            else:
                chances = torch.softmax(logits / _TEMPERATURE, 0)
                ids.append(int(torch.multinomial(chances, 1, generator=generator)))
            if ids[-1] == end:
                break
        model.train(training)
        return cast("str", self.tokenizer.decode(ids))

    def export(self, model: torch.nn.Module, directory: Path | str) -> None:
        """Writes the model and its tokenizer so that ``from_pretrained(directory)`` reads them.

        It is written beside the directory and put in its place when whole; an earlier export is replaced.

        Raises:
            UsageError: the directory holds something else than an export.
            StoreError: the disk refuses.
        """
        target = Path(directory).resolve()
        if target.exists() and not _replaceable(target):
            raise UsageError(f"{target} holds other files: name a new directory for the export")
        draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("new", "old"))
        try:
            draft.mkdir(parents=True)
            self._write(model, draft)
            if target.exists():
                target.rename(old)
            draft.rename(target)
        except OSError as error:
            raise StoreError(f"the model can't be written to {target}: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    def _write(self, model: Any, folder: Path) -> None:
        end = _first(self.config.eos_token_id)
        word = None if end is None else self.tokenizer.id_to_token(end)
        special = {} if word is None else {"bos_token": word, "eos_token": word, "pad_token": word}
        # Positions past the context were never trained.
        limit = self.recipe.task.context
        wrap = cast("Any", PreTrainedTokenizerFast)
        tokenizer = wrap(tokenizer_object=self.tokenizer, model_max_length=limit, **special)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / _EXPORT_MARK).write_text(self.recipe.to_toml(), "utf-8")


def _matrices(model: Any) -> list[torch.nn.Parameter]:
    """The trained matrices within the model: none that reads tokens or positions in, or gives tokens out."""
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    output = model.get_output_embeddings()
    tables += [] if output is None else [output.weight]
    return [
        weight
        for weight in model.parameters()
        if weight.requires_grad and weight.ndim == 2 and all(weight is not table for table in tables)
    ]


def _config(raw: bytes, context: int) -> Any:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"config.json is not JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise CorruptData("config.json is not a model's config: it lacks a model_type")
    check_config(values, "config.json")
    kind = values.pop("model_type")
    try:
        config = AutoConfig.for_model(kind, **values)
    except _LIBRARY_ERRORS as error:
        raise RecipeError(f"transformers can't make a {kind!r} model of task.config: {error}") from error
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit < context:
        raise RecipeError(f"task.context = {context} is over the model's max_position_embeddings = {limit}")
    return config


def _pretrained(checkpoint: str, base: Path) -> Any:
    folder = base / checkpoint
    source = str(folder) if folder.is_dir() else checkpoint
    # Nothing but safetensors: other formats can hold code.
    return AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )


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


def _batch(ids: np.ndarray[Any, np.dtype[np.int64]]) -> Batch:
    rows = torch.from_numpy(ids)
    return {"input_ids": rows, "labels": rows}


def _loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean loss in nats per predicted token; the model itself shifts the labels by one."""
    device = next(model.parameters()).device
    return cast("torch.Tensor", model(**{name: rows.to(device) for name, rows in batch.items()}).loss)


def _first(ids: int | list[int] | None) -> int | None:
    return (ids[0] if ids else None) if isinstance(ids, list) else ids


def _replaceable(directory: Path) -> bool:
    """Empty, or an export of ours that nobody has put anything into."""
    if not directory.is_dir():
        return False
    names = {path.name for path in directory.iterdir() if path.is_file()}
    others = {path for path in directory.iterdir() if path.suffix not in _EXPORT_SUFFIXES or path.is_dir()}
    return not others and (_EXPORT_MARK in names or not names)
