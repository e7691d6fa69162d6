"""Presets: settings for where the peers are, filled in where a recipe says nothing of its own.

``docs/recipes.md`` has the reason of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from typing import Any

from potluck.errors import RecipeError
from potluck.recipe.checks import show

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "local": {"rounds": {"codec": "bf16", "least_steps": 10, "grace_s": 2.0}},
    "lan": {"rounds": {"codec": "int8", "least_steps": 15, "grace_s": 4.0}},
    "wan": {"rounds": {"codec": "int4", "least_steps": 30, "grace_s": 8.0}},
    "volunteer": {"rounds": {"codec": "int4", "least_steps": 60, "grace_s": 15.0, "snapshot_every": 2}},
}
"""Peers on one machine; in one building; in data centres or offices far apart; at people's homes."""


def filled(table: Mapping[str, Any], name: object) -> dict[str, Any]:
    """A recipe's table with a preset's settings where it has none; a section may be a dataclass, which has
    all of its settings.

    Raises:
        RecipeError: there is no such preset.
    """
    if not isinstance(name, str) or name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1) if isinstance(name, str) else []
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise RecipeError(f"there is no preset {show(name)}; {hint}")
    full: dict[str, Any] = {key: _plain(value) for key, value in table.items()}
    for section, settings in PRESETS[name].items():
        said = full.get(section, {})
        full[section] = {**settings, **said} if isinstance(said, dict) else said
    return full


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
