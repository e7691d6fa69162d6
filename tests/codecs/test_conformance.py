"""What every codec must do, and what each promises about its error."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from potluck.codecs import CODECS, Codec, codec, int4, topk
from potluck.codecs.feedback import ErrorFeedback
from potluck.codecs.int8 import BLOCK
from potluck.codecs.topk import CHUNK
from potluck.errors import CorruptData, RecipeError
from potluck.sparse import Sparse

SIZES = [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7, 256 * BLOCK, 256 * BLOCK + 1, 300 * BLOCK + 5]
SIZES += [63, 64, 65, 127, 128, 129, CHUNK - 1, CHUNK + 1, topk.ROWS * CHUNK + 65]
FIXED = [known for known in CODECS.values() if known.name != "topk"]
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
    """Bound on each value's error [n], in float64: what each codec promises."""
    magnitudes = np.abs(values.astype(np.float64))
    if coder.name == "fp32":
        return np.zeros(values.size)
    if coder.name == "bf16":  # half a step, or a step below infinity
        return magnitudes * 2.0**-8 * (1 + 2.0**-7) + 2.0**-134
    length, bound = {
        "int8": (BLOCK, half_a_step_of_int8),
        "int4": (int4.BLOCK, half_a_step_of_int4),
        "topk": (CHUNK, least_kept_or_spread),
    }[coder.name]
    bounds = [bound(magnitudes[start : start + length]) for start in range(0, values.size, length)]
    return np.repeat(bounds, length)[: values.size]


def half_a_step_of_int8(block: NDArray[np.float64]) -> float:
    return block.max() if block.max() < 127.01 * TINY else block.max() / 254 * (1 + 1e-4)


def half_a_step_of_int4(block: NDArray[np.float64]) -> float:
    return block.max() if block.max() < 7.1 * TINY else block.max() / 14 * (1 + 2.0**-7)


