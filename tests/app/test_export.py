"""What ``potluck export`` says of a state and its evaluation, and by which command it goes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from msgspec.structs import replace

pytest.importorskip("huggingface_hub")

from potluck.app.export import Wanted, _check_judged
from potluck.app.output import Output
from potluck.errors import CorruptData
from potluck.peer.replay import state_after, survey
from potluck.store.copies import DiskCopy
from tests.peer.written import write_run


def test_an_evaluation_of_another_state_is_said_and_refused_only_as_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, rounds=2, losses={2: 2.0})
    copy = DiskCopy(tmp_path)
    found = survey(copy)
    state, of = state_after(copy, found, 2), found.view.evaluations.of
    last, best = Wanted("DIR", tmp_path), Wanted("DIR", tmp_path, best=True)
    for wanted in (last, best):
        _check_judged(Output(json=True), found, state, wanted)
    assert capsys.readouterr().out == ""
    of[2] = replace(of[2], state="f" * 64)
    _check_judged(Output(json=True), found, state, last)
    said = json.loads(capsys.readouterr().out)
    assert said["event"] == "note"
    assert "its evaluation is of ffffffffffff" in said["text"]
    with pytest.raises(CorruptData, match="take another one with --round"):
        _check_judged(Output(json=True), found, state, best)


@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        (Wanted("a run", Path("my model")), []),
        (Wanted("a run", Path("my model"), best=True), ["--best"]),
        (Wanted("a run", Path("my model"), after=0), ["--round", "0"]),
    ],
)
def test_the_command_for_the_whole_model_is_of_the_same_state_and_can_be_pasted(
    wanted: Wanted, options: list[str]
) -> None:
    words = ["potluck", "export", *options, "a run", "my model", "--merged"]
    assert shlex.split(wanted.whole()) == words
