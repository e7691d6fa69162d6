"""The chain of records: each names the one before, so a copy that was altered gives itself away."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from potluck.errors import CorruptData
from potluck.wire.codec import digest, encode
from potluck.wire.records import ZERO, Chain, Record, Snapshot, Unreadable, chunk_sizes, manifest

from .examples import BLOB, BODIES, A, B, C


def chained(*authors: str) -> list[bytes]:
    """A ledger with one record of each author."""
    chain, raws = Chain(), []
    for author, body in zip(authors, BODIES, strict=False):
        raws.append(chain.next(author, body))
        chain.follow(chain.sequence + 1, raws[-1])
    return raws


LEDGER = chained(A, B, A, B)


def follow(*raws: bytes) -> Chain:
    chain = Chain()
    for raw in raws:
        chain.follow(chain.sequence + 1, raw)
    return chain


def test_a_ledger_is_followed_from_its_start() -> None:
    chain = Chain()
    assert (chain.sequence, chain.head) == (0, ZERO)
    for number, raw in enumerate(LEDGER, 1):
        entry = chain.follow(number, raw)
        assert (entry.sequence, entry.hash) == (number, digest(raw))
        assert entry.record.body == BODIES[number - 1]
        assert (chain.sequence, chain.head) == (number, digest(raw))


def test_two_writers_on_one_head_write_records_that_both_follow_from_it() -> None:
    chain = follow(*LEDGER[:2])
    one, other = chain.next(A, BODIES[2]), chain.next(B, BODIES[3])
    chain.follow(3, one)
    with pytest.raises(CorruptData, match="as the one before it"):
        chain.follow(4, other)


@pytest.mark.parametrize(
    ("sequence", "raw"), [(4, LEDGER[3]), (2, LEDGER[1]), (1, LEDGER[0]), (0, LEDGER[0])]
)
def test_a_gap_or_a_repetition_is_refused_and_changes_nothing(sequence: int, raw: bytes) -> None:
    chain = follow(*LEDGER[:2])
    with pytest.raises(CorruptData, match=f"ledger record {sequence} came where 3 was due"):
        chain.follow(sequence, raw)
    assert (chain.sequence, chain.head) == (2, digest(LEDGER[1]))
    chain.follow(3, LEDGER[2])


def test_a_record_left_out_is_noticed_at_the_next() -> None:
    chain = follow(*LEDGER[:1])
    with pytest.raises(CorruptData, match=r"the hub's copy was altered; do not trust this hub"):
        chain.follow(2, LEDGER[2])


def test_two_records_swapped_are_noticed() -> None:
    chain = follow(LEDGER[0])
    with pytest.raises(CorruptData):
        chain.follow(2, LEDGER[2])


def test_a_record_that_was_altered_is_noticed_at_the_next_wherever_the_change_is() -> None:
    for place in range(len(LEDGER[1])):
        altered = bytearray(LEDGER[1])
        altered[place] ^= 1
        chain = follow(LEDGER[0])
        with pytest.raises(CorruptData, match="do not trust this hub"):
            _follow_both(chain, bytes(altered), LEDGER[2])


def _follow_both(chain: Chain, *raws: bytes) -> None:
    for raw in raws:
        chain.follow(chain.sequence + 1, raw)


@pytest.mark.parametrize("garbage", [b"", b"garbage", LEDGER[2][:-1], encode(BODIES[5])])
def test_what_is_no_record_has_its_place_in_the_chain_and_says_nothing(garbage: bytes) -> None:
    chain = follow(*LEDGER[:2])
    entry = chain.follow(3, garbage)
    assert isinstance(entry.record.body, Unreadable)
    assert entry.record.body.reason.startswith("it can't be read: ")
    assert chain.head == digest(garbage)
    after = chain.next(A, BODIES[2])
    assert chain.follow(4, after).record.body == BODIES[2]
    altered = follow(*LEDGER[:2])
    altered.follow(3, garbage + b"?")
    with pytest.raises(CorruptData, match="do not trust this hub"):
        altered.follow(4, after)


def test_the_first_record_follows_from_nothing() -> None:
    with pytest.raises(CorruptData):
        Chain().follow(1, encode(Record(C, A, BODIES[0])))


def test_a_snapshots_manifest_is_about_its_content_only() -> None:
    one = Snapshot(3, A, (BLOB,), "two wrote it")
    assert manifest(one) == manifest(replace(one, reason="three wrote it"))
    others = [
        replace(one, round=4),
        replace(one, state=B),
        replace(one, files=()),
        replace(one, files=(BLOB, BLOB)),
        replace(one, files=(replace(BLOB, name="other"),)),
        replace(one, files=(replace(BLOB, chunks=(B, A)),)),
    ]
    assert len({manifest(one), *map(manifest, others)}) == 7


@pytest.mark.parametrize(
    "change", [{"size": 3}, {"size": 9}, {"size": 0}, {"chunk_bytes": 3}, {"chunks": ()}]
)
def test_a_file_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    assert chunk_sizes(BLOB) == [4, 3]
    with pytest.raises(CorruptData, match="whoever announced it made that up"):
        chunk_sizes(replace(BLOB, **change))