def least_kept_or_spread(chunk: NDArray[np.float64]) -> float:
    """What is not kept is no larger than what is; and a mean is among its values, but for rounding."""
    kept = np.sort(chunk)[chunk.size - (chunk.size + 63) // 64 :]
    if kept.max() < 64 * TINY:
        return float(kept.max())
    return max(kept[0], kept[-1] - kept[0] + kept[-1] * 2.0**-8 * (1 + 2.0**-7))


def check(coder: Codec, values: NDArray[np.float32]) -> None:
    raw = coder.encode(values)
    assert type(raw) is bytes
    assert len(raw) in coder.sizes(values.size)
    assert raw == coder.encode(values.copy())
    decoded = coder.decode(raw, values.size)
    assert decoded.dtype == np.float32
    assert decoded.shape == values.shape
    assert np.isfinite(decoded).all()
    error = np.abs(decoded.astype(np.float64) - values.astype(np.float64))
    assert (error <= largest_error(coder, values)).all()
    assert np.linalg.norm(error / LARGEST) <= np.linalg.norm(values.astype(np.float64) / LARGEST) * (1 + 1e-6)
    assert coder.decode(memoryview(raw), values.size).tobytes() == decoded.tobytes()
    read = coder.read(raw, values.size)
    assert (read.dense() if isinstance(read, Sparse) else read).tobytes() == decoded.tobytes()
    left = values.copy()
    assert coder.send(left) == raw
    assert left.tobytes() == (values - decoded).tobytes()
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


def left_over(coder: Codec, values: NDArray[np.float64]) -> float:
    """The most of the norm of ``values`` [n] that an encoding of them may leave over."""
    norm = float(np.linalg.norm(values))
    if coder.name == "topk":
        # Each half's mean takes from it the square of its sum over its count; by Cauchy and Schwarz no less
        # than the square of the sum of all kept over their count. The mean is rounded to bf16.
        chunks = [np.sort(np.abs(values[at : at + CHUNK])) for at in range(0, values.size, CHUNK)]
        kept = [chunk[chunk.size - -(-chunk.size // 64) :] for chunk in chunks]
        taken = sum(float(k.sum()) ** 2 / k.size for k in kept) * (1 - 2.0**-8)
        return float(np.sqrt(max(0.0, norm**2 - taken)))
    # Half a step of each value, where the largest of a block is so many steps.
    length, steps = {"int8": (BLOCK, 127), "int4": (int4.BLOCK, 7)}.get(coder.name, (1, 0))
    if not steps:
        return norm * (0.0 if coder.name == "fp32" else 2.0**-8)
    return norm * min(length, values.size) ** 0.5 / (2 * steps) * (1 + 2.0**-7)


ordinary = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-12 else 0.0)


@every_codec
@unhurried
@given(
    rounds=st.tuples(st.integers(1, 6), st.integers(1, 150)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=ordinary)
    )
)
def test_error_feedback_contracts_as_float64_says(coder: Codec, rounds: NDArray[np.float32]) -> None:
    """e ← β e + x − C(β e + x), and of each β e + x no more is left over than the codec's share."""
    feedback, owed = ErrorFeedback(rounds.shape[1], coder.decay), np.zeros(rounds.shape[1])
    largest = 0.0
    for values in rounds:
        lost = feedback.add(values)
        sent = coder.decode(coder.send(lost), values.size)
        feedback.settle(lost)
        meant = coder.decay * owed + values.astype(np.float64)
        owed = meant - sent.astype(np.float64)
        largest = max(largest, float(np.abs(meant).max()))
        rounding = 2.0**-21 * largest * len(rounds)
        np.testing.assert_allclose(feedback.residual, owed, rtol=0, atol=rounding)
        slack = rounding * values.size**0.5 + 1e-30
        assert np.linalg.norm(owed) <= left_over(coder, meant) + slack


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
        some = length in coder.sizes(n)
        with pytest.raises(CorruptData, match="places" if some else f"{n} values in {coder.name}"):
            coder.decode(raw[:length], n)
    for extra in (1, 4, len(raw) + 1):
        for filled in (b"\0", b"\xff", b"\x80"):
            with pytest.raises(CorruptData):
                coder.decode(raw + filled * extra, n)


@every_codec
@unhurried
@given(raw=st.binary(max_size=60), n=st.integers(0, 60))
def test_any_bytes_give_finite_values_or_are_refused(coder: Codec, raw: bytes, n: int) -> None:
    try:
        decoded = coder.decode(raw, n)
    except CorruptData:
        return
    assert len(raw) in coder.sizes(n)
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
    for _ in range(data.draw(st.integers(1, 3))):
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
    def sizes(name: str, *counts: int) -> list[int]:
        found = [codec(name).sizes(n) for n in counts]
        assert all(len(size) == 1 for size in found)
        return [size[0] for size in found]

    assert sizes("fp32", 0, 1, 1000) == [0, 4, 4000]
    assert sizes("bf16", 0, 1, 1000) == [0, 2, 2000]
    assert sizes("int8", 0, 1, 1024, 1025) == [0, 5, 1028, 1033]
    assert sizes("int4", 0, 1, 2, 3, 64, 65) == [0, 3, 3, 4, 34, 37]
    assert sizes("int4", 1 << 20) == [17 << 15]  # 4.25 bits


def test_the_size_of_topk_depends_on_how_far_its_values_lie_apart() -> None:
    assert [codec("topk").sizes(n) for n in (0, 1, 32, 64, CHUNK)] == [
        range(1),
        range(6, 7),
        range(6, 7),
        range(6, 7),
        range(4 + 56 + 8, 4 + 56 + 24 + 1),
    ]
    near, far = np.zeros(CHUNK, np.float32), np.zeros(CHUNK, np.float32)
    near[:64] = far[-64:] = 1
    assert len(codec("topk").encode(near)) == codec("topk").sizes(CHUNK)[0]
    assert len(codec("topk").encode(far)) == codec("topk").sizes(CHUNK)[-1]
    n = 1 << 20
    raw = codec("topk").encode(np.random.default_rng(1).standard_normal(n, np.float32))
    assert len(raw) * 8 / n == pytest.approx(0.156, abs=0.001)


def test_unknown_codec_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"'int9' is not known.*fp32, bf16, int8, int4, topk"):
        codec("int9")


# -- what is lost, and what error feedback makes of it -----------------------------------------------

LOST = {"fp32": 0.0, "bf16": 0.0017, "int8": 0.0079, "int4": 0.108, "topk": 0.939}
"""Of the norm of Gaussian values."""


@every_codec
def test_of_gaussian_values_so_much_is_lost(coder: Codec) -> None:
    values = np.random.default_rng(5).standard_normal(1 << 18, np.float32)
    decoded = coder.decode(coder.encode(values), values.size)
    lost = np.linalg.norm(values - decoded) / np.linalg.norm(values)
    assert lost == pytest.approx(LOST[coder.name], abs=0.0005, rel=0.01)


@every_codec
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e30])
def test_equal_values_come_as_they_are_or_as_zero(coder: Codec, value: float) -> None:
    decoded = coder.decode(coder.encode(np.full(5000, value, np.float32)), 5000)
    sent = decoded[decoded != 0]
    np.testing.assert_allclose(sent, np.full(sent.size, value), rtol=2.0**-8)
    if value:
        assert sent.size == (5000 if coder in FIXED else 64 + 15)


