"""Loops of one's own, Accelerate, compiled models and Lightning."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.pair import train_with_a_death

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_a_loop_of_ones_own_goes_on_when_the_host_is_killed(tmp_path: Path) -> None:
    with train_with_a_death("train_plain.py", tmp_path, victim="host") as pair:
        pair.until(lambda: pair.observer.over is not None, 20, "the end")
        assert pair.observer.over == "all 250 blocks of the data are in the model, each once"


def test_a_loop_with_accelerate_goes_on_when_the_joiner_is_killed(tmp_path: Path) -> None:
    train_with_a_death("train_accelerate.py", tmp_path, victim="joiner").end()


def test_a_compiled_model_and_one_that_is_not_are_in_one_run(tmp_path: Path) -> None:
    with train_with_a_death("train_compiled.py", tmp_path, victim="host", joiner=["compile"]) as pair:
        names = [tensor.name for tensor in pair.observer._node.genesis.tensors]
        assert names == ["0.weight", "2.weight", "2.bias", "4.weight", "4.bias"]


def test_lightning_goes_on_when_the_joiner_is_killed(tmp_path: Path) -> None:
    train_with_a_death("train_lightning.py", tmp_path, victim="joiner").end()
