"""Tasks of one's own run where the machine's owner said so, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from potluck.errors import RecipeError  # noqa: E402
from potluck.recipe import Recipe, Task  # noqa: E402
from potluck.tasks import KINDS, WORK, _built_in, permit, prepare, task  # noqa: E402
from tests.tiny import RECIPE  # noqa: E402

RAN = "raise AssertionError('this code must not run')\n"
FILES = "def assets(recipe, base):\n    return {'name': recipe.name.encode(), 'here': str(base).encode()}\n"
WHOLE = f"""
class Work:
    def __getattr__(self, name):
        if name in {WORK}:
            return name
        raise AttributeError(name)

def make(recipe, assets):
    work = Work()
    work.got = recipe, assets
    return work
"""

Module = Callable[[str], Recipe]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> Recipe:
        (tmp_path / "owntask.py").write_text(code, "utf-8")
        return Recipe(task=Task(kind="owntask:make"))

    yield write
    sys.modules.pop("owntask", None)


@pytest.mark.parametrize("allowed", ["", "owntask", "owntask:other", "owntask:make ", "causal-lm"])
def test_code_that_was_not_allowed_is_not_even_imported(module: Module, allowed: str) -> None:
    recipe = module(RAN)
    for call in (lambda: prepare(recipe, Path(), allowed), lambda: task(recipe, {}, allowed)):
        with pytest.raises(RecipeError, match=r"own code, owntask:make.* add --allow-code owntask:make \(in"):
            call()
    assert "owntask" not in sys.modules


def test_what_is_allowed_gets_the_recipe_and_the_files_of_its_module(module: Module) -> None:
    recipe = module(FILES + WHOLE)
    assets = prepare(recipe, Path("there"), "owntask:make")
    assert assets == {"name": b"run", "here": b"there"}
    assert task(recipe, assets, "owntask:make").got == (recipe, assets)


def test_a_module_without_files(module: Module) -> None:
    assert prepare(module("make = None"), Path(), "owntask:make") == {}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nonsense", r"owntask:make can't be imported \(No module named 'nonsense'\)"),
        ("", "has no make"),
        ("def make(recipe, assets): return 3", "made a int without batches, blocks, evaluate, export"),
    ],
)
def test_own_code_that_is_none(module: Module, code: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        task(module(code), {}, "owntask:make")


def test_built_in_tasks_need_no_permission_and_have_all_that_a_task_has() -> None:
    for kind in KINDS:
        permit(replace(RECIPE, task=replace(RECIPE.task, kind=kind)))
        made = _built_in(kind)
        lacking = [name for name in WORK if not hasattr(made, name)]
        assert lacking == ["recipe"]  # which each sets itself
    assert len(WORK) == 10