# -- sixteen bits ------------------------------------------------------------------------------------


def test_bf16_rounds_to_nearest_and_ties_to_even() -> None:
    one = 0x3F80_0000
    bits = np.array(
        [one, one + 0x7FFF, one + 0x8000, one + 0x8001, one + 0x1_8000, 0x7F7F_FFFF, 1], np.uint32
    )
    raw = codec("bf16").encode(bits.view(np.float32))
    assert np.frombuffer(raw, "<u2").tolist() == [0x3F80, 0x3F80, 0x3F80, 0x3F81, 0x3F82, 0x7F7F, 0]
    raw = codec("bf16").encode(-bits.view(np.float32))
    assert np.frombuffer(raw, "<u2").tolist() == [0xBF80, 0xBF80, 0xBF80, 0xBF81, 0xBF82, 0xFF7F, 0x8000]


@pytest.mark.parametrize("bad", [0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF])
def test_bf16_refuses_nan_and_infinity_that_come(bad: int) -> None:
    with pytest.raises(CorruptData, match="NaN or infinity"):
        codec("bf16").decode(np.array([0, bad], "<u2").tobytes(), 2)


# -- four bits ---------------------------------------------------------------------------------------


def test_int4_layout_and_rounding() -> None:
    raw = codec("int4").encode(np.array([7, -7, 1.5, 2.5, -0.5, 0.49, -1], np.float32))
    assert raw == b"\x80\x3f" + bytes([0x97, 0x22, 0x00, 0x0F])


