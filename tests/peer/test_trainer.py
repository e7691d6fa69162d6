"""Real models and optimizers, joined to a run by hooks: the user's loop stays the user's."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from potluck.errors import ConnectionLost, ModelMismatch, RunOver, UsageError
from potluck.peer.handover import CutRequest, Handover
from potluck.peer.layout import Carry, Stretch, Vector, carried
from potluck.peer.trainer import Trainer
from potluck.wire.records import TensorSpec


class Tied(nn.Module):
    """An embedding whose weights are the head's, a frozen layer, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.frozen = nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen.requires_grad_(False)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, labels: torch.Tensor | None = None
    ) -> SimpleNamespace:
        logits = self.head(self.frozen(self.embedding(input_ids)) * self.scale)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return SimpleNamespace(loss=loss, logits=logits)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


class Loop:
    """A model in training and what the network would see of it."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, step_tokens: int | None = None
    ) -> None:
        self.cuts: list[tuple[CutRequest, Vector, float, int]] = []
        self.handover = Handover(lambda *cut: self.cuts.append(cut))
        self.handover.threads = torch.get_num_threads()
        self.model, self.trainer = model, Trainer(model, self.handover)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer or torch.optim.SGD(trained, lr=0.1)
        self.trainer.attach(self.optimizer, step_tokens)

    def step(self, *inputs: Any, **named: Any) -> None:
        """What a user writes."""
        self.optimizer.zero_grad()
        output = self.model(*inputs, **named)
        loss = output.loss if isinstance(output, SimpleNamespace) else output.square().mean()
        loss.backward()
        self.optimizer.step()


def ids(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape)).reshape(shape) % 11


# -- what is exchanged -------------------------------------------------------------------------------


def test_frozen_parameters_are_not_exchanged_and_tied_ones_once() -> None:
    trainer = Trainer(Tied(), Handover(lambda *_: None))
    assert trainer.tensors == (TensorSpec("scale", ()), TensorSpec("embedding.weight", (11, 4)))
    assert trainer.read().shape == (45,)


def test_a_compiled_model_is_the_model_that_was_compiled() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    plain = Trainer(model, Handover(lambda *_: None))
    model[0] = torch.compile(model[0], backend="eager")
    compiled = Trainer(torch.compile(model, backend="eager"), Handover(lambda *_: None))
    assert compiled.tensors == plain.tensors
    assert [tensor.name for tensor in plain.tensors] == ["0.weight", "0.bias"]


def test_a_tied_tensor_that_is_written_is_written_in_both_places() -> None:
    model = Tied()
    Trainer(model, Handover(lambda *_: None)).write(np.arange(45, dtype=np.float32))
    assert model.scale.item() == 0
    assert model.head.weight is model.embedding.weight
    np.testing.assert_array_equal(model.head.weight.detach().flatten(), np.arange(1, 45))


@pytest.mark.parametrize("make", [linear, Tied, lambda: nn.Linear(3, 1, bias=False)])
def test_what_is_written_is_read_and_what_is_read_is_a_copy(make: Callable[[], nn.Module]) -> None:
    model = make()
    trainer = Trainer(model, Handover(lambda *_: None))
    before = trainer.read()
    kept = before.copy()
    trainer.write(before + 1)
    np.testing.assert_array_equal(before, kept)
    np.testing.assert_array_equal(trainer.read(), kept + 1)


def test_parameters_of_any_layout_are_written_in_place() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(3, 5).t())
    assert not model.weight.is_contiguous()
    pointer = model.weight.data_ptr()
    trainer = Trainer(model, Handover(lambda *_: None))
    trainer.write(np.arange(15, dtype=np.float32))
    assert model.weight.data_ptr() == pointer
    np.testing.assert_array_equal(model.weight.detach(), np.arange(15).reshape(5, 3))
    np.testing.assert_array_equal(trainer.read(), np.arange(15))


def test_half_precision_is_exchanged_as_fp32() -> None:
    model = linear().to(torch.bfloat16)
    trainer = Trainer(model, Handover(lambda *_: None))
    read = trainer.read()
    assert read.dtype == np.float32
    fine = read + np.float32(1e-5)
    trainer.write(fine)
    assert model.weight.dtype == torch.bfloat16
    expected = torch.from_numpy(fine).to(torch.bfloat16).to(torch.float32)
    np.testing.assert_array_equal(trainer.read(), expected.numpy())


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = linear().requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter with requires_grad"):
        Trainer(model, Handover(lambda *_: None))


# -- the wrong model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ((TensorSpec("weight", (2, 3)),), "bias is 2 here and absent in the run"),
        (
            (TensorSpec("weight", (2, 3)), TensorSpec("bias", (2,)), TensorSpec("scale", ())),
            "scale is absent here and a scalar in the run",
        ),
        ((TensorSpec("weight", (3, 2)), TensorSpec("bias", (2,))), "weight is 2×3 here and 3×2 in the run"),
        ((TensorSpec("bias", (2,)), TensorSpec("weight", (2, 3))), "in another order"),
    ],
)
def test_another_model_is_refused_with_the_first_difference(
    tensors: tuple[TensorSpec, ...], said: str
) -> None:
    with pytest.raises(ModelMismatch, match=said):
        Trainer(linear(), Handover(lambda *_: None)).check(tensors)


def test_the_same_model_passes() -> None:
    for make in (linear, Tied):
        Trainer(make(), Handover(lambda *_: None)).check(Trainer(make(), Handover(lambda *_: None)).tensors)


# -- tokens and losses -------------------------------------------------------------------------------


def test_ids_count_as_tokens_wherever_they_stand() -> None:
    loop = Loop(Tied())
    loop.step(ids(2, 7), labels=ids(2, 7))
    assert loop.handover.work.tokens == 14
    loop.step(input_ids=ids(3, 5), attention_mask=torch.ones(3, 5), labels=ids(3, 5))
    assert loop.handover.work.tokens == 14 + 15
    assert loop.handover.work.steps == 2


def test_rows_of_other_inputs_count_as_tokens() -> None:
    loop = Loop(linear())
    loop.step(torch.ones(5, 3))
    assert loop.handover.work.tokens == 5


def test_several_forwards_of_one_step_add_up_and_evaluation_does_not_count() -> None:
    loop = Loop(linear())
    loop.model.eval()
    loop.model(torch.ones(100, 3))
    loop.model.train()
    for _ in range(3):
        loop.model(torch.ones(4, 3)).sum().backward()
    loop.optimizer.step()
    assert loop.handover.work.tokens == 12
    loop.step(torch.ones(2, 3))
    assert loop.handover.work.tokens == 14


def test_what_one_step_counts_as_can_be_said() -> None:
    loop = Loop(linear(), step_tokens=1000)
    loop.step(torch.ones(5, 3))
    assert loop.handover.work.tokens == 1000


@pytest.mark.parametrize("tokens", [0, -5])
def test_a_step_can_not_count_as_nothing(tokens: int) -> None:
    with pytest.raises(UsageError, match=f"a step of {tokens} tokens counts as nothing"):
        Loop(linear(), step_tokens=tokens)


def test_a_step_whose_inputs_are_not_seen_counts_as_one() -> None:
    loop = Loop(linear())
    loop.model.weight.grad = torch.ones_like(loop.model.weight)
    loop.optimizer.step()
    assert loop.handover.work.tokens == 1


def test_the_loss_is_seen_in_the_models_output() -> None:
    loop = Loop(Tied())
    loop.model.eval()
    expected = loop.model(ids(2, 7), labels=ids(2, 7)).loss.item()
    loop.model.train()
    loop.step(ids(2, 7), labels=ids(2, 7))
    assert loop.handover.work.loss == expected
    silent = Loop(linear())
    silent.step(torch.ones(5, 3))
    assert silent.handover.work.loss is None


def test_a_loss_seen_while_evaluating_is_not_the_trainers() -> None:
    loop = Loop(Tied())
    loop.step(ids(2, 7), labels=ids(2, 7))
    seen = loop.handover.work.loss
    loop.model.eval()
    loop.model(ids(2, 7), labels=torch.full((2, 7), 10))
    assert loop.handover.work.loss == seen


# -- the boundary ------------------------------------------------------------------------------------


def test_a_cut_is_the_model_as_it_is_after_the_step() -> None:
    loop = Loop(linear())
    loop.handover.request(CutRequest(1, 0, 0))
    loop.step(torch.ones(5, 3))
    [(request, local, weight, _)] = loop.cuts
    assert (request.round, weight) == (1, 5)
    np.testing.assert_array_equal(local, loop.trainer.read())
    loop.step(torch.ones(5, 3))
    assert (local != loop.trainer.read()).any(), "the cut is a copy"


def test_a_new_state_carries_the_models_own_progress_over() -> None:
    loop = Loop(linear())
    origin = loop.trainer.read()
    loop.step(torch.ones(5, 3))
    progress = loop.trainer.read() - origin
    theta = origin + 7
    loop.handover.offer(Carry(theta, origin))
    before = loop.trainer.read()
    loop.optimizer.zero_grad()
    loop.optimizer.step()
    np.testing.assert_allclose(loop.trainer.read(), theta + progress, atol=1e-6)
    assert (before != loop.trainer.read()).all()


class Mixed(nn.Module):
    """Parameters of every layout: plain, of half precision, transposed, a scalar, without values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.plain = nn.Parameter(torch.randn(7, 5))
        self.brief = nn.Parameter(torch.randn(11).to(torch.bfloat16))
        self.turned = nn.Parameter(torch.randn(3, 5).t())
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.none = nn.Parameter(torch.empty(0, 3))


