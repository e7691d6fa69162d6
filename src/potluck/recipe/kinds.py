"""Kinds of tasks, and what each needs of a recipe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from potluck.errors import RecipeError

if TYPE_CHECKING:
    from potluck.recipe import Recipe

TEXT = ("causal-lm", "masked-lm")
IMAGES = "image-classification"
KINDS = (*TEXT, IMAGES)
"""Tasks that are built in."""

CUSTOM = "custom"

_OWN_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_own_code(kind: str) -> bool:
    """Whether a kind names a function in a module: ``module:function``."""
    return len(kind) <= 200 and _OWN_CODE.fullmatch(kind) is not None


def check_task(recipe: Recipe) -> None:
    """Checks that the task and what else the recipe says go together.

    Raises:
        RecipeError: naming the key, its value and what is allowed.
    """
    task, kind = recipe.task, recipe.task.kind
    if kind == CUSTOM:
        if recipe.end.epochs and not recipe.data.samples:
            raise RecipeError(
                f"end.epochs = {recipe.end.epochs} needs data.samples: nobody knows else what an epoch is"
            )
        return
    if recipe.data.samples:
        raise RecipeError(f'data.samples is for data of your own: task.kind = "{kind}" counts its own')
    if kind not in KINDS:
        return
    if bool(task.config) == bool(task.checkpoint):
        raise RecipeError(
            f'task.kind = "{kind}" needs either task.config (a Hugging Face config, to start from '
            "random weights) or task.checkpoint (to start from trained ones), and not both"
        )
    if task.config and not isinstance(task.config.get("model_type"), str):
        raise RecipeError('task.config needs a model_type, such as "llama" or "gpt2"')
    if kind in TEXT and task.checkpoint and task.tokenizer.startswith("bpe-"):
        raise RecipeError(
            f'task.tokenizer = "{task.tokenizer}" does not fit task.checkpoint: trained weights need '
            "the tokenizer that they were trained with; name its directory or repository"
        )
    if task.lora.rank and not (kind in TEXT and task.checkpoint):
        raise RecipeError(
            f"task.lora.rank = {task.lora.rank} needs task.checkpoint and a task on text: adapters stand on "
            "trained weights"
        )