def bf16(value: float) -> float:
    """``value`` rounded, by way of its bits."""
    [bits] = struct.unpack("<I", struct.pack("<f", value))
    rounded = min((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, 0x7F7F)
    return float(struct.unpack("<f", struct.pack("<I", rounded << 16))[0])


@pytest.mark.parametrize("n", [64 * 5, 64 * 3 + 9, 64 * 3 + 10])
def test_int4_matches_a_naive_reference(n: int) -> None:
    values = spread(n, seed=3)
    decoded = codec("int4").decode(codec("int4").encode(values), n)
    for place, value in enumerate(values):
        block = values[place // 64 * 64 :][:64]
        scale = bf16(float(np.float32(np.abs(block).max()) / np.float32(7)))
        assert decoded[place] == np.float32(round(float(value / np.float32(scale)))) * np.float32(scale)


@pytest.mark.parametrize("bad", [0x7F80, 0x7FC0, 0x8000, 0xBF80, 0x0001, 0x007F, 0x7E13])
def test_int4_refuses_scales_that_no_encoder_sends(bad: int) -> None:
    raw = bytearray(codec("int4").encode(spread(200)))
    raw[2:4] = np.array(bad, "<u2").tobytes()
    with pytest.raises(CorruptData, match="scale"):
        codec("int4").decode(bytes(raw), 200)


def test_int4_refuses_values_that_no_encoder_sends() -> None:
    raw = codec("int4").encode(np.ones(5, np.float32))
    for last, words in ((b"\x08", "-8"), (b"\x17", "after its last")):
        with pytest.raises(CorruptData, match=words):
            codec("int4").decode(raw[:-1] + last, 5)
    with pytest.raises(CorruptData, match="-8"):
        codec("int4").decode(raw[:-2] + b"\x80\x07", 5)


# -- the largest -------------------------------------------------------------------------------------


def test_topk_layout() -> None:
    values = np.zeros(130, np.float32)
    values[[2, 3, 120]] = 1, -4, 6
    raw = codec("topk").encode(values)
    levels = np.array([1, 5], np.float32).view(np.uint32) >> 16
    bits = "000001011000000110100" + "000"  # gaps 2, 0 and 116, which is 3 times 32 and 20
    bits += "11000100"
    assert raw == levels.astype("<u2").tobytes() + int(bits, 2).to_bytes(len(bits) // 8, "big")
    expected = np.zeros(130, np.float32)
    expected[[2, 3, 120]] = 1, -5, 5
    np.testing.assert_array_equal(codec("topk").decode(raw, 130), expected)


@given(
    rows=arrays(np.int8, (3, CHUNK), elements=st.integers(-3, 3), fill=st.sampled_from([0, 1, -2])),
    noise=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_topk_keeps_what_sorting_would(rows: NDArray[np.int8], noise: bool) -> None:
    values = rows.astype(np.float32)
    if noise:
        values[1] *= np.random.default_rng(0).random(CHUNK, np.float32)
    found = topk._largest(values, 64)
    for row, places in zip(values, found, strict=True):
        order = sorted(range(CHUNK), key=lambda place: (-abs(row[place]), place))
        assert sorted(order[:64]) == places.tolist()


def test_topk_keeps_the_first_of_equals_in_each_chunk() -> None:
    values = np.tile(np.array([1, -1, 0, 1], np.float32), CHUNK // 2)
    values[CHUNK + 4000] = 2
    kept = np.flatnonzero(codec("topk").decode(codec("topk").encode(values), values.size))
    nonzero = np.flatnonzero(values)
    first, second = nonzero[:64], nonzero[nonzero >= CHUNK][:63]
    assert kept.tolist() == [*first, *second, CHUNK + 4000]


def bent(raw: bytes, levels: tuple[int, int] | None = None, symbols: str = "", unary: str = "") -> bytes:
    """The encoding of three values of 130 with something else in a place."""
    head = raw[:4] if levels is None else np.array(levels, "<u2").tobytes()
    body = f"{int.from_bytes(raw[4:], 'big'):0{8 * len(raw[4:])}b}"
    body = (symbols or body[:24]) + (unary or body[24:])
    return head + int(body, 2).to_bytes(len(body) // 8, "big")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"levels": (0x3F80, 0x7F80)}, "magnitude"),
        ({"levels": (0x3F80, 0x7FC0)}, "magnitude"),
        ({"levels": (0x8000, 0x3F80)}, "magnitude"),
        ({"levels": (0xBF80, 0x3F80)}, "magnitude"),
        ({"levels": (0x0001, 0x3F80)}, "magnitude"),
        ({"levels": (0x0001, 0x007F)}, "magnitude"),
        ({"levels": (0x3F81, 0x3F80)}, "magnitude"),
        ({"symbols": "000001011000000110100001"}, "padded"),
        ({"symbols": "000001011000000110100100"}, "padded"),
        ({"symbols": "000001011000000111110000"}, "beyond its chunk's end"),
        ({"unary": "11000010"}, "beyond its chunk's end"),
        ({"unary": "10000001"}, "2 places"),
        ({"unary": "00000000"}, "0 places"),
        ({"unary": "11010001"}, "4 places"),
        ({"unary": "11111111"}, "8 places"),
    ],
)
def test_topk_refuses_what_no_encoder_sends(change: dict[str, Any], said: str) -> None:
    values = np.zeros(130, np.float32)
    values[[2, 3, 120]] = 1, -4, 6
    raw = codec("topk").encode(values)
    assert bent(raw) == raw
    with pytest.raises(CorruptData, match=said):
        codec("topk").decode(bent(raw, **change), 130)


@every_codec
@pytest.mark.parametrize("n", [130, CHUNK + 130])
def test_no_damage_crashes(coder: Codec, n: int) -> None:
    raw, rng = coder.encode(spread(n)), np.random.default_rng(7)
    for _ in range(400):
        damaged = np.frombuffer(raw, np.uint8).copy()
        places = rng.integers(0, damaged.size, rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, places.size)
        try:
            assert np.isfinite(coder.decode(damaged.tobytes(), n)).all()
        except CorruptData:
            continue
