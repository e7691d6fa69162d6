"""The site: built strictly and without network, with everything in it that the code has."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import typer

import potluck
from potluck.app.cli import app
from potluck.recipe import Recipe
from potluck.recipe.checks import CHOICES

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers.python")

from tools import pages

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(built)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return built


def words(page: Path) -> str:
    """What a page says, without marks."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text("utf-8")))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    paths = sorted(site.rglob("*.html"))
    assert len(paths) > 15
    for path in paths:
        text = path.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=[\"']?([^\"'\s>]+)", text)
        loaded += re.findall(r"<link[^>]*\shref=[\"']?([^\"'\s>]+)", text)
        assert loaded, path
        assert [one for one in loaded if "//" in one] == [], path


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    missing = [
        name
        for name in potluck.__all__
        if f'id="potluck.{name}"' not in page and f'id="potluck.errors.{name}"' not in page
    ]
    assert missing == [], "docs/api.md lacks ::: potluck.NAME"


def test_every_member_of_a_run_is_in_the_reference(site: Path) -> None:
    page = (site / "api.html").read_text("utf-8")
    own = [name for name in vars(potluck.Run) if not name.startswith("_")]
    assert [name for name in own if f'id="potluck.Run.{name}"' not in page] == []


def test_every_option_is_in_the_reference_of_commands(site: Path) -> None:
    said = words(site / "cli.html")
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"potluck {name} [OPTIONS]" in said
        for option in (one for parameter in command.params for one in parameter.opts if one[0] == "-"):
            assert option in said, name


def keys() -> list[str]:
    """All keys of a recipe, those in its tables with the table."""
    default = Recipe()
    found = []
    for entry in fields(default):
        section = getattr(default, entry.name)
        found += (
            [f"{entry.name}.{key.name}" for key in fields(section)] if is_dataclass(section) else [entry.name]
        )
    return found


def test_every_key_is_in_the_reference_of_recipes(site: Path) -> None:
    rows = re.findall(
        r"<tr>\s*<td><code>([\w.]+)</code></td>", (site / "recipe-keys.html").read_text("utf-8")
    )
    assert rows == keys()


def test_every_key_is_told_of_in_the_document_of_recipes() -> None:
    table = (ROOT / "docs" / "recipes.md").read_text("utf-8").partition("## Keys")[2]
    rows = dict(re.findall(r"^\| (`.+?) \| (.+) \|$", table, re.M))
    assert len(rows) > 15
    for key in keys():
        section, _, name = key.rpartition(".")
        told = rows.get(f"`{section}`", "")
        chosen = all(f"`{choice}`" in told for choice in CHOICES.get(key, (name,)))
        assert f"`{key}`" in table or chosen, key


def test_links_of_the_repository_are_turned_into_those_of_the_site() -> None:
    said = "[a](docs/data.md#x) [`b`](CONTRIBUTING.md) [c](LICENSE) ![d](docs/figures/e.svg)"
    made = "[a](data.md#x) [`b`](contributing.md) c ![d](figures/e.svg)"
    assert pages.ready(said, "README.md") == made + "\n"
    assert pages.ready("[a](https://b.org/docs/c.md) [d](#e)", "README.md") == (
        "[a](https://b.org/docs/c.md) [d](#e)\n"
    )
    assert pages.ready("[a](../README.md) [b](../bench/x.md)", "docs/c.md") == "[a](index.md) b\n"


def test_a_list_within_a_list_stays_one_and_code_is_left_alone() -> None:
    assert pages.ready("- a:\n  - b\n    c\n```python\n  - d\n```", "docs/e.md") == (
        "- a:\n    - b\n      c\n```python\n  - d\n```\n"
    )
