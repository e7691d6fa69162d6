"""Tasks as people use them: real processes, adapters on a checkpoint, and code of their own."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path

import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from potluck.data.assets import build_assets  # noqa: E402
from potluck.recipe import Recipe  # noqa: E402
from potluck.tasks.causal_lm import CausalLM  # noqa: E402

from .shells import LISTEN, START_S, Shells, write_recipe  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.timeout(170)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "recipes.md"


def test_adapters_on_a_checkpoint_that_joiners_lack(shells: Shells, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, rounds=12)
    whole = Recipe.load(path)
    lm = CausalLM(whole, build_assets(whole, base=tmp_path))
    model = lm.model()
    lm.train(model, lm.optimizer(model), islice(lm.random_batches(0), 30))
    lm.export(model, tmp_path / "trained")
    text = re.sub(r"\[task\.config\].*?(?=\[inner\])", "", path.read_text("utf-8"), flags=re.S)
    text = text.replace(
        'tokenizer = "bpe-320"', 'tokenizer = "trained"\ncheckpoint = "trained"\nlora.rank = 4'
    )
    path.write_text(text, "utf-8")

    anna = shells.peer("anna", "host", str(path))
    invite = anna.wait("invite")["invite"]
    bert = shells.peer("bert", "join", invite)
    bert.wait("note", containing="taking those")
    bert.wait("note", containing="are the run's now")
    ends = [peer.wait("summary", START_S) for peer in (anna, bert)]
    assert ends[0]["state"] == ends[1]["state"]
    assert ends[0]["round"] == 12
    home = ("--directory", str(shells.home("bert")), "--listen", LISTEN)
    for directory, more in (("adapters", ()), ("whole", ("--merged",))):
        export = shells.open("export", invite, str(tmp_path / directory), *more, *home)
        assert export.wait("summary")["state"] == ends[0]["state"]
    written = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    assert all("lora_" in name for name in written)
    assert (tmp_path / "whole" / "model.safetensors").stat().st_size > 10_000
    assert not (tmp_path / "adapters" / "model.safetensors").exists()


def test_a_task_of_ones_own_runs_where_it_is_allowed(
    shells: Shells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "mytask.py").write_text(code, "utf-8")
    paths = filter(None, [str(tmp_path / "code"), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[task]\nkind = "mytask:make"\nbatch = 16\n[rounds]\ntokens = 60_000\n[end]\nrounds = 8\n', "utf-8"
    )
    refused = shells.peer("refused", "host", str(recipe))
    assert "--allow-code mytask:make" in refused.wait("error")["text"]
    assert refused.ended() == 2

    anna = shells.peer("anna", "host", str(recipe), "--allow-code", "mytask:make")
    invite = anna.wait("invite")["invite"]
    carl = shells.peer("carl", "join", invite)
    assert "this run trains own code" in carl.wait("error")["text"]
    assert carl.ended() == 2
    monkeypatch.setenv("POTLUCK_ALLOW_CODE", "mytask:make")
    bert = shells.peer("bert", "join", invite)
    ends = [peer.wait("summary", START_S) for peer in (anna, bert)]
    assert ends[0]["state"] == ends[1]["state"]
    home = ("--directory", str(shells.home("anna")), "--listen", LISTEN)
    export = shells.open("export", invite, str(tmp_path / "model"), *home)
    assert export.wait("summary")["state"] == ends[0]["state"]
    assert load_file(tmp_path / "model" / "model.safetensors")["weight"].shape == (1, 8)
