"""One of each message and record, with every field set to something else than its default."""

from __future__ import annotations

from typing import Any

from potluck.wire.codec import WIRE
from potluck.wire.messages import (
    Answer,
    Fetch,
    Hello,
    Progress,
    PushContribution,
    PushPartial,
    PushResult,
    Request,
)
from potluck.wire.records import (
    Blob,
    Commit,
    Evaluation,
    Finish,
    Genesis,
    Grant,
    Held,
    Member,
    Move,
    Open,
    PartInfo,
    Reassign,
    Record,
    Snapshot,
    TensorSpec,
)
from potluck.wire.result import Tally

A, B, C = "a" * 64, "b" * 64, "c" * 64
ONE, TWO = Member(A, "session-1"), Member(B, "session-2")
BLOB = Blob("model.safetensors", 7, 4, (A, B))
INFO = PartInfo(1, C, 800, ((0, 60.5), (1, 40.0)))
SHORT = PartInfo(2, A, 900, (), (), (1, 4))
TALLY = Tally(3, 1, 2, ((0, 60.5), (1, 40.0)), ((0, 12),))

BODIES: list[Any] = [
    Genesis("run", WIRE, "recipe", (TensorSpec("w", (2, 3)), TensorSpec("s", ())), 4, A, (BLOB,), base=B),
    Open(3, 1, (ONE, TWO), (0, 1, 0), C, 4.5, "tokens done", 2),
    Reassign(3, 1, ((2, 1), (0, 1)), "somebody died"),
    Commit(3, 1, (INFO,), 100, 2.5, "all held"),
    Commit(3, 1, (INFO,), 100, 2.5, "all held", ((0, 12), (1, 7))),
    Commit(3, 1, (SHORT,), 100, 2.5, "all held", (), ((0, 60.5), (1, 40.0), (4, 8.0))),
    Grant((TWO,), ((ONE, 40),), "it wants some"),
    Snapshot(3, A, (BLOB,), "two wrote it"),
    Evaluation(3, A, (("loss", 2.5), ("bits per byte", 1.25)), "held-out text", rises=True),
    Finish(9, "enough"),
    Move(2, b"signature", "three hubs"),
]

REQUESTS: list[Any] = [
    Hello(WIRE, "run", "session-1"),
    PushContribution(3, 1, 2, 60.5, 800, 12),
    PushPartial(3, 1, 2, ((0, 60.5), (4, 40.0)), ((0, 12),), (8, 12), 800),
    PushResult(3, 1, INFO.held),
    Fetch(C, compressed=True),
]

PROGRESS = Progress(
    peer=A,
    session="session-1",
    beat=7,
    every_s=2.5,
    since=2,
    name="ann",
    version="0.1.0",
    machine="m",
    addresses=("127.0.0.1:1",),
    phase="training",
    round=3,
    state=B,
    tokens=12.5,
    steps=4,
    tokens_per_s=99.5,
    step_s=0.25,
    idle_s=0.125,
    uplink=1e6,
    downlink=2e6,
    rtt_s=0.125,
    loss=2.5,
    leased=40,
    wants=10,
    waiting=True,
    evaluates=True,
    evaluating=2,
    attempt=1,
    abstains=True,
    held=(INFO.held, Held(2, A, 900)),
    snapshots={3: C},
    parts_from=1,
    fetching=4,
    eta_s=1.25,
    bytes_sent=5,
    bytes_received=6,
    activity="training",
)

ANSWER = Answer(False, "late", True, 9, 5, version=True, known=(0, 4))

MESSAGES: list[tuple[Any, Any]] = [
    *((Record(C, A, body), Record) for body in BODIES),
    *((request, Request) for request in REQUESTS),
    (PROGRESS, Progress),
    (ANSWER, Answer),
    (BLOB, Blob),
    (INFO, PartInfo),
    (SHORT, PartInfo),
    (TALLY, Tally),
    (INFO.held, Held),
    (ONE, Member),
]


def label(value: Any) -> str:
    return type(value.body).__name__ if isinstance(value, Record) else type(value).__name__
