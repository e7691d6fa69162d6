"""transformers.Trainer with the callback, and what is built on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.pair import train_with_a_death

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_the_trainer_goes_on_when_the_host_is_killed(tmp_path: Path) -> None:
    with train_with_a_death("train_trainer.py", tmp_path, victim="host") as pair:
        joiner = pair.programs["joiner"]
        logs = [line for line in joiner.lines if "potluck_round" in line]
        assert any("'potluck_peers': 2" in line for line in logs), joiner.tail
        assert "'potluck_peers': 1" in logs[-1], "the host is gone"
        assert "'potluck_round': 12" in logs[-1], "the run's last round"


def test_only_the_adapters_of_lora_are_exchanged(tmp_path: Path) -> None:
    with train_with_a_death("train_lora.py", tmp_path, victim="joiner") as pair:
        names = [tensor.name for tensor in pair.observer._node.genesis.tensors]
        assert names
        assert all(".lora_A." in name or ".lora_B." in name for name in names)
        assert (tmp_path / "host" / "adapters" / "adapter_model.safetensors").is_file()


def test_sft_goes_on_when_the_host_is_killed(tmp_path: Path) -> None:
    train_with_a_death("train_sft.py", tmp_path, victim="host").end()
