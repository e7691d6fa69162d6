"""What MkDocs has to know about this repository (`mkdocs.yml` names this file as its hook).

Documents are written so that they read well where the code is: links lead to files of the repository, and a
list within a list is indented by two. Here they are made ready for the site. Pages that stand outside
``docs/`` are added, and what the code knows best is made from the code: commands and keys of a recipe.
"""

from __future__ import annotations

import inspect
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from potluck.app.cli import COMMON, EXIT_CODES, app
from potluck.recipe import Recipe
from potluck.recipe.checks import CHOICES, COUNT, LIMITS

ROOT = Path(__file__).resolve().parent.parent

OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents outside ``docs/``, and the pages that they become."""

FENCE = re.compile(r"^\s*(```|~~~)")
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
NESTED = re.compile(r"^  (?=[-*] |  )")
MADE = re.compile(r"^<!-- site: ([a-z]+) -->$", re.M)


# -- what MkDocs calls ---------------------------------------------------------------------------


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that stand outside ``docs/``."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """A page as the site needs it."""
    sources = {made: source for source, made in OUTSIDE.items()}
    path = page.file.src_uri
    return filled(ready(markdown, sources.get(path, f"docs/{path}")))


# -- Markdown ------------------------------------------------------------------------------------


def ready(markdown: str, source: str) -> str:
    """A document of the repository as Markdown for the site; ``source`` is its path there."""
    lines, is_code = [], False
    for line in markdown.splitlines():
        if FENCE.match(line):
            is_code = not is_code
        elif not is_code:
            line = NESTED.sub("    ", line)
        lines.append(line)
    return relinked("\n".join(lines) + "\n", source)


def relinked(markdown: str, source: str) -> str:
    """Links to documents lead to their pages. What is no page of the site is named, and not linked."""

    def turned(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in OUTSIDE:
            return f"{text}({OUTSIDE[path]}{anchor})"
        if path.startswith("docs/"):
            return f"{text}({path.removeprefix('docs/')}{anchor})"
        return text.strip("[]")

    return LINK.sub(turned, markdown)


def filled(markdown: str) -> str:
    """With what is made from the code, where its mark stands."""
    return MADE.sub(lambda found: "\n".join(MAKERS[found[1]]()), markdown)


# -- the command line ----------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """Each command with its arguments and options, as its ``--help`` has them, and what all of them have."""
    found: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group
    yield f"{EXIT_CODES}\n"
    yield "Every command has these options, and `--help`:\n"
    yield from _options(next(iter(found.values())), lambda name: name in COMMON)
    for name, command in found.items():
        usage = command.get_usage(_context(name, command)).removeprefix("Usage: ")
        yield f"\n## potluck {name}\n\n{command.help}\n\n```text\n{usage}\n```\n"
        yield from _options(command, lambda name: name not in COMMON)


def _context(name: str, command: Any) -> Any:
    """That of a command which nobody gave anything."""
    return command.make_context(f"potluck {name}", [], resilient_parsing=True)


def _options(command: Any, wanted: Callable[[str], bool]) -> Iterator[str]:
    yield "| | |\n|---|---|"
    for one in command.params:
        if wanted(one.name):
            written, help_ = one.get_help_record(_context(command.name, command))
            for kind, name in KINDS.items():
                written = written.replace(kind, name if one.param_type_name == "option" else "").strip()
            yield f"| `{written}` | {help_.replace('|', '&#124;')} |"


KINDS = {"<int range>": "N", "<float range>": "X", "<str>": "TEXT"}
"""Kinds of values as typer calls them, and shorter."""


# -- recipes -------------------------------------------------------------------------------------


def keys() -> Iterator[str]:
    """Each table of a recipe, with the default of each key and what it may be."""
    default = Recipe()
    plain = [entry.name for entry in fields(default) if not is_dataclass(getattr(default, entry.name))]
    yield from _keys(default, "", plain)
    for entry in fields(default):
        section = getattr(default, entry.name)
        if is_dataclass(section):
            yield f"\n## [{entry.name}]\n\n{inspect.getdoc(section)}\n"
            yield from _keys(section, f"{entry.name}.", [key.name for key in fields(section)])


def _keys(section: Any, where: str, names: list[str]) -> Iterator[str]:
    yield "| key | default | may be |\n|---|---|---|"
    for name in names:
        usual = getattr(section, name)
        yield f"| `{where}{name}` | {_toml(usual)} | {_allowed(where + name, usual)} |"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value:_}`" if isinstance(value, int) else f"`{value}`"


def _allowed(path: str, usual: Any) -> str:
    if path in LIMITS:
        low, high = LIMITS[path]
        kind = "a whole number" if isinstance(usual, int) else "a number"
        return f"{kind} from {low:,.10g} to {'2^53 - 1' if high == COUNT else f'{high:,.10g}'}"
    if path in CHOICES:
        return ", ".join(f'`"{choice}"`' for choice in CHOICES[path])
    words = {bool: "`true` or `false`", str: "a string", dict: "a table", int: "a whole number"}
    return words.get(type(usual), "a number")


MAKERS: dict[str, Callable[[], Iterator[str]]] = {"commands": commands, "keys": keys}