def mixed_carries(size: int) -> list[Carry]:
    """A state that was loaded, two that came of rounds, and one of a fragment."""
    chosen = np.random.default_rng(3)
    loaded, first, second, third, *origins = chosen.standard_normal((7, size)).astype(np.float32)
    return [
        Carry(loaded, None),
        Carry(first, origins[0], included=True),
        Carry(second, origins[1]),
        Carry(third, origins[2], stretches=(Stretch(slice(1, 4)), Stretch(slice(33, 40), 0.5))),
    ]


@pytest.mark.parametrize("cut", [False, True], ids=["", "cut"])
@pytest.mark.parametrize("first", [0, 1, 3], ids=["loaded", "carried", "fragment"])
@pytest.mark.parametrize("at_a_time", [3, 1 << 19])
def test_states_are_taken_with_the_bits_of_whole_vectors(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int, first: int, cut: bool
) -> None:
    """Whatever the layout of a parameter, and however many values are handled at a time."""
    monkeypatch.setattr("potluck.peer.values.SLICE", at_a_time)
    model, plain = Mixed(), Mixed()
    loop, other = (
        Loop(model, torch.optim.SGD([model.plain], lr=0.1)),
        Trainer(plain, Handover(lambda *_: None)),
    )
    pointers = [p.data_ptr() for p in model.parameters()]
    carries = mixed_carries(loop.trainer.read().size)[first:]
    expected = carried(other.read(), carries)
    other.write(expected)
    for carry in carries:
        loop.handover.offer(carry)
    if cut:
        loop.handover.request(CutRequest(1, 0, 0))
    loop.trainer.meet()
    np.testing.assert_array_equal(loop.trainer.read(), other.read())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert len(loop.cuts) == cut
    for _, local, *_ in loop.cuts:
        np.testing.assert_array_equal(local, expected)


