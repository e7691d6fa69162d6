from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from potluck.errors import CorruptData, ModelMismatch
from potluck.store.snapshots import MODEL, MOMENTUM, load_snapshot, snapshot_files
from potluck.wire.records import TensorSpec

SPECS = (
    TensorSpec("z.weight", (3, 4)),
    TensorSpec("a.bias", (5,)),
    TensorSpec("scalar", ()),
    TensorSpec("none", (0, 7)),
    TensorSpec("m.größe", (2, 1, 2)),
)
N = 12 + 5 + 1 + 0 + 4


def state() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    theta, momentum = np.random.default_rng(0).standard_normal((2, N), dtype=np.float32)
    theta[3], momentum[4] = -0.0, 1e-45
    return theta, momentum


FILES = snapshot_files(SPECS, *state())


def test_round_trip_to_the_bit() -> None:
    theta, momentum = state()
    found = load_snapshot(SPECS, FILES)
    assert [values.tobytes() for values in found] == [theta.tobytes(), momentum.tobytes()]
    assert [values.dtype for values in found] == [np.float32, np.float32]
    for values in found:
        values += 1  # memory of their own


def test_other_tools_read_it() -> None:
    theta, momentum = state()
    model = load(FILES[MODEL])
    assert {name: values.shape for name, values in model.items()} == {s.name: s.shape for s in SPECS}
    assert (model["z.weight"] == theta[:12].reshape(3, 4)).all()
    assert (model["a.bias"] == theta[12:17]).all()
    assert model["scalar"] == theta[17]
    assert (load(FILES[MOMENTUM])["momentum"] == momentum).all()
    for raw in FILES.values():
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert header["__metadata__"] == {"format": "pt"}


def test_the_same_state_gives_the_same_bytes() -> None:
    assert snapshot_files(SPECS, *state()) == FILES
    order = [4, 2, 0, 3, 1]
    theta, momentum = state()
    edges = np.cumsum([0, 12, 5, 1, 0, 4])
    moved = np.concatenate([theta[edges[i] : edges[i + 1]] for i in order])
    assert snapshot_files([SPECS[i] for i in order], moved, momentum)[MODEL] == FILES[MODEL]
    # Peers with different releases of safetensors must agree, or no snapshot is ever agreed on.
    simple = snapshot_files([TensorSpec("w", (2,))], np.ones(2, np.float32), np.zeros(2, np.float32))
    header = b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    padded = header.ljust(-(-len(header) // 8) * 8)
    assert simple[MODEL] == len(padded).to_bytes(8, "little") + padded + np.ones(2, "<f4").tobytes()


@pytest.mark.parametrize("name", [MODEL, MOMENTUM])
def test_a_file_that_lacks(name: str) -> None:
    files = {other: raw for other, raw in FILES.items() if other != name}
    with pytest.raises(CorruptData, match=f"no {name}"):
        load_snapshot(SPECS, files)


@pytest.mark.parametrize("name", [MODEL, MOMENTUM])
def test_cut_short_or_extended(name: str) -> None:
    whole = FILES[name]
    for length in range(len(whole)):
        with pytest.raises(CorruptData, match=f"{name} of the snapshot can't be read"):
            load_snapshot(SPECS, FILES | {name: whole[:length]})
    with pytest.raises(CorruptData, match="can't be read"):
        load_snapshot(SPECS, FILES | {name: whole + b"\0"})


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 100_000_001, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_header_that_claims_another_length(length: int) -> None:
    raw = length.to_bytes(8, "little") + FILES[MODEL][8:]
    with pytest.raises(CorruptData, match="can't be read"):
        load_snapshot(SPECS, FILES | {MODEL: raw})


@pytest.mark.parametrize("header", [b'{"a":' + 100_000 * b"[", b'{"a":{"shape":' + 100_000 * b"["])
def test_a_header_nested_too_deep(header: bytes) -> None:
    raw = len(header).to_bytes(8, "little") + header
    with pytest.raises(CorruptData, match="can't be read"):
        load_snapshot(SPECS, FILES | {MODEL: raw})


@settings(deadline=None)
@given(place=st.integers(0, len(FILES[MODEL]) - 4 * N - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header(place: int, bit: int) -> None:
    raw = bytearray(FILES[MODEL])
    raw[place] ^= 1 << bit
    try:
        theta, _ = load_snapshot(SPECS, FILES | {MODEL: bytes(raw)})
    except CorruptData:
        return
    assert theta.shape == (N,)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage(raw: bytes) -> None:
    with pytest.raises(CorruptData):
        load_snapshot(SPECS, FILES | {MODEL: raw})


def change(alter: Callable[[dict[str, NDArray[np.float32]]], object]) -> dict[str, bytes]:
    tensors = load(FILES[MODEL])
    alter(tensors)
    return FILES | {MODEL: save(tensors)}


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda t: t.pop("a.bias"), "a.bias missing or too many"),
        (lambda t: t.update(extra=np.ones(2, np.float32)), "extra missing or too many"),
        (lambda t: t.update({"z.weight": t["z.weight"].T.copy()}), r"z.weight in .* is F32 \(4, 3\), not"),
        (lambda t: t.update(scalar=np.ones(1, np.float32)), r"scalar in .* is F32 \(1,\), not F32 \(\)"),
        (lambda t: t.update({"a.bias": np.ones(5, np.float16)}), r"a.bias in .* is F16"),
        (lambda t: t.update({"a.bias": np.ones(5, np.int32)}), r"a.bias in .* is I32"),
        (lambda t: t.update({"z.weight": np.ones((3, 4), np.float64)}), r"z.weight in .* is F64"),
    ],
)
def test_tensors_that_are_not_the_runs(
    alter: Callable[[dict[str, NDArray[np.float32]]], object], words: str
) -> None:
    with pytest.raises(CorruptData, match=words):
        load_snapshot(SPECS, change(alter))


def test_momentum_of_another_size() -> None:
    for odd in ({"momentum": np.zeros(N - 1, np.float32)}, {"m": np.zeros(N, np.float32)}):
        with pytest.raises(CorruptData, match=MOMENTUM):
            load_snapshot(SPECS, FILES | {MOMENTUM: save(odd)})


def test_specs_that_do_not_fit_the_state() -> None:
    theta, momentum = state()
    for odd in ((theta[1:], momentum), (theta, momentum[1:]), (theta[:, None], momentum)):
        with pytest.raises(ModelMismatch, match=f"hold {N} values"):
            snapshot_files(SPECS, *odd)
    twice = [TensorSpec("a", (1,)), TensorSpec("a", (1,))]
    with pytest.raises(ModelMismatch, match="same name"):
        snapshot_files(twice, theta[:2], momentum[:2])
