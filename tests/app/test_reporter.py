"""What the reporter tells while the run goes on beside it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from potluck.app.output import Output
from potluck.app.reporter import Reporter
from potluck.protocol.evaluations import Evaluations
from potluck.wire.records import Evaluation
from tests.protocol.support import BASE


def judged(round_: int) -> Evaluation:
    return Evaluation(round_, BASE, (("loss", 2.5),), "by peer1")


class Going(dict[int, Evaluation]):
    """Another evaluation comes whenever the others have been read."""

    def copy(self) -> dict[int, Evaluation]:
        read = dict(self)
        self[len(self)] = judged(len(self))
        return read


def test_an_evaluation_that_comes_while_others_are_told_is_told_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter, found = Reporter(Output(json=True)), Evaluations()
    found.of = Going({0: judged(0)})
    run = SimpleNamespace(view=SimpleNamespace(evaluations=found))
    for _ in range(3):
        reporter._evaluations(run)  # type: ignore[arg-type]
    rounds = [json.loads(line)["round"] for line in capsys.readouterr().out.splitlines()]
    assert rounds == [0, 1, 2]
