"""Inner steps, for any task: the recipe's optimizer, its learning rate, and the loop around a loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch

from potluck.recipe import Recipe
from potluck.recipe.schedule import follow
from potluck.tasks.muon import Muon

Batch = dict[str, torch.Tensor]

_BETAS = (0.9, 0.95)


def inner_optimizer(
    recipe: Recipe,
    model: torch.nn.Module,
    done: Callable[[], float],
    tokens: Callable[[], float] = lambda: math.inf,
) -> torch.optim.Optimizer:
    """The recipe's inner optimizer and its learning rate; vectors (norms, biases) do not decay.

    Args:
        recipe: the run's.
        model: its parameters with ``requires_grad`` are trained.
        done: tells the share of the run that is done, 0 to 1, by which the learning rate falls.
        tokens: tells the run's tokens, by which it rises.
    """
    inner = recipe.inner
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


def take_steps(
    recipe: Recipe,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Iterable[torch.Tensor],
    on_loss: Callable[[float], None] | None = None,
) -> None:
    """An inner step for each loss, which is computed when it is asked for, until they end or until what hooks
    on ``optimizer.step`` ends them.

    ``on_loss`` gets each loss before the step that it leads to.
    """
    model.train()
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.inner.clip)
        if on_loss is not None:
            on_loss(loss.item())
        optimizer.step()
        optimizer.zero_grad()


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[torch.device]:
    """The model measures and is not trained, for a while; gives the device that it is on."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def run_model(model: torch.nn.Module, batch: Batch) -> Any:
    """What a model of transformers makes of a batch, on its own device."""
    device = next(model.parameters()).device
    return model(**{name: rows.to(device) for name, rows in batch.items()})


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean loss of a batch, as a model of transformers computes it from the labels, in nats."""
    return cast("torch.Tensor", run_model(model, batch).loss)


class Trained:
    """How the built-in tasks train, whose batches are those of transformers."""

    recipe: Recipe

    def optimizer(
        self,
        model: torch.nn.Module,
        done: Callable[[], float] = lambda: 0.0,
        tokens: Callable[[], float] = lambda: math.inf,
    ) -> torch.optim.Optimizer:
        """The recipe's inner optimizer, as ``inner_optimizer``."""
        return inner_optimizer(self.recipe, model, done, tokens)

    def train(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[Batch],
        on_loss: Callable[[float], None] | None = None,
    ) -> None:
        """Inner steps until the batches end, or until what hooks on ``optimizer.step`` ends them.

        ``on_loss`` gets each batch's loss, in nats per token, masked token or image, before the step that it
        leads to.
        """
        take_steps(self.recipe, model, optimizer, (loss_of(model, batch) for batch in batches), on_loss)


def _matrices(model: Any) -> list[torch.nn.Parameter]:
    """The trained matrices within the model: none that reads tokens or positions in, or gives tokens out."""
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tables += [] if output is None else [output.weight]
    return [
        weight
        for weight in model.parameters()
        if weight.requires_grad and weight.ndim == 2 and all(weight is not table for table in tables)
    ]
