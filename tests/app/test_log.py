"""``potluck log``: a run's history out of its ledger; what ``verify`` makes of a disk with the best state."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from potluck.peer.replay import state_after, survey
from potluck.protocol.history import History
from potluck.store.copies import DiskCopy
from potluck.wire.records import Finish, Grant, Move
from tests.peer.written import ME, write_run
from tests.protocol.support import Ledger, committed, genesis, member, moved, opened, snapshot

from .shells import events, potluck, summary

LOSSES = {1: 3.0, 3: 2.0, 7: 2.5, 13: 2.25}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Fourteen rounds; the third is the best, from the snapshot of round 2; those since 12 are kept."""
    write_run(tmp_path / "peer", rounds=14, keep=2, losses=LOSSES)
    return tmp_path / "peer"


def told(*bodies: object) -> list[tuple[str, str]]:
    ledger, history = Ledger(), History()
    some = [e for body in bodies for e in history.follow(ledger.add(body))]  # type: ignore[arg-type]
    return [(e.kind, e.text.replace("00000000", e.fields.get("peer", "")[-1:] or "00000000")) for e in some]


def test_each_record_that_says_something_is_told_in_the_cores_words() -> None:
    said = told(
        genesis(),
        snapshot(0),
        opened(1, (1, 2)),
        moved((0, 1)),
        committed(1),
        opened(2, (2, 3)),
        opened(2, (2, 3), attempt=1),
        committed(2, attempt=1),
        opened(9),
        Move(2, b"signature", "three hubs"),
        Finish(2, "enough"),
    )
    kinds = [kind for kind, _ in said]
    assert kinds == [
        *("run", "snapshot", "came", "came", "open", "reassign", "commit"),
        *("came", "went", "open", "again", "commit", "skipped", "move", "over"),
    ]
    texts = dict(said)
    assert texts["reassign"] == "round 1: somebody died"
    assert texts["went"] == "1 is no member any more"
    assert texts["commit"] == (
        f"round 2 committed: 100 tokens of {member(2).peer[:8]}, {member(3).peer[:8]}; all parts held"
    )
    assert texts["skipped"].startswith("ledger record 9 (Open) is skipped: round 3, attempt 0 is due")
    assert texts["over"] == "run over: enough"


def test_who_comes_back_is_told_from_who_restarted() -> None:
    again = opened(3, (1,), (0, 0))
    restarted = again.__class__(4, 0, (member(1, "t"), member(2)), (0, 1), again.base, 4.0, "tokens done")
    one = [opened(1), committed(1), opened(2, (2,), (0, 0)), committed(2, *_alone()), again]
    said = told(genesis(), *one, committed(3, *_alone()), restarted)
    mine = [text for kind, text in said if kind in ("came", "went") and text.startswith("1 ")]
    assert mine == ["1 comes", "1 is no member any more", "1 is back", "1 is back, restarted"]


def _alone() -> tuple[object, ...]:
    from tests.protocol.support import result

    return result(0, (0, 60.0)), result(1, (0, 60.0))


def test_only_grants_that_take_data_back_are_told() -> None:
    from msgspec.structs import replace

    begun = replace(genesis(), blocks=10)
    grants = Grant((), ((member(1), 4),), "4 blocks to it"), Grant((member(1),), (), "it is gone")
    assert [kind for kind, _ in told(begun, *grants)] == ["run", "data"]


def test_a_disks_history_is_told_line_by_line(disk: Path) -> None:
    lines = potluck("log", str(disk), "--plain").stdout.splitlines()
    assert "run run begins with 2 tensors" in lines[0]
    assert any(line.endswith("round 3 evaluated by one in 0.1 s: loss 2, the best so far") for line in lines)
    assert "up to round 14, the best evaluated one is 3; 1,400 tokens of 1 peer" in lines[-1]
    said = events(potluck("log", str(disk), "--json"))
    numbers = [line["sequence"] for line in said[:-1]]
    assert all(one <= other for one, other in pairwise(numbers))
    commits = [line for line in said if line["event"] == "commit"]
    assert [line["round"] for line in commits] == list(range(1, 15))
    assert commits[-1]["contributors"] == {ME.peer: 100.0}
    assert commits[-1]["total"] == 1400
    judged = {e["round"]: e["metrics"]["loss"] for e in said if e["event"] == "evaluation"}
    assert judged == LOSSES
    last = potluck("log", str(disk), "-n", "3", "--json")
    assert events(last)[:-1] == said[-4:-1]
    assert summary(last)["best"] == 3


def test_no_copy_and_no_invite_is_said(tmp_path: Path) -> None:
    refused = potluck("log", str(tmp_path))
    assert refused.exit_code == 2
    assert "holds no peer's copy of a run" in refused.stderr


# -- the best state on a disk ------------------------------------------------------------------------


def test_what_the_best_state_follows_from_is_kept_and_replayed(disk: Path) -> None:
    copy = DiskCopy(disk)
    found = survey(copy)
    best = found.view.evaluations.best
    assert best is not None
    assert (best.round, sorted(found.whole), found.stretches()) == (3, [2, 12, 14], [(2, 3), (12, 14)])
    state = state_after(copy, found, 3)
    assert state.plane is not None
    assert state.plane.digest == best.state
    result = potluck("verify", str(disk), "--json")
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0, said
    rounds = {line["round"]: line["named_by"] for line in said if line["event"] == "round"}
    assert sorted(rounds) == [3, 13, 14]
    assert "its evaluation" in rounds[3]
    assert any("rounds 4 to 12 are kept no more" in line.get("text", "") for line in said)


def test_damage_where_nothing_may_lack_is_found_as_ever(disk: Path) -> None:
    for round_ in (3, 13):
        found = survey(DiskCopy(disk))
        commits = [e.record.body for e, _ in DiskCopy(disk).records() if getattr(e.record.body, "parts", ())]
        [commit] = [c for c in commits if getattr(c, "round", 0) == round_]
        name = commit.parts[0].digest  # type: ignore[union-attr]
        path = disk / "store" / name[:2] / name
        raw = path.read_bytes()
        path.unlink()
        result = potluck("verify", str(disk))
        assert result.exit_code == 1, (round_, found.stretches())
        assert f"round {round_} can't be replayed: 1 part missing" in result.stderr
        path.write_bytes(raw)
    assert potluck("verify", str(disk)).exit_code == 0


def test_a_fork_begins_with_the_best_state(disk: Path, tmp_path: Path) -> None:
    forked = potluck("fork", "--round", "3", str(disk), str(tmp_path / "new"), "--json")
    assert forked.exit_code == 0, forked.output
    refused = potluck("fork", "--round", "5", str(disk), str(tmp_path / "other"))
    assert refused.exit_code == 1
    assert "holds the run up to round 3" in refused.stderr