@pytest.mark.parametrize("offered", [False, True], ids=["", "carried"])
def test_a_cut_has_the_stretches_that_are_asked_for(offered: bool) -> None:
    model = Mixed()
    loop = Loop(model, torch.optim.SGD([model.plain], lr=0.1))
    stretches = (Stretch(slice(3, 9)), Stretch(slice(30, 40)), Stretch(slice(60, 62)))
    carries = mixed_carries(62)[3:] if offered else []
    whole = carried(loop.trainer.read(), carries)
    for carry in carries:
        loop.handover.offer(carry)
    loop.handover.request(CutRequest(1, 0, 0, stretches))
    loop.trainer.meet()
    [(_, local, *_)] = loop.cuts
    for bounds, _ in stretches:
        np.testing.assert_array_equal(local[bounds], whole[bounds])


def test_parameters_that_a_round_has_nothing_of_are_left_alone() -> None:
    """Bits, memory and graphs through them."""
    loop = Loop(linear())
    bias, weight = loop.model.bias.detach().clone(), loop.model.weight.detach().clone()
    loss = (loop.model.bias * loop.model.bias).sum()
    loop.handover.offer(
        Carry(np.ones(8, np.float32), np.zeros(8, np.float32), stretches=(Stretch(slice(2, 5)),))
    )
    loop.trainer.meet()
    loss.backward()
    assert torch.equal(loop.model.bias, bias)
    assert torch.equal((loop.model.weight != weight).reshape(-1), torch.tensor([0, 0, 1, 1, 1, 0]).bool())


