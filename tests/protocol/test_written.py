"""Snapshots of one's own: announced until others take their place."""

from __future__ import annotations

from potluck.protocol.catchup import chunks
from potluck.protocol.written import Written
from potluck.wire.records import manifest

from .support import snapshot


def test_only_the_last_two_wait_to_be_recorded() -> None:
    written = Written()
    assert not any(written.add(snapshot(round_), recorded=[4]) for round_ in (4, 8, 12))
    assert written.add(snapshot(16), recorded=[4])
    assert sorted(written) == [4, 12, 16]
    assert written[12] == (manifest(snapshot(12)), snapshot(12))
    assert written.content() == {d for r in (4, 12, 16) for d, _ in chunks(snapshot(r).files)}
    written.only([16, 20])
    assert sorted(written) == [16]
