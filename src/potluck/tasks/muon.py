"""Muon for the matrices within a model, AdamW for all else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch

MOMENTUM = 0.95
ITERATIONS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Matrices move by their momentum made orthogonal, scaled as AdamW's steps are (arXiv 2502.16982), so
    that both share a learning rate.

    Args:
        matrices: weights of two dimensions, at least one.
        others: AdamW's groups, each with its ``weight_decay``; perhaps none.
    """

    def __init__(
        self,
        matrices: list[torch.nn.Parameter],
        others: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self._matrices = self.param_groups[0]
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas) if others else None
        if self._adamw is not None:
            # The very same groups: who sets a learning rate here sets AdamW's.
            self.param_groups.extend(self._adamw.param_groups)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for weight in self._matrices["params"]:
            if weight.grad is not None:
                self._move(weight, self._matrices["lr"], self._matrices["weight_decay"])
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def _move(self, weight: torch.nn.Parameter, lr: float, weight_decay: float) -> None:
        assert weight.grad is not None
        state: dict[str, Any] = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].mul_(MOMENTUM).add_(weight.grad)
        update = orthogonal(weight.grad.add(momentum, alpha=MOMENTUM))
        weight.mul_(1 - lr * weight_decay)
        weight.add_(update, alpha=-0.2 * lr * math.sqrt(max(weight.shape)))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly U Vᵀ of a matrix U S Vᵀ: its singular values become 0.7 to 1.2, by Newton-Schulz iterations.

    In bf16 where that is fast; Keller Jordan's constants, https://kellerjordan.github.io/posts/muon/.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x.float() if matrix.device.type == "cpu" else x.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return (x.T if tall else x).to(matrix.dtype)
