"""Directories that other tools read a model from: written beside their place, and put there when whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from potluck.errors import StoreError, UsageError
from potluck.recipe import Recipe

_SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".toml", ".txt")
_MARK = "potluck-recipe.toml"
_CARD = "README.md"


def write_export(recipe: Recipe, directory: Path | str, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a new directory, with the recipe besides; an earlier export is replaced.

    Raises:
        UsageError: the directory holds something else than an export.
        StoreError: the disk refuses.
    """
    target = Path(directory).resolve()
    if target.exists() and not _replaceable(target):
        raise UsageError(f"{target} holds other files: name a new directory for the export")
    draft, old = (target.with_name(f".{target.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        draft.mkdir(parents=True)
        write(draft)
        (draft / _MARK).write_text(recipe.to_toml(), "utf-8")
        if target.exists():
            target.rename(old)
        draft.rename(target)
    except OSError as error:
        raise StoreError(f"the model can't be written to {target}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _replaceable(directory: Path) -> bool:
    """Empty, or an export of ours that nobody has put anything into."""
    if not directory.is_dir():
        return False
    found = [path for path in directory.iterdir() if path.name != _CARD]
    names = {path.name for path in found if path.is_file()}
    others = {path for path in found if path.suffix not in _SUFFIXES or path.is_dir()}
    return not others and (_MARK in names or not any(directory.iterdir()))
