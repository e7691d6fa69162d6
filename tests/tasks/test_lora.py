"""Adapters on a checkpoint: what is trained, what joiners get, and what is exported."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from peft import AutoPeftModelForCausalLM  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from potluck.data.assets import build_assets  # noqa: E402
from potluck.errors import RecipeError, UsageError  # noqa: E402
from potluck.peer.frozen import Frozen  # noqa: E402
from potluck.peer.handover import Handover  # noqa: E402
from potluck.peer.trainer import Trainer  # noqa: E402
from potluck.recipe import Lora, Recipe  # noqa: E402
from potluck.tasks import task  # noqa: E402
from potluck.tasks.causal_lm import CausalLM  # noqa: E402
from tests.tiny import RECIPE, write_text  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = Lora(4, 8, "q_proj, v_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the text, and a checkpoint that was trained a little."""
    folder = write_text(tmp_path_factory.mktemp("base"))
    whole = CausalLM(RECIPE, build_assets(RECIPE, base=folder))
    model = whole.model()
    whole.train(model, whole.optimizer(model), islice(whole.random_batches(1), 10))
    whole.export(model, folder / "trained")
    return folder


def recipe_of(lora: Lora = LORA) -> Recipe:
    tuned = replace(RECIPE.task, config={}, checkpoint="trained", tokenizer="trained", lora=lora)
    return replace(RECIPE, task=tuned)


@pytest.fixture
def lm(base: Path) -> CausalLM:
    recipe = recipe_of()
    made = task(recipe, build_assets(recipe, base=base))
    assert isinstance(made, CausalLM)
    return made


def trained(lm: CausalLM, base: Path) -> Any:
    model = lm.model(base=base)
    lm.train(model, lm.optimizer(model), islice(lm.random_batches(2), 30))
    return model


def test_only_adapters_are_exchanged_and_the_checkpoint_stays_as_it_is(lm: CausalLM, base: Path) -> None:
    model = lm.model(base=base)
    tensors = Trainer(model, Handover(lambda *_: None)).tensors
    assert len(tensors) == 4
    assert all("lora_" in spec.name and 4 in spec.shape for spec in tensors)
    before, digest = lm.evaluate(model)[0], Frozen(model).digest()
    lm.train(model, lm.optimizer(model), islice(lm.random_batches(2), 30))
    assert lm.evaluate(model)[0] < before - 0.05
    assert Frozen(model).digest() == digest
    started = AutoModelForCausalLM.from_pretrained(base / "trained")
    assert before == pytest.approx(lm.evaluate(started)[0], rel=1e-6)


def test_a_joiner_without_the_checkpoint_has_the_same_tensors(lm: CausalLM, base: Path) -> None:
    host, joiner = lm.model(base=base), lm.model()
    shapes = [(name, p.shape, p.requires_grad) for name, p in host.named_parameters()]
    assert [(name, p.shape, p.requires_grad) for name, p in joiner.named_parameters()] == shapes
    assert Frozen(host).header == Frozen(joiner).header
    assert Frozen(host).digest() != Frozen(joiner).digest()


def test_the_hubs_cache_on_this_machine_is_looked_into(
    lm: CausalLM, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []
    real = AutoModelForCausalLM.from_pretrained

    def load(source: str, local_files_only: bool, **how: Any) -> Any:
        asked.append((source, local_files_only))
        return real(base / "trained", **how)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    lm.recipe = replace(lm.recipe, task=replace(lm.recipe.task, checkpoint="owner/name"))
    cached = lm.model()
    assert asked == [("owner/name", True)]
    monkeypatch.undo()
    assert Frozen(cached).digest() == Frozen(task_of(lm, "trained").model(base=base)).digest()


@pytest.mark.parametrize("damage", ["cut short", "of another shape"])
def test_a_damaged_checkpoint_in_the_hubs_cache_keeps_nobody_out(
    lm: CausalLM, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    shutil.copytree(base / "trained", tmp_path / "cached")
    weights = tmp_path / "cached" / "model.safetensors"
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        tensors = {name: value[..., :-1].contiguous() for name, value in load_file(weights).items()}
        save_file(tensors, weights, {"format": "pt"})
    real, errors = AutoModelForCausalLM.from_pretrained, []

    def load(source: str, local_files_only: bool, **how: Any) -> Any:
        try:
            return real(tmp_path / "cached", **how)
        except Exception as error:
            errors.append(error)
            raise

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    lm.recipe = replace(lm.recipe, task=replace(lm.recipe.task, checkpoint="owner/name"))
    joiner = lm.model()
    assert len(errors) == 1
    monkeypatch.undo()
    assert Frozen(joiner).header == Frozen(task_of(lm, "trained").model(base=base)).header


def task_of(lm: CausalLM, checkpoint: str) -> CausalLM:
    lm.recipe = replace(lm.recipe, task=replace(lm.recipe.task, checkpoint=checkpoint))
    return lm


def test_adapters_are_exported_as_peft_has_them_or_merged(lm: CausalLM, base: Path, tmp_path: Path) -> None:
    model = trained(lm, base)
    said = lm.sample(model, "The 1", 20)
    loss = lm.evaluate(model)[0]
    lm.recipe = replace(lm.recipe, task=replace(lm.recipe.task, checkpoint=str(base / "trained")))
    lm.export(model, tmp_path / "adapters")
    names = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    assert json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["r"] == 4
    lm.export(model, tmp_path / "whole", merged=True)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert not [name for name, _ in read.named_parameters() if "lora" in name]
    assert lm.evaluate(read)[0] == pytest.approx(loss, rel=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    ids = read.generate(
        tokenizer("The 1", return_tensors="pt")["input_ids"], max_new_tokens=20, do_sample=False
    )
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == said


def test_peft_reads_the_adapters(lm: CausalLM, base: Path, tmp_path: Path) -> None:
    lm.recipe = replace(lm.recipe, task=replace(lm.recipe.task, checkpoint=str(base / "trained")))
    model = trained(lm, base)
    lm.export(model, tmp_path / "adapters")
    read = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters")
    assert lm.evaluate(read)[0] == pytest.approx(lm.evaluate(model)[0], rel=1e-6)


def test_a_whole_model_has_nothing_to_merge(base: Path, tmp_path: Path) -> None:
    whole = CausalLM(RECIPE, build_assets(RECIPE, base=base))
    with pytest.raises(UsageError, match="leave --merged out"):
        whole.export(whole.model(), tmp_path / "whole", merged=True)


def test_targets_that_the_model_lacks(base: Path) -> None:
    recipe = recipe_of(Lora(4, 8, "wishful"))
    with pytest.raises(RecipeError, match=r"can't make the recipe's model: .*wishful"):
        task(recipe, build_assets(recipe, base=base)).model()
    everything = recipe_of(Lora(4))
    model = task(everything, build_assets(everything, base=base)).model()
    targeted = {
        name.split(".lora_")[0].split(".")[-1] for name, p in model.named_parameters() if p.requires_grad
    }
    assert targeted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_peft_may_be_missing(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(
        RecipeError, match=r"task\.lora needs the package peft: pip install 'potluck\[lora\]'"
    ):
        lm.model()
