"""Built-in tasks: what a run trains for people who bring no code of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from potluck.errors import RecipeError
from potluck.recipe import Recipe

if TYPE_CHECKING:
    from potluck.tasks.causal_lm import CausalLM


def task(recipe: Recipe, assets: Mapping[str, bytes]) -> CausalLM:
    """The built-in task that a recipe names, on the run's files (``data.assets.build_assets``).

    Code comes with Potluck or from you, never from the network.

    Raises:
        RecipeError: the recipe names none, a package is missing, or the model can't be made.
        CorruptData: the files are not those of this task.
    """
    if recipe.task.kind != "causal-lm":
        raise RecipeError(
            f"task.kind = {recipe.task.kind!r} is no built-in task (there is causal-lm): this run trains "
            "code that its host wrote; get that code from the host and start it on this machine"
        )
    try:
        from potluck.tasks.causal_lm import CausalLM
    except ImportError as error:
        raise RecipeError(
            f"causal-lm needs the package {error.name}: pip install 'potluck[train]'"
        ) from error
    return CausalLM(recipe, assets)
