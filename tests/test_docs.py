"""Documents are true: their recipes parse, their commands exist, their programs run.

What stands between fences runs here: TOML is read as a recipe, a line of a console is checked by the program
that it names, and each Python block is a whole program that is run, as host and joiner if it is both.
Documents whose blocks have a test of their own stand in ``APART``. ``tests/test_tutorial.py`` does what the
tutorial says. ``text`` is what a program printed, ``diff`` a part of an example in ``examples``.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from potluck.app.cli import app
from potluck.recipe import Recipe

from .app.shells import end_hubs

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"console", "diff", "python", "text", "toml"}

SHELL = {".", "cd"}
"""Words of a console that are the shell's own."""

README = "README.md"
INVITE = re.compile(r"potluck:[a-z2-7]+")

HERE = """
import functools, runpy, sys
import torch, potluck
for name in ("host", "join"):
    there = functools.partial(getattr(potluck, name), directory=sys.argv[2], listen="127.0.0.1")
    setattr(potluck, name, there)
waits = sys.argv[3:]
sys.argv = [sys.argv[1], *([sys.stdin.readline().strip()] if waits else [])]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program in a place of its own; one that joins reads the invite once PyTorch is loaded."""


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for found in re.finditer(rf"^```{language}\n(.*?)^```", document.read_text("utf-8"), re.M | re.S):
            yield document.name, found[1]


def lines(program: str) -> Iterator[tuple[str, list[str]]]:
    """What is to be typed, by the document and in words."""
    for document, block in blocks("console"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [program]:
                yield document, words[1:]


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    yield from lines(program)
    for document in DOCUMENTS:
        for found in re.finditer(rf"`({program} [^`]+)`", document.read_text("utf-8")):
            yield document.name, shlex.split(found[1])[1:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_of_a_language_that_is_run_here(document: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", document.read_text("utf-8"), re.M)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


def test_every_line_of_a_console_names_a_program_that_is_checked_here() -> None:
    checked = SHELL | {"potluck", "make", "pip", "python", "python3"}
    for document, block in blocks("console"):
        assert {shlex.split(line)[0] for line in block.splitlines()} <= checked, document


def excerpts() -> Iterator[tuple[str, str]]:
    """What documents show of the examples, each with the example's name, which stands before it."""
    for name in ("integrations.md", "gpus.md"):
        text = (ROOT / "docs" / name).read_text("utf-8")
        for found in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S):
            yield re.findall(r"\]\(\.\./(examples/\w+\.py)\)", text[: found.start()])[-1], found[1]
    readme = (ROOT / "README.md").read_text("utf-8")
    for found in re.finditer(r"^```diff\n(.*?)^```", readme, re.M | re.S):
        yield "examples/train_trainer.py", re.sub("^[+ ]", "", found[1], flags=re.M)


@pytest.mark.parametrize(("example", "shown"), list(excerpts()))
def test_what_is_shown_of_an_example_is_in_it(example: str, shown: str) -> None:
    """Line by line, in this order; the tests of the examples run them."""
    rest = iter((ROOT / example).read_text("utf-8").splitlines())
    for line in shown.splitlines():
        assert line in rest, f"{example} has no such line, or not here: {line}"


@pytest.mark.parametrize(("document", "toml"), list(blocks("toml")))
def test_every_recipe_is_one(document: str, toml: str) -> None:
    recipe = Recipe.from_toml(toml)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(("document", "words"), list(commands("potluck")))
def test_every_command_is_one(document: str, words: list[str]) -> None:
    result = CliRunner().invoke(app, [words[0], "--help"])
    assert result.exit_code == 0, result.output
    for option in (word for word in words[1:] if word.startswith("--")):
        assert option.split("=")[0] in result.output


@pytest.mark.parametrize(("document", "words"), list(lines("potluck")))
def test_every_command_to_be_typed_is_taken(document: str, words: list[str]) -> None:
    """All its arguments are there, and the values are of the right kind."""
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], words[1:])