def test_a_graph_through_values_that_a_new_state_replaced_is_refused() -> None:
    loop = Loop(linear())
    inputs = torch.ones(5, 3, requires_grad=True)
    output = loop.model(inputs).sum()
    loop.handover.offer(Carry(np.zeros(8, np.float32), None))
    loop.trainer.meet()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_the_optimizers_own_state_is_left_alone() -> None:
    model = linear()
    loop = Loop(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    loop.step(torch.ones(5, 3))
    moment = loop.optimizer.state[model.weight]["exp_avg"].clone()
    loop.handover.offer(Carry(np.zeros(8, np.float32), None))
    loop.trainer.meet()
    np.testing.assert_array_equal(loop.trainer.read(), 0)
    assert torch.equal(loop.optimizer.state[model.weight]["exp_avg"], moment)
    assert model.weight.requires_grad
    assert model.weight.is_leaf


def test_the_end_of_the_run_ends_the_loop_after_the_step() -> None:
    loop = Loop(linear())
    before = loop.trainer.read()
    loop.handover.over = "enough tokens"
    with pytest.raises(RunOver, match="enough tokens"):
        loop.step(torch.ones(5, 3))
    assert (loop.trainer.read() != before).any()


@pytest.mark.parametrize("raises", [True, False])
def test_a_callback_ends_the_loop_or_says_that_it_should(raises: bool) -> None:
    def enough() -> None:
        raise RunOver("good enough")

    loop = Loop(linear())
    loop.trainer._ends = raises
    loop.trainer.at_boundary = enough
    with pytest.raises(RunOver, match="good enough") if raises else contextlib.nullcontext():
        loop.step(torch.ones(5, 3))
    assert (loop.handover.over, loop.handover.ended) == (None, "good enough")


def test_what_ended_the_network_ends_the_loop() -> None:
    loop = Loop(linear())
    loop.handover.failure = ConnectionLost("the disk is on fire")
    with pytest.raises(ConnectionLost, match="on fire"):
        loop.step(torch.ones(5, 3))


def test_one_run_has_one_optimizer_and_detached_hooks_do_nothing() -> None:
    loop = Loop(linear())
    with pytest.raises(UsageError, match="has an optimizer already"):
        loop.trainer.attach(torch.optim.SGD(loop.model.parameters(), lr=0.1), None)
    loop.trainer.detach()
    loop.step(torch.ones(5, 3))
    assert loop.handover.work.steps == 0
    loop.trainer.attach(loop.optimizer, None)
    loop.step(torch.ones(5, 3))
    assert loop.handover.work.steps == 1


def test_a_loop_that_a_library_owns_is_not_ended_by_an_exception_unless_something_failed() -> None:
    loop = Loop(linear())
    loop.trainer.detach()
    loop.trainer.attach(loop.optimizer, None, ends=False)
    loop.handover.over = "enough tokens"
    loop.step(torch.ones(5, 3))
    assert loop.handover.work.steps == 1
    loop.handover.failure = ConnectionLost("the disk is on fire")
    with pytest.raises(ConnectionLost, match="on fire"):
        loop.step(torch.ones(5, 3))


def test_of_an_optimizer_in_another_the_inner_ones_steps_count() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, cpu=True)
    model = linear()
    prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loop = Loop(prepared, optimizer)
    for _ in range(6):
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(torch.ones(5, 3)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    assert (loop.handover.work.steps, loop.handover.work.tokens) == (3, 30)


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_the_share_of_the_machine_is_taken_at_the_boundary(threads: int) -> None:
    loop = Loop(linear())
    loop.handover.threads = threads + 1
    assert torch.get_num_threads() == threads
    loop.step(torch.ones(5, 3))
    assert torch.get_num_threads() == threads + 1


# -- the user's loop ---------------------------------------------------------------------------------


def trained(joined: bool) -> Vector:
    """A usual loop: accumulation, clipping, a schedule; with or without a run around it."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    loop = Loop(model, optimizer) if joined else None
    for number in range(12):
        for _ in range(2):
            inputs = torch.randn(4, 3)
            (model(inputs).square().mean() / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        assert schedule.get_last_lr() == [pytest.approx(1e-2 * min(1.0, (number + 2) / 5))]
    if loop is not None:
        assert (loop.handover.work.steps, loop.handover.work.tokens) == (12, 96)
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def test_a_loop_that_hears_nothing_from_the_run_trains_the_same_bits() -> None:
    np.testing.assert_array_equal(trained(joined=True), trained(joined=False))


def test_an_optimizer_with_a_closure_works() -> None:
    model = linear()
    loop = Loop(model, torch.optim.LBFGS(model.parameters(), max_iter=3))

    def closure() -> torch.Tensor:
        loop.optimizer.zero_grad()
        loss = model(torch.ones(5, 3)).square().mean()
        loss.backward()
        return loss

    loop.optimizer.step(closure)
    assert loop.handover.work.steps == 1
