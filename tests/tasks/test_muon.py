"""Muon as the built-in task's inner optimizer; `tests/paper/test_muloco.py` has its arithmetic."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from potluck.data.assets import build_assets  # noqa: E402
from potluck.recipe import Inner  # noqa: E402
from potluck.tasks import task  # noqa: E402
from potluck.tasks.causal_lm import CausalLM  # noqa: E402
from potluck.tasks.muon import Muon  # noqa: E402
from tests.tiny import RECIPE as TINY  # noqa: E402
from tests.tiny import write_text  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

MUON = Inner("muon", lr=1e-2, warmup_steps=4)
RECIPE = replace(TINY, inner=MUON)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return build_assets(RECIPE, base=write_text(tmp_path_factory.mktemp("text")))


def with_inner(assets: dict[str, bytes], inner: Inner) -> CausalLM:
    return task(replace(RECIPE, inner=inner), assets)


def test_a_weight_without_gradient_stays_and_a_closure_is_called() -> None:
    still, other = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(3, 1))
    before = still.detach().clone()
    optimizer = Muon([still], [{"params": [other], "weight_decay": 0.0}], 0.1, 0.5, (0.9, 0.95))

    def closure() -> float:
        optimizer.zero_grad()
        loss = other.square().sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert torch.equal(still, before)


def test_matrices_within_the_model_are_muons_and_the_rest_adamws(assets: dict[str, bytes]) -> None:
    lm = with_inner(assets, MUON)
    model = lm.model()
    muon, *others = lm.optimizer(model).param_groups
    names = {weight: name for name, weight in model.named_parameters()}
    assert {names[weight].split(".")[-2] for weight in muon["params"]} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    tables, vectors = ({names[weight] for weight in group["params"]} for group in others)
    assert tables == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all("norm" in name for name in vectors)
    assert [group["weight_decay"] for group in (muon, *others)] == [0.1, 0.1, 0.0]


def test_it_learns_and_hooks_are_called_once_a_step(assets: dict[str, bytes]) -> None:
    lm = with_inner(assets, MUON)
    model, steps = lm.model(), 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    start, _ = lm.evaluate(model)
    # Once there has been an AdamW, its class calls hooks.
    with_inner(assets, Inner(lr=1e-2)).optimizer(model).step()
    optimizer = lm.optimizer(model)
    optimizer.register_step_post_hook(count)
    lm.train(model, optimizer, islice(lm.random_batches(1), 60))
    assert steps == 60
    assert lm.evaluate(model)[0] < 0.5 * start


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_learning_rate_warms_up_and_cools_down(assets: dict[str, bytes], kind: str) -> None:
    lm = with_inner(assets, Inner(kind, lr=1e-2, warmup_steps=3, cooldown=0.5))
    shares = [0, 0, 0, 0, 0.25, 0.5, 0.75, 0.875, 1]
    left = iter(shares)
    optimizer, rates = lm.optimizer(lm.model(), lambda: next(left)), []
    for _ in shares:
        optimizer.step()
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        rates.append(100 * rate)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.5, 0.25, 0])
