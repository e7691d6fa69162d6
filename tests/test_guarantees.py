"""Promises are kept: each says what it assumes and where it ends, and names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
NOT_PROMISED = "What is not promised"

NODE = re.compile(r"`(tests/[\w/.]+)((?:::\w+)+)`")
"""A test's file, and what comes after it."""


def sections(page: str) -> dict[str, str]:
    """Text below each heading."""
    pieces = re.split(r"^## (.+)\n", page, flags=re.M)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


PROMISES = {title: text for title, text in sections(PAGE).items() if title != NOT_PROMISED}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def classes() -> dict[str, ast.ClassDef]:
    """All classes of the tests, by name."""
    trees = map(tree, sorted((ROOT / "tests").rglob("*.py")))
    return {node.name: node for one in trees for node in one.body if isinstance(node, ast.ClassDef)}


def functions(node: ast.Module | ast.ClassDef) -> set[str]:
    """Its tests, those that a class inherits too."""
    own = {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
    bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
    return own.union(*(functions(classes()[base]) for base in bases if base in classes()))


def exists(file: str, rest: str) -> bool:
    """Whether pytest would find a test of this name there."""
    path, (*within, name) = ROOT / file, rest.split("::")[1:]
    if not path.name.startswith("test_") or not path.is_file() or not name.startswith("test_"):
        return False
    place: ast.Module | ast.ClassDef = tree(path)
    for class_ in within:
        found = [node for node in place.body if isinstance(node, ast.ClassDef) and node.name == class_]
        if not found or not class_.startswith("Test"):
            return False
        place = found[0]
    return name in functions(place)


@pytest.mark.parametrize("title", PROMISES)
def test_a_promise_is_one_with_assumptions_limits_and_tests(title: str) -> None:
    words, *parts = re.split(r"^- (Assumes|Limits|Shown by):", PROMISES[title], flags=re.M)
    assert words.strip(), "it says what is promised"
    assert parts[::2] == ["Assumes", "Limits", "Shown by"]
    assert all(part.strip() for part in parts[1::2])
    named = NODE.findall(parts[-1])
    assert named, "some test shows it"
    assert len(named) == len(set(named)) == len(re.findall(r"^  - ", parts[-1], re.M))


@pytest.mark.parametrize(("file", "rest"), sorted(set(NODE.findall(PAGE))))
def test_every_test_that_is_named_exists(file: str, rest: str) -> None:
    assert exists(file, rest)


def test_what_is_not_promised_comes_last() -> None:
    assert list(sections(PAGE))[-1] == NOT_PROMISED
    assert len(PROMISES) > 10


def test_links_within_the_page_lead_somewhere() -> None:
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in sections(PAGE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_files_that_documents_name_and_link_exist(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    named = set(re.findall(r"`((?:tests|bench|docs)/[\w/.]+\.\w+)(?:::[\w:]+)?`", text))
    linked = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", text))
    places = [ROOT / name for name in named] + [ROOT / Path(document).parent / name for name in linked]
    assert [str(place) for place in places if not place.exists()] == []


@pytest.mark.parametrize(
    "node",
    [
        "tests/test_guarantees.py::test_that_nobody_wrote",
        "tests/test_nothing.py::test_links_within_the_page_lead_somewhere",
        "tests/net/conformance.py::Conformance::test_nobody_there",
        "tests/net/test_tls.py::TestTls::test_that_nobody_wrote",
        "tests/net/test_tls.py::TestSomethingElse::test_nobody_there",
        "tests/test_guarantees.py::exists",
    ],
)
def test_a_name_that_leads_nowhere_is_found(node: str) -> None:
    [(file, rest)] = NODE.findall(f"`{node}`")
    assert not exists(file, rest)
    assert exists("tests/net/test_tls.py", "::TestTls::test_nobody_there")
