"""Tasks: what a run trains for people who bring no loop of their own. Some are built in; others are own code,
which runs only where the machine's owner says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from potluck.data.assets import build_assets
from potluck.errors import RecipeError
from potluck.recipe import Recipe
from potluck.recipe.kinds import KINDS, is_own_code

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Work(Protocol):
    """A task on the files of a run: model, data, loss, and what is said and written of it."""

    recipe: Recipe

    measure: str
    """What the second figure of ``evaluate`` is."""

    @property
    def blocks(self) -> int:
        """Batches in an epoch, at least one."""

    def model(self, *, base: Path | None = None) -> Any:
        """A new model in fp32 on the CPU, with the same tensors on every machine; ``base`` is the directory
        that the recipe's paths are relative to, given by the host alone.
        """

    def batches(self, positions: Iterable[int]) -> Iterator[Any]:
        """The batches at these positions of the data; position p is batch p mod ``blocks`` of epoch
        p div ``blocks``.
        """

    def optimizer(
        self,
        model: torch.nn.Module,
        done: Callable[[], float] = lambda: 0.0,
        tokens: Callable[[], float] = lambda: math.inf,
    ) -> torch.optim.Optimizer:
        """The inner optimizer; ``done`` tells the share of the run that is done, 0 to 1, and ``tokens`` the
        run's tokens.
        """

    def train(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Any],
        on_loss: Callable[[float], None] | None = None,
    ) -> None:
        """Inner steps until the batches end, or until what hooks on ``optimizer.step`` ends them."""

    def evaluate(self, model: torch.nn.Module, max_batches: int | None = None) -> tuple[float, float]:
        """Loss on data that is held out, and ``measure``."""

    def sample(self, model: torch.nn.Module, prompt: str, n: int, seed: int | None = None) -> str:
        """What the model makes of a prompt, in words."""

    def export(self, model: torch.nn.Module, directory: Path | str, *, merged: bool = False) -> None:
        """Write the model into a directory."""


def permit(recipe: Recipe, allow_code: str = "") -> None:
    """Refuses a recipe whose task is no built-in one, or own code other than what is allowed here.

    Args:
        recipe: the run's.
        allow_code: the ``module:function`` that may run on this machine, said by its owner.

    Raises:
        RecipeError: why, and what to do.
    """
    kind = recipe.task.kind
    if kind in KINDS or (is_own_code(kind) and kind == allow_code):
        return
    if is_own_code(kind):
        but = f", and what is allowed is {allow_code}" if allow_code else ""
        raise RecipeError(
            f"this run trains own code, {kind}{but}: look at that module on this machine, and if it may run "
            f"here add --allow-code {kind} (in Python allow_code={kind!r}); it never comes over the network"
        )
    raise RecipeError(
        f"task.kind = {kind!r} is no built-in task (there are {', '.join(KINDS)}): this run trains code "
        "that its host wrote; get that code from the host and start it on this machine"
    )


def prepare(recipe: Recipe, base: Path, allow_code: str = "") -> dict[str, bytes]:
    """The run's files, made by its host. Of own code: what ``assets(recipe, base)`` of its module returns, if
    it has that function.

    Raises:
        RecipeError: what the recipe names can't be had, or as ``permit``.
    """
    permit(recipe, allow_code)
    if recipe.task.kind in KINDS:
        return build_assets(recipe, base=base)
    module, _ = _own(recipe.task.kind)
    return dict(module.assets(recipe, base)) if hasattr(module, "assets") else {}


def task(recipe: Recipe, assets: Mapping[str, bytes], allow_code: str = "") -> Work:
    """The task that a recipe names, on the run's files. Code comes with Potluck or from you, never from the
    network.

    Raises:
        RecipeError: as ``permit``, a package is missing, or the model can't be made.
        CorruptData: the files are not those of this task.
    """
    permit(recipe, allow_code)
    kind = recipe.task.kind
    if kind not in KINDS:
        _, make = _own(kind)
        work = make(recipe, assets)
        lacking = [name for name in WORK if not hasattr(work, name)]
        if lacking:
            raise RecipeError(f"{kind} made a {type(work).__name__} without {', '.join(lacking)}")
        return work
    try:
        return _built_in(kind)(recipe, assets)
    except ImportError as error:
        raise RecipeError(f"{kind} needs the package {error.name}: pip install 'potluck[train]'") from error


WORK = sorted(name for name in {*vars(Work), *Work.__annotations__} if not name.startswith("_"))
"""What every task has."""


_HOMES = {
    "causal-lm": ("causal_lm", "CausalLM"),
    "masked-lm": ("masked_lm", "MaskedLM"),
    "image-classification": ("image_classification", "ImageClassification"),
}


def _built_in(kind: str) -> Callable[[Recipe, Mapping[str, bytes]], Work]:
    """The class of a built-in task, which imports PyTorch and transformers."""
    module, name = _HOMES[kind]
    found: Callable[[Recipe, Mapping[str, bytes]], Work] = getattr(
        import_module(f"potluck.tasks.{module}"), name
    )
    return found


def _own(kind: str) -> tuple[Any, Callable[[Recipe, Mapping[str, bytes]], Work]]:
    """Own code that is allowed: its module, and the function that makes its work."""
    name, _, function = kind.partition(":")
    try:
        module = import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"{kind} can't be imported ({error}): install its package here, or put its directory on "
            "PYTHONPATH"
        ) from error
    if not hasattr(module, function):
        raise RecipeError(f"{name} ({module.__file__}) has no {function}: is it of another version?")
    return module, getattr(module, function)
