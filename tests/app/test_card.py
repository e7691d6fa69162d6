"""The model card: what the ledger says, in the Hub's form, whatever stands in the recipe."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub")

from huggingface_hub import ModelCard

from potluck.app.card import Facts, card
from potluck.protocol.history import History
from potluck.recipe import DEMO, Recipe
from potluck.wire.records import Evaluation, Finish
from tests.protocol.support import BASE, Ledger, committed, genesis, member, opened

SHA = "5" * 64


def facts(recipe: Recipe = DEMO, round_: int = 1) -> Facts:
    ledger, history = Ledger(), History()
    for body in (
        genesis(),
        Evaluation(0, BASE, (("loss", 7.0), ("bits per byte", 3.5)), "by a"),
        opened(1),
        committed(1),
        Evaluation(1, BASE, (("loss", 4.0), ("bits per byte", 2.0)), "by b"),
        opened(2),
        committed(2),
        Evaluation(2, BASE, (("loss", 5.0),), "by a"),
        Finish(2, "round 2 committed, the last one asked for"),
    ):
        assert not any(event.kind == "skipped" for event in history.follow(ledger.add(body)))
    return Facts(recipe, history, round_, BASE, SHA)


def test_the_hub_reads_its_metadata() -> None:
    data = ModelCard(card(facts())).data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "transformers",
        "text-generation",
        ["potluck"],
    )
    [loss, bits] = data.eval_results
    assert (loss.metric_type, loss.metric_value, bits.metric_value) == ("loss", 4.0, 2.0)
    assert data.model_name == "shakespeare"
    given = replace(
        DEMO.task, checkpoint="org/base", config={}, tokenizer="org/base", text="datasets:org/text:body"
    )
    more = ModelCard(card(facts(replace(DEMO, task=given)))).data
    assert (more.base_model, more.datasets) == ("org/base", ["org/text"])


def test_it_says_what_the_ledger_says() -> None:
    text = card(facts())
    assert "| state | after round 1, of 2 rounds, and the best one that was evaluated |" in text
    assert "| tokens of the run | 200 |" in text
    assert "| rounds of the run | 2; round 2 committed, the last one asked for |" in text
    assert "| 0 | 7 | 3.5 |  |" in text
    assert "| 1 | 4 | 2 | best, this model |" in text
    assert "| 2 | 5 | – |  |" in text
    assert f"| `{member(1).peer[:8]}` | 2 | 1 | 2 | 120 |" in text
    assert SHA in text
    assert BASE in text
    [recipe] = re.findall(r"```toml\n(.*?)```", text, re.S)
    assert Recipe.from_toml(recipe) == DEMO


def test_a_state_that_is_not_evaluated_has_no_results() -> None:
    other = replace(facts(), state="9" * 64)
    assert ModelCard(card(other)).data.eval_results is None
    assert "this model" not in card(other)


def test_what_a_host_wrote_breaks_no_table(tmp_path: Path) -> None:
    task = replace(DEMO.task, text='a|b <script>\n---\nx: "y"')
    text = card(facts(replace(DEMO, task=task)))
    row = next(line for line in text.splitlines() if line.startswith("| data |"))
    assert "a\\|b &lt;script> ---" in row
    assert ModelCard(text).data.library_name == "transformers"
