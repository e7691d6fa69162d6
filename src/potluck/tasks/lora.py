"""Adapters of low rank on weights that are not trained (LoRA; Hu et al., arXiv 2106.09685), by ``peft``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potluck.errors import RecipeError, UsageError
from potluck.recipe import ALL_LINEAR, Task


def adapted(model: Any, task: Task) -> Any:
    """The model with the recipe's adapters: only they are trained, and exchanged.

    Raises:
        RecipeError: peft is missing.
        ValueError: the model has no layer of the names that the recipe targets.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise RecipeError(f"task.lora needs the package {error.name}: pip install 'potluck[lora]'") from error
    lora = task.lora
    targets = lora.targets if lora.targets == ALL_LINEAR else [t.strip() for t in lora.targets.split(",")]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        task_type="CAUSAL_LM" if task.kind == "causal-lm" else None,
    )
    made = get_peft_model(model, config)
    config.base_model_name_or_path = task.checkpoint  # as the host named it, not where it was found here
    return made


def write_adapters(model: Any, folder: Path) -> None:
    """Write the adapters alone, in peft's own format."""
    # "auto" could ask the Hub whether embeddings were resized; none is.
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form to be filled in


def merged(model: Any) -> Any:
    """The model with its adapters added to the weights; the one given is used up.

    Raises:
        UsageError: it has none.
    """
    if not hasattr(model, "merge_and_unload"):
        raise UsageError("this run trains the whole model, so there is nothing to merge: leave --merged out")
    return model.merge_and_unload()
