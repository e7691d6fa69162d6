"""What one inner step was: the tokens that went into the model and their loss, seen by hooks or told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class Watch:
    """Tokens and losses since the last step."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._losses: list[tuple[torch.Tensor | float, float]] = []
        self._shares = False
        self._now = 0.0
        self._told = False
        self._model: torch.nn.Module | None = None

    def hooks(self, model: torch.nn.Module) -> list[Any]:
        """Look at what goes through a model in training mode; returns what takes the hooks out again. A copy
        of the model has the hooks too, and does not count.
        """
        self._model = model
        # Were they compiled with the model, it would be compiled anew whenever a count changes.
        aside: Any = torch.compiler.disable
        return [
            model.register_forward_pre_hook(aside(self._count), with_kwargs=True),
            model.register_forward_hook(aside(self._note_loss), with_kwargs=True),
        ]

    def tell(self, tokens: float, loss: torch.Tensor | float | None) -> None:
        """So much went into the model. Once that was told, what hooks see does not count."""
        if not self._told:
            self._told, self._tokens, self._losses = True, 0.0, []
        self._add(tokens, loss)

    def take(self) -> tuple[float, float | None]:
        """Tokens since the last step, at least 1, and their mean loss, if it was seen."""
        tokens, losses = self._tokens or 1.0, self._losses
        self._tokens, self._losses = 0.0, []
        if not losses:
            return tokens, None
        weighed = sum(float(loss) * weight for loss, weight in losses)
        return tokens, weighed if self._shares else weighed / sum(weight for _, weight in losses)

    def _add(self, tokens: float, loss: torch.Tensor | float | None) -> None:
        self._tokens += tokens
        if loss is not None:
            self._losses.append((loss.detach() if isinstance(loss, torch.Tensor) else loss, tokens or 1.0))

    def _counts(self, module: torch.nn.Module) -> bool:
        return module is self._model and module.training and not self._told

    def _count(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._counts(module):
            self._now = tokens_of((*args, *kwargs.values()))
            self._tokens += self._now

    def _note_loss(self, module: torch.nn.Module, args: object, kwargs: dict[str, Any], output: Any) -> None:
        loss = getattr(output, "loss", None)
        if self._counts(module) and isinstance(loss, torch.Tensor) and loss.numel() == 1:
            # So transformers asks for this batch's share of a whole step's mean.
            self._shares = kwargs.get("num_items_in_batch") is not None
            self._losses.append((loss.detach(), 1.0 if self._shares else self._now or 1.0))


def tokens_of(values: Iterable[Any]) -> float:
    """Tokens of the first tensor: its elements if they are integers (ids), else its rows (samples)."""
    for value in values:
        if isinstance(value, torch.Tensor) and value.ndim:
            return float(value.shape[0] if value.is_floating_point() else value.numel())
    return 0.0
