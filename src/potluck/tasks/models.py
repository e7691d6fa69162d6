"""Models of transformers, made of what a recipe and its run's files say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig

from potluck.errors import CorruptData, RecipeError
from potluck.recipe import Recipe
from potluck.recipe.checks import check_config
from potluck.tasks.lora import adapted

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

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


def read_config(raw: bytes) -> Any:
    """The config of a run's model.

    Raises:
        CorruptData: it is none.
        RecipeError: transformers knows no such model, or it could fetch and run code.
    """
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"config.json is not JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise CorruptData("config.json is not a model's config: it lacks a model_type")
    check_config(values, "config.json")
    kind = values.pop("model_type")
    try:
        return AutoConfig.for_model(kind, **values)
    except _LIBRARY_ERRORS as error:
        raise RecipeError(f"transformers can't make a {kind!r} model of task.config: {error}") from error


def make_model(auto: Any, config: Any, recipe: Recipe, base: Path | None, **loading: Any) -> Any:
    """A new model in fp32 on the CPU, with the recipe's adapters if it has any, its random weights drawn from
    the recipe's seed.

    Args:
        auto: the class of transformers that knows the models of the task (``AutoModelForCausalLM``).
        config: the model's.
        recipe: the run's.
        base: the recipe's own directory, given by the host alone: if the recipe names a checkpoint, the
            weights are then the checkpoint's. All others take the weights from the run; those that are not
            trained from the Hub's cache on this machine, if they are there.
        loading: how a checkpoint is loaded besides.

    Raises:
        RecipeError: the model can't be made, or the checkpoint can't be had.
    """
    # Nothing outside may notice that random numbers were drawn.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.task.seed)
        try:
            model = _weighted(auto, config, recipe, base, loading).float()
            return adapted(model, recipe.task) if recipe.task.lora.rank else model
        except _LIBRARY_ERRORS as error:
            raise RecipeError(f"transformers can't make the recipe's model: {error}") from error


def _weighted(auto: Any, config: Any, recipe: Recipe, base: Path | None, loading: dict[str, Any]) -> Any:
    checkpoint = recipe.task.checkpoint

    def load(source: str, **how: Any) -> Any:
        # Nothing but safetensors: other formats can hold code.
        safe = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
        return auto.from_pretrained(source, config=config, **safe, **loading, **how)

    if checkpoint and base is not None:
        folder = base / checkpoint
        return load(str(folder) if folder.is_dir() else checkpoint)
    if recipe.task.lora.rank and _HUB_NAME.fullmatch(checkpoint):
        found = _cached(load, checkpoint)
        if found is not None:
            return found
    return auto.from_config(config, trust_remote_code=False)


def _cached(load: Callable[..., Any], checkpoint: str) -> Any:
    """The checkpoint, if the Hub's cache on this machine has it, whole and of the config's shape."""
    try:
        return load(checkpoint, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError):
        return None
