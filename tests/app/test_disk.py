"""``verify``, ``fork`` and ``host --resume`` on disks made by hand, some of them damaged or altered."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from potluck.identity import claim
from potluck.peer.disks import find_disk
from potluck.peer.layout import part_bounds
from potluck.peer.replay import state_after, survey
from potluck.peer.resume import home_for, open_copy, prepare
from potluck.store.copies import DiskCopy
from potluck.store.journal import NAME, frame, read_frames
from potluck.wire.codec import decode, encode
from potluck.wire.records import Chain, Commit, Record, Snapshot
from tests.peer.written import PARTS, RECIPE, N, write_run

from .shells import potluck, summary

LINES = [1, 2, 3, 4, 5, 6, 7]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The data directory of a machine whose peer was in a run of seven rounds, snapshots at 0, 2, 4 and 6."""
    home = tmp_path / "home"
    with claim(home / "keys") as claimed:
        write_run(home / "runs" / "run" / claimed.directory.name, rounds=7, keep=4)
    return home


@pytest.fixture
def disk(home: Path) -> Path:
    return home / "runs" / "run" / "peer-1"


def verify(source: Path) -> tuple[int, list[dict[str, Any]]]:
    result = potluck("verify", str(source), "--json")
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def bodies(disk: Path) -> list[Any]:
    return [entry.record.body for entry, _ in DiskCopy(disk).records()]


def part_of(disk: Path, round_: int, part: int = 0) -> Path:
    [commit] = [b for b in bodies(disk) if isinstance(b, Commit) and b.round == round_]
    digest = commit.parts[part].digest
    return disk / "store" / digest[:2] / digest


def chunk_of(disk: Path, round_: int) -> Path:
    """A chunk that only this snapshot has."""
    snapshots = {
        b.round: {c for f in b.files for c in f.chunks} for b in bodies(disk) if isinstance(b, Snapshot)
    }
    [*others] = [chunks for r, chunks in snapshots.items() if r != round_]
    digest = min(snapshots[round_] - set().union(*others))
    return disk / "store" / digest[:2] / digest


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


# -- verify ------------------------------------------------------------------------------------------


def test_a_sound_disk_is_said_round_by_round(home: Path, disk: Path) -> None:
    for where in (home, home / "runs" / "run", disk):
        code, said = verify(where)
        assert code == 0, said
        rounds = [line for line in said if line["event"] == "round"]
        assert [line["round"] for line in rounds] == LINES
        assert all(line["parts"] == PARTS for line in rounds)
        assert rounds[1]["named_by"] == ["the snapshot of round 2", "the open of round 3"]
        assert rounds[-1]["named_by"] == []
        assert (said[-1]["event"], said[-1]["replayed"], said[-1]["start"]) == ("summary", 7, 0)
        assert said[-1]["state"] == rounds[-1]["state"]
    text = potluck("verify", str(home), "--plain").stdout
    assert "round 3  state" in text
    assert "all is as the ledger says" in text


def test_a_run_in_fragments_is_replayed_from_any_of_its_snapshots(tmp_path: Path) -> None:
    """Which fragment a round has follows from its number, wherever one begins."""
    recipe = replaced(RECIPE, rounds=replaced(RECIPE.rounds, fragments=3, overlap="mix"))
    states = []
    for keep in (2, 4):
        write_run(tmp_path / str(keep), rounds=7, keep=keep, recipe=recipe)
        code, said = verify(tmp_path / str(keep))
        assert code == 0, said
        states.append({line["round"]: line["state"] for line in said if line["event"] == "round"})
    assert sorted(states[0]) == [5, 6, 7]
    assert states[0].items() <= states[1].items()
    copy = DiskCopy(tmp_path / "4")
    parts = part_bounds(N, 3 * PARTS)
    for round_ in range(1, 8):
        old, new = (state_after(copy, survey(copy), r).plane for r in (round_ - 1, round_))
        assert old is not None
        assert new is not None
        moved = [bool((old.theta[bounds] != new.theta[bounds]).any()) for bounds in parts]
        assert moved == [place % 3 == round_ % 3 for place in range(3 * PARTS)]


def test_what_is_kept_no_more_is_not_missed(tmp_path: Path) -> None:
    write_run(tmp_path / "peer", rounds=7, keep=2)
    code, said = verify(tmp_path / "peer")
    assert code == 0, said
    assert [line["round"] for line in said if line["event"] == "round"] == [5, 6, 7]
    assert said[-1]["start"] == 4