@pytest.mark.parametrize(("document", "words"), list(commands("make")))
def test_every_target_is_one(document: str, words: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(("document", "words"), list(commands("pip")))
def test_every_installation_names_what_there_is(document: str, words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert words[0] == "install"
    for name, extras in re.findall(r"(potluck|\.)\[(.+?)\]", " ".join(words)):
        assert name in (".", project["name"])
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize(("document", "words"), [*lines("python"), *lines("python3")])
def test_every_python_command_runs_something(document: str, words: list[str]) -> None:
    if words[0] == "-m" and words[1].startswith("bench."):
        assert (ROOT / words[1].replace(".", "/")).with_suffix(".py").is_file()
    elif words[0] == "-m":
        assert words[1] in ("venv", "http.server")
    else:
        [path] = [path for path in DOCUMENTS if path.name == document]
        assert f"`{words[0]}`" in path.read_text("utf-8"), "it is said what to save there"


# -- Python --------------------------------------------------------------------------------------


class Program:
    """A document's program in a process of its own, in a directory of its own."""

    def __init__(self, code: str, place: Path, *, joins: bool) -> None:
        place.mkdir()
        script = place / "train.py"
        # A run takes a minute in a document, so that a reader is in time with the second terminal.
        shorter = code.replace("100_000", "20_000").replace("rounds=30", "rounds=12")
        shorter = shorter.replace('"tokens": 50_000', '"tokens": 5_000').replace(
            '"rounds": 30', '"rounds": 3'
        )
        script.write_text(shorter, "utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-c", HERE, script.name, str(place / "home"), *(["joins"] if joins else [])],
            stdin=subprocess.PIPE if joins else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=place,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
        self.said = ""

    def invite(self) -> str:
        """Its invite, once it is printed."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said += line
            if found := INVITE.fullmatch(line.strip()):
                return found[0]
        raise AssertionError(self.said)

    def join(self, invite: str) -> None:
        assert self._process.stdin is not None
        print(invite, file=self._process.stdin, flush=True)

    def ended(self, timeout_s: float = 100) -> str:
        """All that it said, once it has ended without an error."""
        rest, _ = self._process.communicate(timeout=timeout_s)
        self.said += rest
        assert self._process.returncode == 0, self.said
        return self.said

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[dict[str, Program]]:
    started: dict[str, Program] = {}
    yield started
    for program in started.values():
        program.end()
    end_hubs(tmp_path)


APART = {
    "gpus.md": "test_what_is_shown_of_an_example_is_in_it",
    "integrations.md": "test_what_is_shown_of_an_example_is_in_it",
    "loop.md": "test_the_example_of_an_own_loop_runs_as_it_stands",
}
"""Documents, and the test here that runs their Python."""

PROGRAMS = [(document, code) for document, code in blocks("python") if document not in APART]


def test_documents_apart_have_their_test() -> None:
    assert set(APART.values()) <= set(globals())


@pytest.mark.integration
@pytest.mark.parametrize(("document", "code"), PROGRAMS, ids=[document for document, _ in PROGRAMS])
def test_every_program_runs_as_it_stands(
    document: str, code: str, programs: dict[str, Program], tmp_path: Path
) -> None:
    """The joiner starts first, to be ready with PyTorch when there is an invite."""
    if "potluck.join(" in code:
        programs["joiner"] = Program(code, tmp_path / "joiner", joins=True)
    programs["host"] = Program(code, tmp_path / "host", joins=False)
    if "joiner" in programs:
        programs["joiner"].join(programs["host"].invite())
    for program in programs.values():
        check_end(document, program.ended())
    if document == README:
        assert "held by two members" in programs["joiner"].said


def check_end(document: str, said: str) -> None:
    """What a program says in the end, where the document promises something."""
    if document == README:
        assert said.splitlines()[-1].startswith("round 12 loss ")
    if document == "data.md":
        assert said.endswith("done: all 189 blocks of the data are in the model, each once\n")
    if document == "evaluation.md":
        assert "round 4 " in said


@pytest.mark.integration
def test_the_example_of_an_own_loop_runs_as_it_stands(programs: dict[str, Program], tmp_path: Path) -> None:
    [code] = [code for document, code in blocks("python") if document == "loop.md"]
    programs["host"] = Program(code, tmp_path / "host", joins=False)
    told = [line for line in programs["host"].ended().splitlines() if line.startswith("round")]
    assert [line.split()[1] for line in told] == ["1", "2", "3"]
    [path] = (tmp_path / "host" / "home").glob("runs/*/peer-*/metrics.jsonl")
    rates = [json.loads(line)["values"]["lr"] for line in path.read_text("utf-8").splitlines()]
    assert rates[0] < max(rates) < 2e-3
    assert rates[-1] < 0.5 * max(rates)
