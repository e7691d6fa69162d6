"""What the benchmark of joiners compares is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from bench import joiner  # noqa: E402
from bench.joiner import CASES, Case, World  # noqa: E402

from potluck.data.assets import build_assets  # noqa: E402
from tests.tiny import RECIPE, write_text  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(joiner, "recipe", lambda seed: RECIPE)
    monkeypatch.setattr(joiner, "STEPS", 2)
    monkeypatch.setattr(joiner, "EVALUATED", 2)
    return World(build_assets(RECIPE, base=write_text(tmp_path)), 0, 2)


def test_all_cases_go_on_from_the_same_swarm(world: World) -> None:
    before = [weight.clone() for weight in world.swarm.theta]
    stays = world.losses(Case(), 2)
    once = world.losses(Case("zero"), 2)
    assert world.losses(Case(), 2) == stays
    assert once != stays
    assert world.losses(Case("zero", churn=True), 2)[0] == once[0], "one round of churn is one newcomer"
    assert all(torch.equal(a, b) for a, b in zip(before, world.swarm.theta, strict=True))


@pytest.mark.parametrize("state", ["zero", "warm_20", "neighbour"])
def test_a_newcomer_has_what_is_shared_and_the_inner_state_of_its_case(world: World, state: str) -> None:
    assert state in {case.state for case in CASES}
    peer = world._newcomer(Case(state), 0, world.swarm)
    assert all(torch.equal(a, b) for a, b in zip(peer.weights, world.swarm.theta, strict=True))
    own, other = peer.optimizer.state_dict()["state"], world.swarm.peers[1].optimizer.state_dict()["state"]
    if state == "neighbour":
        assert torch.equal(own[0]["exp_avg"], other[0]["exp_avg"])
        assert own[0]["step"] == other[0]["step"] == 4
    else:
        assert own == {}
    peer.train(1)
    rate = peer.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(RECIPE.inner.lr / (21 if state == "warm_20" else 1))
