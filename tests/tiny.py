"""A recipe so small that a test trains it in a moment, and its text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from potluck.recipe import DEMO, Inner

LINES = "".join(f"The {n}th cat sat on the {n % 7}th mat.\n" for n in range(3000))
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
RECIPE = replace(
    DEMO,
    task=replace(
        DEMO.task,
        text="*.txt",
        tokenizer="bpe-400",
        config={**DEMO.task.config, **SIZES},
        context=32,
        batch=4,
    ),
    inner=Inner(lr=1e-2, warmup_steps=4),
)


def write_text(folder: Path) -> Path:
    """The recipe's text, in this folder."""
    (folder / "a.txt").write_text(LINES, "utf-8")
    return folder
