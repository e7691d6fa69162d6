"""What a callback may be given, and what it says to anything else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from potluck.errors import EnvironmentProblem, InviteError, UsageError
from potluck.integrations.begin import begin, figures, own_seed
from potluck.run import Run


def test_something_else_than_a_recipe_an_invite_or_a_run_is_refused() -> None:
    where: Any = 7
    with pytest.raises(UsageError, match="takes a recipe, an invite or a run, not int"):
        begin(where, nn.Linear(1, 1), {})


def test_a_text_that_is_no_invite_is_refused() -> None:
    with pytest.raises(InviteError):
        begin("potluck:nonsense", nn.Linear(1, 1), {})


def test_options_for_a_run_that_is_there_already_are_refused() -> None:
    with pytest.raises(UsageError, match="name, listen: say this where the run is hosted or joined"):
        begin(Run.__new__(Run), nn.Linear(1, 1), {"name": "me", "listen": "::"})


def test_one_of_several_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potluck.peer.ranks.spread_over_ranks", lambda: True)
    with pytest.raises(UsageError, match="one of several ranks, and a callback joins one process"):
        begin("potluck:nonsense", nn.Linear(1, 1), {})


def test_figures_are_left_out_while_the_network_is_busy() -> None:
    class Busy:
        @property
        def peers(self) -> list[Any]:
            raise EnvironmentProblem("the network did not answer in 5 s")

    busy: Any = Busy()
    assert figures(busy) == {}


def test_no_two_lives_have_the_same_seed() -> None:
    def seed(peer: str, session: str, base: int) -> int:
        run: Any = SimpleNamespace(state=SimpleNamespace(peer=peer, session=session))
        return own_seed(run, base)

    seeds = {seed(peer, session, base) for peer in "ab" for session in "cd" for base in (0, 42)}
    assert len(seeds) == 8
    assert all(0 <= one < 1 << 32 for one in seeds)
