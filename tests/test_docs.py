"""Documents are true: their recipes parse, their commands exist, their Python runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from potluck.recipe import Recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for found in re.finditer(rf"^```{language}\n(.*?)^```", document.read_text("utf-8"), re.M | re.S):
            yield document.name, found[1]


def commands(program: str) -> Iterator[tuple[str, list[str]]]:
    for document, block in blocks("console"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [program]:
                yield document, words[1:]
    for document in DOCUMENTS:
        for found in re.finditer(rf"`({program} [^`]+)`", document.read_text("utf-8")):
            yield document.name, shlex.split(found[1])[1:]


@pytest.mark.parametrize(("document", "toml"), list(blocks("toml")))
def test_every_recipe_is_one(document: str, toml: str) -> None:
    recipe = Recipe.from_toml(toml)
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(("document", "words"), list(commands("potluck")))
def test_every_command_is_one(document: str, words: list[str]) -> None:
    from potluck.app.cli import app

    result = CliRunner().invoke(app, [words[0], "--help"])
    assert result.exit_code == 0, result.output
    for option in (word for word in words[1:] if word.startswith("--")):
        assert option.split("=")[0] in result.output


@pytest.mark.parametrize(("document", "words"), list(commands("make")))
def test_every_target_is_one(document: str, words: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True, timeout=60)


@pytest.mark.integration
def test_the_example_of_shared_data_runs_as_it_stands(tmp_path: Path) -> None:
    [(_, code)] = [block for block in blocks("python") if block[0] == "data.md"]
    here = f"host(recipe, model, directory={str(tmp_path)!r}, listen='127.0.0.1')"
    script = tmp_path / "train.py"
    script.write_text(code.replace("host(recipe, model)", here), "utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.endswith("done: all 189 blocks of the data are in the model, each once\n"), done.stderr


@pytest.mark.integration
def test_the_example_of_an_own_loop_runs_as_it_stands(tmp_path: Path) -> None:
    [(_, code)] = [block for block in blocks("python") if block[0] == "loop.md"]
    here = f"host(recipe, model, directory={str(tmp_path)!r}, listen='127.0.0.1')"
    script = tmp_path / "train.py"
    script.write_text(code.replace("host(recipe, model)", here), "utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("round")]
    assert [line.split()[1] for line in told] == ["1", "2", "3"], done.stderr
    [path] = tmp_path.glob("runs/*/peer-*/metrics.jsonl")
    rates = [json.loads(line)["values"]["lr"] for line in path.read_text("utf-8").splitlines()]
    assert rates[0] < max(rates) < 2e-3
    assert rates[-1] < 0.5 * max(rates)


@pytest.mark.integration
def test_the_example_of_an_evaluation_runs_as_it_stands(tmp_path: Path) -> None:
    [(_, code)] = [block for block in blocks("python") if block[0] == "evaluation.md"]
    here = f"host(recipe, model, directory={str(tmp_path)!r}, listen='127.0.0.1')"
    script = tmp_path / "train.py"
    script.write_text(code.replace("host(recipe, model)", here), "utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("round")]
    assert told[-1] == "4", done.stdout


@pytest.mark.integration
def test_the_readme_example_runs_as_it_stands(tmp_path: Path) -> None:
    [(_, code)] = [block for block in blocks("python") if block[0] == "README.md"]
    script = tmp_path / "train.py"
    script.write_text(
        code.replace("model)\n", "model, **here)\n").replace(
            "import potluck\n",
            "import potluck\n\nhere = {'directory': sys.argv[0] + '.d', 'listen': '127.0.0.1'}\n",
            1,
        ),
        "utf-8",
    )
    host = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    joiner = None
    try:
        assert host.stdout is not None
        invite = host.stdout.readline().strip()
        assert invite.startswith("potluck:")
        joiner = subprocess.Popen(
            [sys.executable, script, invite], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        out, _ = host.communicate(timeout=100)
        joined, _ = joiner.communicate(timeout=30)
    finally:
        for process in (host, joiner):
            if process is not None and process.poll() is None:
                process.kill()
                process.communicate()
    assert out.startswith("round 3 loss ")
    assert joined.startswith("round 3 loss ")
