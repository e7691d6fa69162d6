import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from potluck.data.assets import build_assets
from potluck.data.tokens import read_tokenizer, train_tokenizer
from potluck.errors import RecipeError
from potluck.recipe import DEMO, Recipe

LINES = "".join(f"The {n}th cat sat on the {n * n}th mat.\n" for n in range(4000))


def recipe(**task: Any) -> Recipe:
    return replace(DEMO, task=replace(DEMO.task, text="*.txt", tokenizer="bpe-400", **task))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text(LINES, "utf-8")
    return tmp_path


def test_the_files_hold_the_whole_text_and_what_the_model_needs(base: Path) -> None:
    assets = build_assets(recipe(), base=base)
    assert sorted(assets) == ["config.json", "heldout.bin", "meta.json", "tokenizer.json", "train.bin"]
    tokenizer = read_tokenizer(assets["tokenizer.json"])
    train, held = (np.frombuffer(assets[name], "<u2").tolist() for name in ("train.bin", "heldout.bin"))
    assert tokenizer.decode(train) + tokenizer.decode(held) == LINES
    assert train[-1] == held[-1] == 0
    assert json.loads(assets["meta.json"]) == {"heldout_bytes": len(tokenizer.decode(held).encode())}
    config = json.loads(assets["config.json"])
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["eos_token_id"] == 0
    assert {key: config[key] for key in DEMO.task.config} == DEMO.task.config


def test_the_same_text_gives_the_same_bytes(base: Path) -> None:
    assert build_assets(recipe(), base=base) == build_assets(recipe(), base=base)


def test_the_tokenizer_has_not_seen_the_heldout_text(base: Path) -> None:
    before = build_assets(recipe(), base=base)["tokenizer.json"]
    (base / "a.txt").write_text(LINES[:-40] + "q" * 39 + "\n", "utf-8")
    assert build_assets(recipe(), base=base)["tokenizer.json"] == before


def test_a_tokenizer_from_a_directory(base: Path) -> None:
    (base / "words").mkdir()
    raw = train_tokenizer([("x", "abc abd abe" * 100)], 320)
    (base / "words" / "tokenizer.json").write_bytes(raw)
    named = replace(recipe(), task=replace(recipe().task, tokenizer="words"))
    assert build_assets(named, base=base)["tokenizer.json"] == raw
    (base / "words" / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match=r"tokenizer\.json of 'words' can't be had"):
        build_assets(named, base=base)


def test_a_vocabulary_that_is_too_small_for_the_tokenizer(base: Path) -> None:
    small = recipe(config={**DEMO.task.config, "vocab_size": 300})
    with pytest.raises(RecipeError, match="vocab_size is 300, and the tokenizer has 400"):
        build_assets(small, base=base)


def checkpoint(base: Path, config: str) -> Recipe:
    (base / "trained").mkdir()
    (base / "trained" / "config.json").write_text(config, "utf-8")
    (base / "trained" / "tokenizer.json").write_bytes(train_tokenizer([("x", LINES)], 400))
    task = replace(DEMO.task, text="*.txt", tokenizer="trained", checkpoint="trained", config={})
    return replace(DEMO, task=task)


def test_a_checkpoint_brings_its_own_config_and_its_end(base: Path) -> None:
    config = {
        "model_type": "gpt2",
        "vocab_size": 512,
        "eos_token_id": [7, 8],
        "x": None,
        "_name_or_path": "y",
    }
    assets = build_assets(checkpoint(base, json.dumps(config)), base=base)
    assert json.loads(assets["config.json"]) == {key: config[key] for key in config if key[0] != "_"}
    assert np.frombuffer(assets["train.bin"], "<u2")[-1] == 7


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a table"),
        ('{"model_type": "gpt2", "auto_map": {"AutoModel": "code.Model"}}', "auto_map is refused"),
    ],
)
def test_a_checkpoint_with_a_bad_config(base: Path, config: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build_assets(checkpoint(base, config), base=base)


def test_assets_over_the_limit_are_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.data.assets.MAX_ASSETS_BYTES", 10_000)
    with pytest.raises(RecipeError, match="over 10,000"):
        build_assets(recipe(), base=base)
