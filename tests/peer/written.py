"""A peer's directory as a run leaves it, without a run: journal and store, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from msgspec.structs import replace

from potluck.peer.state import PeerState, genesis_of
from potluck.protocol.keeping import Keeping
from potluck.protocol.view import RunView
from potluck.recipe import Outer, Recipe, Rounds, Task
from potluck.store.blobs import write_blob
from potluck.store.journal import NAME, Journal
from potluck.store.store import Store
from potluck.wire.codec import WIRE, digest
from potluck.wire.records import Chain, Commit, Evaluation, Member, Open, TensorSpec

TENSORS = (TensorSpec("a.weight", (6, 5)), TensorSpec("b.bias", (11,)))
N, PARTS, EVERY = 41, 3, 2
RECIPE = Recipe(task=Task(), outer=Outer("nesterov"), rounds=Rounds(parts=PARTS, snapshot_every=EVERY))
ME = Member("a" * 64, "1")
NOTHING: Mapping[int, float] = MappingProxyType({})


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(N).astype(np.float32)


def write_run(
    directory: Path,
    rounds: int,
    keep: int = 2,
    run: str = "run",
    recipe: Recipe = RECIPE,
    losses: Mapping[int, float] = NOTHING,
) -> None:
    """A run of one peer: ``rounds`` rounds, a snapshot recorded every other one, ``keep`` snapshots kept, and
    what the best of the evaluated states follows from (``losses`` by round).
    """
    store, journal = Store(directory / "store"), Journal(directory / NAME)
    genesis = genesis_of(run, recipe, TENSORS, values(0), WIRE)
    genesis = replace(genesis, assets=(write_blob(store, "text.txt", b"the run's text"),))
    chain, view = Chain(), RunView()
    have = store.digests()
    keeping = Keeping(have, keep, best=True)
    retention = keeping.retention
    state = PeerState(store, recipe, genesis)
    state.begin(values(0), np.zeros(N, np.float32), 0)
    plane = state.plane
    assert plane is not None

    def append(body: object) -> None:
        raw = chain.next(ME.peer, body)  # type: ignore[arg-type]
        assert view.follow(chain.follow(chain.sequence + 1, raw)) is None
        journal.append([(chain.sequence, raw)])

    def snapshot() -> None:
        body = replace(state.write_snapshot(), reason="one peer wrote it")
        append(body)
        have.update(c for blob in body.files for c in blob.chunks)
        retention.recorded(body, have)

    append(genesis)
    snapshot()
    for round_ in range(1, rounds + 1):
        append(Open(round_, 0, (ME,), (0,) * PARTS, plane.digest, 1.0, "tokens done"))
        state.cut(round_, 0, 0, values(round_), 100.0)
        infos = []
        for part in range(PARTS):
            info, _ = state.reduce(round_, 0, part, [0])
            assert info is not None
            infos.append(info)
        commit = Commit(round_, 0, tuple(infos), 100, 2.5, "all held").abridged()
        append(commit)
        have.update(info.digest for info in infos)
        retention.committed(commit)
        state.apply(commit.spelt_out())
        if round_ in losses:
            append(Evaluation(round_, plane.digest, (("loss", losses[round_]),), "by one in 0.1 s"))
            keeping.judged(view.evaluations.grounds)
        if round_ % EVERY == 0:
            snapshot()
    asset = digest(b"the run's text")
    store.keep_only(retention.keep() | {asset})
    journal.close()
