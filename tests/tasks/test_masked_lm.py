from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import AutoModelForMaskedLM, AutoTokenizer  # noqa: E402

from potluck.data.assets import build_assets  # noqa: E402
from potluck.errors import RecipeError  # noqa: E402
from potluck.recipe import Inner, Recipe  # noqa: E402
from potluck.tasks import task  # noqa: E402
from potluck.tasks.masked_lm import MaskedLM  # noqa: E402
from tests.tiny import RECIPE as CAUSAL  # noqa: E402
from tests.tiny import SIZES, write_text  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = replace(
    CAUSAL,
    task=replace(
        CAUSAL.task,
        kind="masked-lm",
        config={
            "model_type": "bert",
            **SIZES,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        batch=16,
    ),
    inner=Inner(lr=1e-2, warmup_steps=4),
)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return build_assets(RECIPE, base=write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture
def lm(assets: dict[str, bytes]) -> MaskedLM:
    made = task(RECIPE, assets)
    assert isinstance(made, MaskedLM)
    return made


def trained(lm: MaskedLM, steps: int) -> Any:
    model = lm.model()
    lm.train(model, lm.optimizer(model), lm.batches(range(steps)))
    return model


def test_what_is_asked_follows_from_the_position_and_is_masked_mostly(lm: MaskedLM) -> None:
    mask = lm.text.tokenizer.token_to_id("<|mask|>")
    one, again = (list(lm.batches(range(lm.blocks))) for _ in range(2))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, again, strict=True))
    seen = torch.cat([batch["input_ids"].flatten() for batch in one])
    labels = torch.cat([batch["labels"].flatten() for batch in one])
    asked = labels != -100
    assert asked.float().mean().item() == pytest.approx(0.15, abs=0.02)
    assert (seen[asked] == mask).float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert (seen[asked] == labels[asked]).float().mean().item() == pytest.approx(0.1, abs=0.04)
    text = torch.from_numpy(lm.text.batch(3)).flatten()
    third, wanted = one[3]["input_ids"].flatten(), one[3]["labels"].flatten()
    assert torch.equal(torch.where(wanted == -100, third, wanted), text)
    assert all((batch["labels"] != -100).any() for batch in one)


def test_training_lowers_the_loss_that_is_measured(lm: MaskedLM) -> None:
    model = lm.model()
    before, by_chance = lm.evaluate(model)
    lm.train(model, lm.optimizer(model), lm.batches(range(100)))
    after, right = lm.evaluate(model)
    assert before == pytest.approx(math.log(400), abs=0.5)
    assert by_chance < 0.05
    assert after < 0.7 * before
    assert right > 3 * by_chance
    assert lm.evaluate(model) == (after, right)
    assert model.training


def test_masks_in_a_prompt_are_told(lm: MaskedLM) -> None:
    model, tokenizer = trained(lm, 20), lm.text.tokenizer
    prompt = "The 1th cat sat on<|mask|> 4th mat."
    ids = tokenizer.encode(prompt).ids
    place = ids.index(tokenizer.token_to_id("<|mask|>"))
    model.eval()
    logits = model(input_ids=torch.tensor([ids])).logits[0, place]
    likeliest = [token for token in logits.argsort(descending=True).tolist() if token != ids[place]]
    assert lm.sample(model, prompt, 0) == tokenizer.decode([*ids[:place], likeliest[0], *ids[place + 1 :]])
    more = lm.sample(model, "The 7th cat sat on the 3th", 2)
    assert more.startswith("The 7th cat sat on the 3th")
    assert len(more) > len("The 7th cat sat on the 3th")
    assert "<|mask|>" not in more


def test_an_export_loads_with_transformers(lm: MaskedLM, tmp_path: Path) -> None:
    model = trained(lm, 5)
    lm.export(model, tmp_path / "out")
    read = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.mask_token == "<|mask|>"
    assert lm.evaluate(read) == lm.evaluate(model)
    assert Recipe.load(tmp_path / "out" / "potluck-recipe.toml") == RECIPE


def test_a_checkpoint_of_its_own_and_a_tokenizer_without_a_mask(lm: MaskedLM, tmp_path: Path) -> None:
    lm.export(trained(lm, 5), tmp_path / "trained")
    write_text(tmp_path)
    tuned = replace(RECIPE, task=replace(RECIPE.task, config={}, checkpoint="trained", tokenizer="trained"))
    again = task(tuned, build_assets(tuned, base=tmp_path))
    assert again.evaluate(again.model(base=tmp_path)) == lm.evaluate(trained(lm, 5))
    causal = build_assets(CAUSAL, base=tmp_path)
    with pytest.raises(RecipeError, match="has no mask"):
        task(RECIPE, {**causal, "config.json": build_assets(RECIPE, base=tmp_path)["config.json"]})
