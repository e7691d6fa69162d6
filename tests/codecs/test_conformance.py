"""What every codec must do, and what each promises about its error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from potluck.codecs import CODECS, Codec, codec
from potluck.codecs.int8 import BLOCK
from potluck.errors import CorruptData, RecipeError

SIZES = [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 256 * BLOCK, 256 * BLOCK + 1, 300 * BLOCK + 5]
LARGEST = np.finfo(np.float32).max
TINY = np.finfo(np.float32).tiny

unhurried = settings(deadline=None)
every_codec = pytest.mark.parametrize("coder", CODECS.values(), ids=list(CODECS))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = arrays(np.float32, st.integers(0, 40), elements=finite)


def spread(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Values whose magnitude differs a lot from block to block."""
    rng = np.random.default_rng(seed)
    scale = np.repeat(10.0 ** rng.uniform(-6, 2, -(-n // BLOCK)), BLOCK)[:n]
    return (rng.standard_normal(n) * scale).astype(np.float32)


def largest_error(coder: Codec, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Bound on each value's error [n], in float64: none for fp32; for int8 half a step of its block."""
    if coder.name == "fp32":
        return np.zeros(values.size)
    bounds = np.zeros(values.size)
    for start in range(0, values.size, BLOCK):
        block = np.abs(values[start : start + BLOCK].astype(np.float64))
        bounds[start : start + BLOCK] = block.max() / 254 * (1 + 1e-4)
        if block.max() < 127.01 * TINY:
            bounds[start : start + BLOCK] = block.max()
    return bounds


def check(coder: Codec, values: NDArray[np.float32]) -> None:
    raw = coder.encode(values)
    assert type(raw) is bytes
    assert len(raw) == coder.size(values.size)
    assert raw == coder.encode(values.copy())
    decoded = coder.decode(raw, values.size)
    assert decoded.dtype == np.float32
    assert decoded.shape == values.shape
    assert np.isfinite(decoded).all()
    error = np.abs(decoded.astype(np.float64) - values.astype(np.float64))
    assert (error <= largest_error(coder, values)).all()
    assert coder.decode(memoryview(raw), values.size).tobytes() == decoded.tobytes()
    decoded += 1  # memory of its own: neither read-only nor anybody else's
    assert coder.encode(values) == raw


@every_codec
@pytest.mark.parametrize("n", SIZES)
def test_round_trip_at_block_edges(coder: Codec, n: int) -> None:
    check(coder, spread(n))


@every_codec
@unhurried
@given(values=vectors)
def test_round_trip_of_any_floats(coder: Codec, values: NDArray[np.float32]) -> None:
    check(coder, values)


@every_codec
@pytest.mark.parametrize(
    "value",
    [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1e-43,
        5e-39,
        TINY,
        126 * TINY,
        127 * TINY,
        128 * TINY,
        1.0,
        LARGEST,
        -LARGEST,
    ],
)
def test_round_trip_of_extreme_blocks(coder: Codec, value: float) -> None:
    values = np.full(2 * BLOCK + 3, value, np.float32)
    values[::2] /= 2
    check(coder, values)
    check(coder, np.full(3, value, np.float32))


@every_codec
def test_blocks_do_not_disturb_each_other(coder: Codec) -> None:
    values = np.zeros(3 * BLOCK + 9, np.float32)
    values[BLOCK] = LARGEST
    values[2 * BLOCK : 3 * BLOCK] = np.float32(1e-45)
    values[3 * BLOCK :] = np.linspace(-1, 1, 9)
    check(coder, values)


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, BLOCK, 2 * BLOCK + 3])
def test_nan_and_infinity_are_not_sent(coder: Codec, bad: float, n: int) -> None:
    for place in (0, n // 2, n - 1):
        values = spread(n)
        values[place] = bad
        with pytest.raises(CorruptData, match="diverged"):
            coder.encode(values)


@every_codec
@pytest.mark.parametrize("n", [0, 1, 30, BLOCK + 3])
def test_any_other_length_is_refused(coder: Codec, n: int) -> None:
    raw = coder.encode(spread(n))
    for length in range(len(raw)):
        with pytest.raises(CorruptData, match=f"{n} values in {coder.name}"):
            coder.decode(raw[:length], n)
    for extra in (1, 4, len(raw) + 1):
        with pytest.raises(CorruptData):
            coder.decode(raw + bytes(extra), n)


@every_codec
@unhurried
@given(raw=st.binary(max_size=60), n=st.integers(0, 60))
def test_any_bytes_give_finite_values_or_are_refused(coder: Codec, raw: bytes, n: int) -> None:
    try:
        decoded = coder.decode(raw, n)
    except CorruptData:
        return
    assert len(raw) == coder.size(n)
    assert decoded.shape == (n,)
    assert np.isfinite(decoded).all()


@every_codec
@unhurried
@given(values=vectors, data=st.data())
def test_flipped_bits_give_finite_values_or_are_refused(
    coder: Codec, values: NDArray[np.float32], data: st.DataObject
) -> None:
    raw = bytearray(coder.encode(values))
    if not raw:
        return
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decoded = coder.decode(bytes(raw), values.size)
    except CorruptData:
        return
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fp32_refuses_nan_and_infinity_that_come(bad: float) -> None:
    with pytest.raises(CorruptData, match="NaN or infinity"):
        codec("fp32").decode(np.array([1, bad], "<f4").tobytes(), 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0, -0.0, 1e-45, TINY / 2, LARGEST, 2.7e36])
def test_int8_refuses_scales_that_no_encoder_sends(bad: float) -> None:
    n = 2 * BLOCK
    raw = bytearray(codec("int8").encode(spread(n)))
    raw[4:8] = np.array(bad, "<f4").tobytes()
    with pytest.raises(CorruptData, match="scale"):
        codec("int8").decode(bytes(raw), n)


def test_int8_refuses_a_level_that_no_encoder_sends() -> None:
    raw = codec("int8").encode(np.ones(5, np.float32))
    with pytest.raises(CorruptData, match="-128"):
        codec("int8").decode(raw[:-1] + b"\x80", 5)


def test_int8_layout_and_rounding() -> None:
    values = np.array([127, -127, 1.5, 2.5, -0.5, 0.49, 0], np.float32)
    raw = codec("int8").encode(values)
    assert raw == np.array([1], "<f4").tobytes() + np.array([127, -127, 2, 2, 0, 0, 0], np.int8).tobytes()


def test_int8_matches_a_naive_reference() -> None:
    values = spread(2 * BLOCK + 77, seed=3)
    raw = codec("int8").encode(values)
    scales, levels = np.frombuffer(raw, "<f4", 3), np.frombuffer(raw, np.int8, offset=12)
    for place, value in enumerate(values):
        block = values[place // BLOCK * BLOCK :][:BLOCK]
        scale = np.float32(np.abs(block).max()) / np.float32(127)
        assert scales[place // BLOCK] == scale
        assert levels[place] == round(float(value / scale))  # Python rounds ties to even as well
    decoded = codec("int8").decode(raw, values.size)
    for place in range(values.size):
        assert decoded[place] == np.float32(levels[place]) * scales[place // BLOCK]


def test_sizes_are_what_the_names_promise() -> None:
    assert [codec("fp32").size(n) for n in (0, 1, 1000)] == [0, 4, 4000]
    assert [codec("int8").size(n) for n in (0, 1, 1024, 1025)] == [0, 5, 1028, 1033]


def test_unknown_codec_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"'int9' is not known.*fp32, int8"):
        codec("int9")
