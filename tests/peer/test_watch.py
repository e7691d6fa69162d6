"""What a step was: seen in what goes through a model, or told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from potluck.peer.watch import Watch, tokens_of


class Says(nn.Module):
    """Its loss is what it is given, as in models of transformers."""

    def forward(self, rows: torch.Tensor, loss: float, num_items_in_batch: Any = None) -> SimpleNamespace:
        return SimpleNamespace(loss=torch.tensor(loss))


def watched(model: nn.Module) -> Watch:
    watch = Watch()
    watch.hooks(model)
    return watch


def test_the_loss_of_several_batches_is_their_mean_by_tokens() -> None:
    model = Says()
    watch = watched(model)
    model(torch.ones(3, 2), 1.0)
    model(torch.ones(1, 2), 5.0)
    assert watch.take() == (4.0, 2.0)
    assert watch.take() == (1.0, None)


def test_shares_of_a_whole_steps_loss_add_up() -> None:
    model = Says()
    watch = watched(model)
    model(torch.ones(3, 2), 1.5, num_items_in_batch=torch.tensor(4))
    model(torch.ones(1, 2), 0.5, num_items_in_batch=torch.tensor(4))
    assert watch.take() == (4.0, 2.0)


def test_what_is_told_counts_and_what_is_seen_does_not_any_more() -> None:
    model = Says()
    watch = watched(model)
    model(torch.ones(3, 2), 1.0)
    watch.tell(10, torch.tensor(4.0))
    watch.tell(30, 2.0)
    model(torch.ones(3, 2), 1.0)
    assert watch.take() == (40.0, 2.5)
    model(torch.ones(3, 2), 1.0)
    watch.tell(5, None)
    assert watch.take() == (5.0, None)


def test_a_loss_that_is_told_after_its_step_counts_with_the_next() -> None:
    watch = Watch()
    watch.tell(8, None)
    assert watch.take() == (8.0, None)
    watch.tell(0, 3.0)
    watch.tell(8, None)
    assert watch.take() == (8.0, 3.0)


def test_a_hook_that_is_taken_out_sees_nothing() -> None:
    model, watch = Says(), Watch()
    for hook in watch.hooks(model):
        hook.remove()
    model(torch.ones(3, 2), 1.0)
    assert watch.take() == (1.0, None)


def test_tokens_are_elements_of_ids_and_rows_of_anything_else() -> None:
    assert tokens_of([None, torch.tensor(7), torch.ones(2, 5, dtype=torch.int64), torch.ones(9)]) == 10
    assert tokens_of([torch.ones(2, 5)]) == 2
    assert tokens_of(["text"]) == 0


@pytest.mark.parametrize("how", ["wrapped", "in place", "given compiled"])
def test_a_compiled_model_is_compiled_once_and_counted_each_time(how: str) -> None:
    torch._dynamo.reset()
    compiled = []

    def backend(graph: Any, example: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    # Of PyTorch's own modules, and no others, hooks are compiled with the module.
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    watch = Watch()
    if how == "wrapped":
        watch.hooks(model)
        model = torch.compile(model, backend=backend)
    elif how == "in place":
        watch.hooks(model)
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
        watch.hooks(model)
    for _ in range(12):
        model(torch.ones(4, 2))
    assert watch.take() == (48.0, None)
    assert len(compiled) == 1
