"""Recipes as TOML: tables into frozen dataclasses, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from potluck.errors import RecipeError
from potluck.recipe.checks import COUNT, join, show

T = TypeVar("T")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_table(kind: type[T], table: object, where: str) -> T:
    """A dataclass from a table; the kind of each value is that of its default."""
    if not isinstance(table, dict):
        raise RecipeError(f"{where} = {show(table)} should be a table: [{where}]")
    default = kind()
    known = [entry.name for entry in fields(default)]  # type: ignore[arg-type]  # T is a dataclass
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise RecipeError(f"there is no {join(where, key)!r} in a recipe; {hint}")
        usual = getattr(default, key)
        if is_dataclass(usual):
            values[key] = read_table(type(usual), value, join(where, key))
        else:
            whole = isinstance(usual, float) and type(value) is int and abs(value) <= COUNT
            values[key] = float(value) if whole else value
    return kind(**values)


def toml_lines(section: Any, where: str) -> Iterator[str]:
    """TOML lines of a dataclass: its plain values first, since they belong to the table header above them."""
    default = type(section)()
    tables = []
    for entry in fields(section):
        value, usual = getattr(section, entry.name), getattr(default, entry.name)
        if is_dataclass(usual) or isinstance(usual, dict):
            tables.append((join(where, entry.name), value))
        else:
            yield f"{entry.name} = {_toml(float(value) if isinstance(usual, float) else value)}"
    for path, table in tables:
        if isinstance(table, dict):
            if table:
                yield f"\n[{path}]"
            yield from (f"{_key(key)} = {_toml(table[key])}" for key in sorted(table))
        else:
            yield f"\n[{path}]"
            yield from toml_lines(table, path)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(value[key])}" for key in sorted(value)) + "}"
    return repr(value)