@pytest.mark.parametrize(("round_", "part"), [(1, 0), (4, PARTS - 1), (7, 1)])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_part_that_is_damaged_or_missing_is_named_with_its_round(
    disk: Path, round_: int, part: int, how: str
) -> None:
    path = part_of(disk, round_, part)
    flip(path) if how == "flipped" else path.unlink()
    before = {p: p.read_bytes() for p in disk.rglob("*") if p.is_file()}
    code, said = verify(disk)
    assert code == 1
    assert [line["round"] for line in said if line["event"] == "round"] == LINES[: round_ - 1]
    assert said[-1]["event"] == "error"
    how = "damaged" if how == "flipped" else "missing"
    assert f"round {round_} can't be replayed: 1 part {how} ({path.name[:12]})" in said[-1]["text"]
    assert f"holds the run up to round {round_ - 1}, its journal goes up to round 7" in said[-1]["text"]
    assert before == {p: p.read_bytes() for p in disk.rglob("*") if p.is_file()}, "nothing is changed"


@pytest.mark.parametrize("round_", [0, 2, 6])
def test_a_flipped_byte_in_a_snapshot_is_found(disk: Path, round_: int) -> None:
    flip(chunk_of(disk, round_))
    code, said = verify(disk)
    assert code == 1
    assert f"the snapshot of round {round_} can't be loaded: 1 chunk damaged" in said[-1]["text"]


def test_a_flipped_byte_in_what_no_record_needs_is_found_too(disk: Path) -> None:
    stray = DiskCopy(disk)._store.put(b"something that came and was never committed")
    flip(disk / "store" / stray[:2] / stray)
    code, said = verify(disk)
    assert code == 1
    assert f"1 file damaged ({stray[:12]})" in said[-1]["text"]


def test_without_a_whole_snapshot_there_is_nothing_to_replay(disk: Path) -> None:
    for round_ in (0, 2, 4):
        for chunk in {
            c
            for b in bodies(disk)
            if isinstance(b, Snapshot) and b.round == round_
            for f in b.files
            for c in f.chunks
        }:
            (disk / "store" / chunk[:2] / chunk).unlink(missing_ok=True)
    chunk_of(disk, 6).unlink()
    code, said = verify(disk)
    assert code == 1
    assert (
        "holds no state to go on from: of the last snapshots, that of round 4 is not here" in said[-1]["text"]
    )
    assert "that of round 6 lacks" in said[-1]["text"]


def rewrite(disk: Path, change: Any, chained: bool) -> None:
    """Alter records; with ``chained`` whoever did it forged the rest of the chain too."""
    with (disk / NAME).open("rb") as file:
        raws = [raw for _, raw in read_frames(file)]
    chain, made = Chain(), []
    for raw in raws:
        record = decode(raw, Record)
        body = change(record.body)
        if chained:
            raw = chain.next(record.author, body)
            chain.follow(chain.sequence + 1, raw)
        else:
            raw = encode(Record(record.previous, record.author, body))
        made.append(raw)
    (disk / NAME).write_bytes(b"".join(frame(n, raw) for n, raw in enumerate(made, 1)))


def _more_tokens(body: Any) -> Any:
    return replace(body, tokens=body.tokens + 1) if isinstance(body, Commit) and body.round == 3 else body


def test_an_altered_record_breaks_the_chain(disk: Path) -> None:
    rewrite(disk, _more_tokens, chained=False)
    code, said = verify(disk)
    assert code == 1
    assert "the journal in" in said[-1]["text"]
    assert "go on from another peer's disk" in said[-1]["text"]


def test_a_flipped_byte_in_the_journal_is_found(disk: Path) -> None:
    flip(disk / NAME)
    code, said = verify(disk)
    assert code == 1
    assert "is good up to record" in said[-1]["text"]


def test_a_forged_history_whose_chain_is_whole_gives_another_state(disk: Path) -> None:
    parts = {b.round: b.parts for b in bodies(disk) if isinstance(b, Commit)}

    def forge(body: Any) -> Any:
        return replace(body, parts=parts[2]) if isinstance(body, Commit) and body.round == 3 else body

    rewrite(disk, forge, chained=True)
    code, said = verify(disk)
    assert code == 1
    assert "the state after round 3 is" in said[-1]["text"]
    assert "and the open of round 4 names" in said[-1]["text"]


def test_a_directory_without_a_run_is_said_so(tmp_path: Path, home: Path) -> None:
    result = potluck("verify", str(tmp_path / "nothing"))
    assert result.exit_code == 2
    assert "holds no peer's copy of a run" in result.stderr
    shutil.copytree(home / "runs" / "run", home / "runs" / "other")
    result = potluck("verify", str(home))
    assert result.exit_code == 2
    assert "holds several runs, say which" in result.stderr


