"""Peers of several ranks beside others: the same bits, and a rank's death ends only its peer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.swarm import Peer

pytestmark = pytest.mark.integration

PROGRAM = Path(__file__).with_name("ranks_program.py")
START_S = 90
END_S = 90

Start = Callable[..., list[Peer]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start all ranks of a peer of some kind; it hosts unless it gets an invite."""
    started: list[Peer] = []

    def peer(kind: str, invite: str = "", rounds: int = 0, epochs: int = 0, peers: int = 2) -> list[Peer]:
        what, begins = ("join", invite) if invite else ("host", str(rounds))
        rest = (begins, str(epochs), str(peers))
        ranks = range(2 if kind in ("ddp", "fsdp") else 1)
        where = str(tmp_path / kind)
        new = [Peer(what, where, kind, kind, str(rank), *rest, program=PROGRAM) for rank in ranks]
        started.extend(new)
        return new

    yield peer
    for one in started:
        one.end()


def ends(*peers: list[Peer]) -> list[dict[str, object]]:
    return [rank.wait("ended", END_S) for ranks in peers for rank in ranks]


def test_peers_in_fp32_bf16_and_fsdp_end_with_the_same_bits(start: Start) -> None:
    plain = start("fp32", rounds=5, peers=3)
    invite = plain[0].wait("invite", START_S)["invite"]
    sharded, half = start("fsdp", invite, peers=3), start("bf16", invite, peers=3)
    first, spread, beside, brief = ends(plain, sharded, half)
    assert first["state"] == spread["state"] == brief["state"]
    assert first["parameters"] == spread["parameters"] == beside["parameters"]
    assert first["over"] == spread["over"] == beside["over"] == brief["over"]
    assert first["round"] == spread["round"] == beside["round"] == 5
    assert spread["ended"] == beside["ended"] > 0, "both ranks take the same steps"
    assert "only rank 0 of this peer" in str(beside["refused"])


def test_data_is_shared_by_the_ranks_of_a_peer_that_hosts(start: Start) -> None:
    """Compiled and in DDP, its parameters have other names; the other peer's are plain."""
    copied = start("ddp", epochs=2)
    invite = copied[0].wait("invite", START_S)["invite"]
    assert copied[1].wait("invite", START_S)["invite"] == invite
    plain = start("fp32", invite, epochs=2)
    first, second, other = ends(copied, plain)
    assert first["over"] == second["over"] == "all 152 blocks of the data are in the model, each once"
    assert first["state"] == other["state"]
    assert first["parameters"] == second["parameters"] == other["parameters"]


def test_a_rank_that_dies_ends_its_peer_in_words_and_not_the_run(start: Start) -> None:
    plain = start("fp32", rounds=4)
    speaker, beside = start("fsdp", plain[0].wait("invite", START_S)["invite"])
    speaker.wait("trains", START_S)
    beside.kill()
    said = speaker.wait("error", END_S)["error"]
    assert said.startswith("EnvironmentProblem: another rank of this peer ended or does not answer")
    assert "start all ranks of the peer again" in said
    assert speaker.process.wait(30) == 1
    [first] = ends(plain)
    assert first["round"] == 4


def test_ranks_that_go_astray_are_told_so_and_none_hangs(tmp_path: Path) -> None:
    program = Path(__file__).with_name("ranks_astray.py")
    ranks = [Peer(str(tmp_path), "-", str(rank), program=program) for rank in range(2)]
    try:
        expected = {
            "invite": "InviteError: the invite is mistyped",
            "model": "UsageError: rank 1 of this peer has another model than rank 0",
            "stops": "UsageError: rank 1 of this peer leaves the run while rank 0 ends a step",
            "fails": "EnvironmentProblem: another rank of this peer ended or does not answer",
            "drifts": "UsageError: rank 1 of this peer has other parameters than rank 0",
        }
        for what, words in expected.items():
            for number, rank in enumerate(ranks):
                ours = "ZeroDivisionError" if (what, number) == ("fails", 1) else words
                assert rank.wait(what, START_S)[what].startswith(ours)
    finally:
        for rank in ranks:
            rank.end()


def test_the_example_runs_as_its_head_says(tmp_path: Path) -> None:
    """Two ranks by torchrun host, a process on its own joins."""
    example = Path(__file__).parents[2] / "examples" / "fsdp.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    def run(*command: str) -> subprocess.Popen[str]:
        here = os.environ | {"XDG_DATA_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=here, cwd=tmp_path)

    started = [run(*torchrun, str(example))]
    try:
        assert started[0].stdout is not None
        invite = started[0].stdout.readline().strip()
        started.append(run(sys.executable, str(example), invite))
        first, second = [process.communicate(timeout=END_S)[0] for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=30)
    end = first.splitlines()[-1]
    assert end.endswith("all 750 blocks of the data are in the model, each once")
    assert second.splitlines()[-1] == end
    assert float(end.split("loss ")[1].split(":")[0]) < 2, "of a target whose variance is 14"
