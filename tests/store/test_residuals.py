"""What a peer owes, on a real disk: whole, or refused in words."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from potluck.errors import CorruptData, StoreError
from potluck.store.residuals import Owed, ResidualsFile, Whose, packed, unpacked
from potluck.store.tensors import opened

WHOSE = Whose("run", "a" * 64, "topk", 23, 4)


def values(seed: int, n: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


OWED = Owed(
    7,
    "b" * 64,
    values(0, 23),
    down={2: values(1, 6), 0: values(2, 5)},
    flying=(8, 1, 3),
    counted={0: values(3, 5), 1: values(4, 6)},
    results={2: ("c" * 64, values(5, 6))},
)


def bits(owed: Owed) -> dict[str, Any]:
    """All of it, comparable."""
    kinds = {
        "down": owed.down,
        "counted": owed.counted,
        "results": {p: v for p, (_, v) in owed.results.items()},
    }
    found: dict[str, Any] = {f"{kind}.{p}": v.tobytes() for kind, by in kinds.items() for p, v in by.items()}
    digests = {part: digest for part, (digest, _) in owed.results.items()}
    return found | {"up": owed.up.tobytes(), "said": (owed.round, owed.state, owed.flying, digests)}


@pytest.fixture
def file(tmp_path: Path) -> ResidualsFile:
    return ResidualsFile(tmp_path, WHOSE)


@pytest.mark.parametrize("owed", [OWED, Owed(0, "b" * 64, values(0, 23))])
def test_round_trip_to_the_bit(file: ResidualsFile, owed: Owed) -> None:
    file.write(owed)
    found = file.read()
    assert found is not None
    assert bits(found) == bits(owed)
    assert [path.name for path in file.path.parent.iterdir()] == ["residuals.safetensors"]
    assert load(file.path.read_bytes())["up"].tobytes() == owed.up.tobytes(), "other tools read it"


def test_what_is_there_is_replaced_and_removed(file: ResidualsFile) -> None:
    assert file.read() is None
    file.write(OWED)
    file.write(replace(OWED, round=9))
    found = file.read()
    assert found is not None
    assert found.round == 9
    file.remove()
    file.remove()
    assert file.read() is None


def test_how_large_it_is() -> None:
    owed = Owed(1, "", np.array([3, 0], np.float32), down={0: np.array([-4], np.float32)})
    assert owed.norm == 5
    assert not owed.nothing
    nothing = Owed(1, "", np.zeros(2, np.float32), down={0: np.zeros(1, np.float32)})
    assert nothing.nothing
    assert not replace(nothing, results={0: ("", np.ones(1, np.float32))}).nothing


def test_cut_short_or_longer_at_any_byte_it_is_refused() -> None:
    raw = packed(WHOSE, OWED)
    for short in (raw[:length] for length in range(len(raw))):
        with pytest.raises(CorruptData):
            unpacked(short, WHOSE)
    with pytest.raises(CorruptData):
        unpacked(raw + b"\0", WHOSE)


def test_a_flipped_bit_anywhere_is_refused() -> None:
    raw = packed(WHOSE, OWED)
    for place in range(len(raw)):
        with pytest.raises(CorruptData):
            unpacked(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :], WHOSE)


@pytest.mark.parametrize(
    ("whose", "said"),
    [
        (replace_, f"of the {name} ")
        for name, replace_ in {
            "run": msgspec.structs.replace(WHOSE, run="another"),
            "peer": msgspec.structs.replace(WHOSE, peer="d" * 64),
            "codec": msgspec.structs.replace(WHOSE, codec="int8"),
            "n": msgspec.structs.replace(WHOSE, n=24),
            "ranges": msgspec.structs.replace(WHOSE, ranges=5),
        }.items()
    ],
)
def test_somebody_elses_is_refused(whose: Whose, said: str) -> None:
    with pytest.raises(CorruptData, match=said):
        unpacked(packed(WHOSE, OWED), whose)


def rewritten(**vectors: NDArray[Any]) -> bytes:
    """The same file with other vectors, which it does not vouch for."""
    _, metadata, _ = opened(packed(WHOSE, OWED))
    return bytes(save(vectors, metadata))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (save({"up": values(0, 23)}), "does not say whose"),
        (rewritten(up=values(0, 23)), "not those that were written"),
        (rewritten(up=values(0, 23).astype(np.float64)), "something else"),
        (rewritten(up=values(0, 23), **{"../up": values(0, 2)}), "something else"),
        (packed(WHOSE, replace(OWED, up=np.full(23, np.nan, np.float32))), "NaN or infinity"),
        (packed(WHOSE, replace(OWED, down={1: np.full(6, np.inf, np.float32)})), "NaN or infinity"),
        (b"", "truncated|JSON"),
    ],
)
def test_what_holds_something_else_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(CorruptData, match=said):
        unpacked(raw, WHOSE)


def test_of_a_file_that_is_too_large_nothing_is_read(file: ResidualsFile) -> None:
    with file.path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(CorruptData, match="1099511627776 bytes"):
        file.read()


def test_the_largest_that_there_may_be_is_read(file: ResidualsFile) -> None:
    sizes = [5, 6, 6, 6]
    parts = {part: values(part, n) for part, n in enumerate(sizes)}
    most = replace(OWED, down=parts, counted=parts, results={p: ("c" * 64, v) for p, v in parts.items()})
    file.write(most)
    found = file.read()
    assert found is not None
    assert bits(found) == bits(most)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_what_was_there(
    file: ResidualsFile, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    file.write(OWED)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full) if call == "fsync" else patch.setattr(Path, "replace", full)
        with pytest.raises(StoreError, match="disk is full: free some space"):
            file.write(replace(OWED, round=9))
    found = file.read()
    assert found is not None
    assert found.round == 7
    assert len(list(file.path.parent.iterdir())) == 1
