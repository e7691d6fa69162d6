"""Shared-out data: every block is in the model exactly once, whoever dies or joins."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import potluck
from tests.integration.peer_program import SAMPLES, dataset, model, recipe
from tests.integration.swarm import Swarm

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

BLOCKS = SAMPLES // 8


def test_every_block_is_included_once_through_deaths_and_joins(swarm: Callable[..., Swarm]) -> None:
    s = swarm(0, 2)
    s.join("p2", "p3", "p4")
    share = 2 * SAMPLES
    s.until(lambda: s.view.tokens > 0.15 * share, 60, "some data is in")
    s.peers["p3"].kill()
    s.join("p5")
    s.until(lambda: s.view.tokens > 0.4 * share, 60, "more data is in")
    s.peers["p1"].kill()
    s.peers["p4"].signal(signal.SIGSTOP)
    s.until(lambda: "p4" not in s.training(), 20, "the silent peer is seen as gone")
    s.until(lambda: s.view.tokens > 0.6 * share, 60, "most data is in")
    s.peers["p4"].signal(signal.SIGCONT)
    s.until(lambda: s.observer.over is not None, 120, "the run is over")
    assert "each once" in str(s.observer.over)
    assert s.view.leases.included == [(0, 2 * BLOCKS)]
    assert s.view.tokens == 2 * SAMPLES, "and no sample counts twice"
    told = " ".join(text for _, text in s.events)
    assert "(gone) are free again" in told
    ends = [s.peers[name].wait("digest", 30) for name in ("p2", "p4", "p5")]
    assert len({end["digest"] for end in ends}) == 1


def test_data_of_ones_own_in_a_run_of_one(tmp_path: Path) -> None:
    trained, options = model(), {"directory": tmp_path, "listen": "127.0.0.1"}
    with potluck.host(recipe(0, 1), trained, **options) as run:
        with pytest.raises(potluck.PotluckError, match="this dataset has 5 samples, the run's 12000"):
            run.batches(torch.zeros(5, 64))
        optimizer = run.optimizer(torch.optim.SGD(trained.parameters(), lr=1e-4))
        rows: list[tuple[float, ...]] = []
        for batch in run.batches(dataset(), collate=torch.stack):
            assert batch.shape == (8, 64)
            trained(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            rows += [tuple(row[:3].tolist()) for row in batch]
    assert run.over == f"all {BLOCKS:,} blocks of the data are in the model, each once"
    assert sorted(rows) == sorted(tuple(row[:3].tolist()) for row in dataset())


def test_a_run_that_does_not_share_its_data_says_so(tmp_path: Path) -> None:
    trained, options = model(), {"directory": tmp_path, "listen": "127.0.0.1"}
    with potluck.host(recipe(5, 0), trained, **options) as run:
        with pytest.raises(
            potluck.PotluckError, match=r"Recipe\(data=Data\(samples=len\(dataset\), block=32\)\)"
        ):
            run.batches(dataset())
        with pytest.raises(potluck.PotluckError, match="does not share its data out"):
            run.blocks()