# -- fork --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", [0, 1, 4, 7])
def test_a_fork_begins_with_the_state_after_its_round(home: Path, tmp_path: Path, round_: int) -> None:
    new = tmp_path / "new"
    done = potluck("fork", "--round", str(round_), str(home), str(new), "--json")
    assert done.exit_code == 0, done.output
    said = summary(done)
    assert said["next"] == f"potluck host --resume {new}"
    code, lines = verify(new)
    assert code == 0, lines
    old, forked = DiskCopy(find_disk(home)), DiskCopy(find_disk(new))
    then = state_after(old, survey(old), round_).plane
    now = state_after(forked, survey(forked), 0).plane
    assert then is not None
    assert now is not None
    assert then.theta.tobytes() == now.theta.tobytes()
    assert then.momentum.tobytes() == now.momentum.tobytes()
    genesis = survey(forked).genesis
    assert genesis.run == said["run"] != "run"
    assert (genesis.recipe, genesis.tensors, genesis.parts) == (
        survey(old).genesis.recipe,
        survey(old).genesis.tensors,
        survey(old).genesis.parts,
    )
    assert genesis.state == now.digest
    assert f"forked from run run after its round {round_}" in bodies(find_disk(new))[1].reason
    assert open_copy(new).get(genesis.assets[0].chunks[0]) == b"the run's text"


def test_a_fork_is_of_a_round_that_is_kept_and_into_a_new_place(tmp_path: Path, home: Path) -> None:
    write_run(tmp_path / "peer", rounds=7, keep=2)
    for round_, told in (("3", "keeps the run from round 4 on, not round 3"), ("8", "up to round 7, not 8")):
        refused = potluck("fork", "--round", round_, str(tmp_path / "peer"), str(tmp_path / "new"))
        assert refused.exit_code == 2
        assert told in refused.stderr
        assert not (tmp_path / "new").exists()
    refused = potluck("fork", "--round", "7", str(tmp_path / "peer"), str(home))
    assert refused.exit_code == 2
    assert "is not empty" in refused.stderr


# -- what a run is resumed from ----------------------------------------------------------------------


def test_a_disk_in_its_data_directory_is_used_where_it_is(home: Path, disk: Path) -> None:
    for source in (home, disk):
        assert home_for(source, None) == home
        prepared = prepare(source, None)
        prepared.claimed.release()
        assert (prepared.home, prepared.directory) == (home, disk)
        assert prepared.warning == ""
        assert prepared.claimed.directory == home / "keys" / "peer-1"
    with claim(home / "keys", 1):
        refused = potluck("host", "--resume", str(home))
    assert refused.exit_code == 2
    assert "its peer is running" in refused.stderr


def test_a_disk_from_elsewhere_is_copied(disk: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    shutil.copytree(disk, backup)
    part_of(backup, 1).unlink()  # of before the newest snapshot: nobody needs it
    prepared = prepare(backup, tmp_path / "mine")
    prepared.claimed.release()
    assert prepared.directory == tmp_path / "mine" / "runs" / "run" / "peer-1"
    assert (prepared.directory / NAME).read_bytes() == (disk / NAME).read_bytes()
    code, said = verify(prepared.directory)
    assert code == 0, said
    assert [line["round"] for line in said if line["event"] == "round"] == [7], "as little as is needed"
    refused = potluck("host", "--resume", str(backup), "--directory", str(tmp_path / "mine"))
    assert refused.exit_code == 2
    assert "has a copy of that run already" in refused.stderr


def test_parts_of_the_last_rounds_that_lack_are_waited_for_and_said(disk: Path) -> None:
    path = part_of(disk, 7, 1)
    path.unlink()
    prepared = prepare(disk, None)
    prepared.claimed.release()
    assert (
        f"up to round 6, and rounds up to 7 are committed: parts of round 7 are not here ({path.name[:12]})"
        in (prepared.warning)
    )
    assert f"potluck fork --round 6 {disk} NEWDIR" in prepared.warning


def test_an_older_snapshot_and_all_rounds_since_are_enough(disk: Path) -> None:
    """The fold of all peers has only the last two snapshots, and neither is here."""
    for round_ in (4, 6):
        chunk_of(disk, round_).unlink()
    prepared = prepare(disk, None)
    prepared.claimed.release()
    code, said = verify(disk)
    assert code == 0, said
    assert set(survey(DiskCopy(disk)).whole) == {0, 2, 6}


def test_not_enough_is_said_before_anything_is_started(disk: Path, tmp_path: Path) -> None:
    asset = survey(DiskCopy(disk)).genesis.assets[0].chunks[0]
    (disk / "store" / asset[:2] / asset).unlink()
    refused = potluck("host", "--resume", str(disk))
    assert refused.exit_code == 1
    assert "lacks 1 pieces of the run's files (text.txt)" in refused.stderr
    shutil.rmtree(disk / "store")
    refused = potluck("host", "--resume", str(disk))
    assert refused.exit_code == 1
    assert "holds no state to go on from" in refused.stderr
    assert not (tmp_path / "home" / "hubs").exists()


def test_the_longest_copy_of_a_run_is_taken(home: Path, disk: Path) -> None:
    shorter = disk.with_name("peer-2")
    shutil.copytree(disk, shorter)
    raw = (shorter / NAME).read_bytes()
    (shorter / NAME).write_bytes(raw[:-10])
    assert find_disk(home) == disk
    (disk / NAME).write_bytes(raw[: len(raw) // 2])
    assert find_disk(home) == shorter
