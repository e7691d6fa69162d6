"""Mixed precision and gradient accumulation, as people write them: what is a step, and what its tokens."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from potluck.peer.handover import CutRequest, Handover  # noqa: E402
from potluck.peer.layout import Vector  # noqa: E402
from potluck.peer.trainer import Trainer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


class Loop:
    """A model in training, and what the network sees of it."""

    def __init__(self, fused: bool = False) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, fused=fused)
        self.cuts: list[tuple[CutRequest, Vector, float, int]] = []
        self.handover = Handover(lambda *cut: self.cuts.append(cut))
        self.handover.threads = torch.get_num_threads()
        self.trainer = Trainer(self.model, self.handover)
        self.trainer.attach(self.optimizer, None)

    def loss(self, rows: int = 16) -> torch.Tensor:
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
        loss: torch.Tensor = (self.model(x) - x.sum(1, keepdim=True)).square().mean()
        return loss

    @property
    def done(self) -> tuple[int, float]:
        """Steps and tokens since the last cut."""
        return self.handover.work.steps, self.handover.work.tokens


def test_bf16_autocast_trains_fp32_parameters_which_are_exchanged() -> None:
    loop, losses = Loop(), []
    for _ in range(60):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loop.loss()
        loss.backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert loop.done == (60, 960)
    vector = loop.trainer.read()
    assert vector.dtype == np.float32
    rounded = torch.from_numpy(vector).bfloat16().float().numpy()
    assert (vector != rounded).any(), "masters are finer than bf16"


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_grad_scaler_skips_is_no_step_and_its_tokens_count_with_the_next(fused: bool) -> None:
    loop = Loop(fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(spoilt: bool) -> None:
        loss = loop.loss()
        scaler.scale(loss * float("inf") if spoilt else loss).backward()
        scaler.unscale_(loop.optimizer)
        torch.nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
        scaler.step(loop.optimizer)
        scaler.update()
        loop.optimizer.zero_grad()

    step(spoilt=False)
    before = loop.trainer.read()
    assert loop.done == (1, 16)
    loop.handover.request(CutRequest(1, 0, 0))
    step(spoilt=True)
    np.testing.assert_array_equal(loop.trainer.read(), before)
    assert loop.done == (1, 16)
    assert loop.cuts == [], "there was no boundary"
    assert scaler.get_scale() == 512.0
    step(spoilt=False)
    ((_, cut, weight, _),) = loop.cuts
    assert weight == 48
    assert np.isfinite(cut).all()


def test_gradients_that_are_accumulated_are_one_step_of_all_their_tokens() -> None:
    loop, plain = Loop(), Loop()
    for rows in (16, 16, 16):
        (loop.loss(rows) / 3).backward()
    loop.optimizer.step()
    assert loop.done == (1, 48)
    plain.loss().backward()
    plain.optimizer.step()
    np.testing.assert_allclose(loop.trainer.read(), plain.trainer.read(), atol=1e-6)


def test_evaluation_between_steps_is_no_work() -> None:
    loop = Loop()
    loop.loss().backward()
    loop.model.eval()
    with torch.no_grad():
        loop.loss(1000)
    loop.model.train()
    loop.optimizer.step()
    assert loop.done == (1, 16)
