"""Words packed without loss: what comes back, what it saves, and what becomes of damage."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from potluck.codecs import Codec, codec
from potluck.codecs.packed import LEAST_WORDS, is_plain, pack, packed_sizes, unpack
from potluck.errors import CorruptData

N = LEAST_WORDS + 7
WIDTHS = {"fp32": 4, "bf16": 2}

both = pytest.mark.parametrize("coder", [codec(name) for name in WIDTHS], ids=list(WIDTHS))
either_kind = pytest.mark.parametrize("kind", [np.uint16, np.uint32])


def gaussian(n: int, scale: float = 1.0) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(n, np.float32) * np.float32(scale)


def random_bits(n: int) -> NDArray[np.float32]:
    """Any finite numbers, all as likely: nothing can be saved."""
    bits = np.random.default_rng(2).integers(0, 1 << 32, n, np.uint32)
    bits[bits & 0x7F80_0000 == 0x7F80_0000] ^= 0x4000_0000
    return bits.view(np.float32)


def denormal(n: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).integers(1, 1 << 23, n, np.uint32).view(np.float32)


def huge(n: int) -> NDArray[np.float32]:
    found = np.full(n, np.finfo(np.float32).max)
    found[::3] = -found[::3]
    found[::1000] = 0
    return found


def mixed(n: int) -> NDArray[np.float32]:
    found = np.zeros(n, np.float32)
    found[::2] = gaussian(n)[::2]
    found[::5] = -0.0
    found[::7] = denormal(n)[::7]
    found[::11] = huge(n)[::11]
    return found


def constant(n: int) -> NDArray[np.float32]:
    return np.full(n, -1e-3, np.float32)


VECTORS = [gaussian, random_bits, denormal, huge, mixed, constant, lambda n: np.zeros(n, np.float32)]


def raw_deflate(octets: bytes, strategy: int = zlib.Z_HUFFMAN_ONLY) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return packer.compress(octets) + packer.flush()


# -- what comes back ---------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("n", [LEAST_WORDS - 1, LEAST_WORDS, 100_003])
def test_whatever_is_sent_comes_back(coder: Codec, vector: object, n: int) -> None:
    assert callable(vector)
    values = vector(n)
    raw = coder.encode(values)
    assert len(raw) in coder.sizes(n)
    decoded = coder.decode(raw, n)
    assert decoded.dtype == np.float32
    if coder.name == "fp32":
        assert decoded.tobytes() == values.tobytes()
    else:
        assert (np.abs(decoded / 2 - values / 2) <= np.abs(values) / 2 * 2.0**-7 + 2.0**-134).all()
    assert coder.encode(decoded) == raw
    askew = memoryview(b"x" + raw)[1:]
    assert coder.decode(askew, n).tobytes() == decoded.tobytes()
    left = values.copy()
    assert coder.send(left) == raw
    assert left.tobytes() == (values - decoded).tobytes()
    decoded[:] = 1  # memory of its own
    assert coder.encode(values) == raw


@st.composite
def words(draw: st.DrawFn) -> NDArray[Any]:
    """Some more than are packed, their upper bytes out of so many."""
    chosen = np.random.default_rng(draw(st.integers(0, 1000)))
    n = LEAST_WORDS + draw(st.integers(0, 2000))
    uppers = np.array(draw(st.lists(st.integers(0, 255), min_size=1, max_size=256)), np.uint8)
    found = chosen.integers(0, 256, (n, draw(st.sampled_from([2, 4]))), np.uint8)
    found[:, -1] = chosen.choice(uppers, n)
    run = draw(st.integers(0, n))
    found[:run] = found[0]
    return found.view("<u2" if found.shape[1] == 2 else "<u4").reshape(-1)


@given(words())
@settings(deadline=None, max_examples=40)
def test_any_words_are_packed_and_unpacked(given: NDArray[Any]) -> None:
    n, width = given.size, given.itemsize
    raw = pack(given)
    assert len(raw) in packed_sizes(n, width)
    assert len(raw) == width * n or len(raw) <= 0.97 * width * n
    back = unpack(raw, n, np.uint16) if width == 2 else unpack(raw, n, np.uint32)
    assert back.dtype == given.dtype
    np.testing.assert_array_equal(back, given)


def test_layout() -> None:
    values = gaussian(N)
    octets = values.astype("<f4").view(np.uint8).reshape(N, 4)
    raw = codec("fp32").encode(values)
    assert raw[: 2 * N] == octets[:, :2].tobytes()
    assert raw[2 * N : 3 * N] == octets[:, 2].tobytes()
    assert zlib.decompress(raw[3 * N :], -zlib.MAX_WBITS) == octets[:, 3].tobytes()
    bits = codec("bf16").decode(codec("bf16").encode(values), N).astype("<f4").view(np.uint8).reshape(N, 4)
    raw = codec("bf16").encode(values)
    assert raw[:N] == bits[:, 2].tobytes()
    assert zlib.decompress(raw[N:], -zlib.MAX_WBITS) == bits[:, 3].tobytes()


# -- what it saves -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_gaussian_values_take_a_sixth_or_a_third_less(coder: Codec, scale: float) -> None:
    share = len(coder.encode(gaussian(100_000, scale))) / (WIDTHS[coder.name] * 100_000)
    assert share < {"fp32": 0.85, "bf16": 0.72}[coder.name]


@both
def test_few_values_go_as_they_are(coder: Codec) -> None:
    n = LEAST_WORDS - 1
    assert is_plain(coder.encode(np.zeros(n, np.float32)), n, WIDTHS[coder.name])
    assert len(coder.sizes(n)) == 1


@both
def test_what_cannot_be_packed_goes_as_it_is(coder: Codec) -> None:
    values = random_bits(N)
    raw = coder.encode(values)
    assert is_plain(raw, N, WIDTHS[coder.name])
    if coder.name == "fp32":
        assert raw == values.astype("<f4").tobytes()


@either_kind
def test_too_little_to_save_is_not_saved(kind: type[np.uint16] | type[np.uint32]) -> None:
    """Upper bytes of 7.2 bits or so: a tenth less of them is a fortieth of four bytes, a twentieth of two."""
    width = np.dtype(kind).itemsize
    octets = np.random.default_rng(4).integers(0, 256, (N, width), np.uint8)
    octets[:, -1] = octets[:, -1] % 147
    packable: NDArray[Any] = octets.view(kind).reshape(-1)
    assert is_plain(pack(packable), N, width) == (width == 4)


@both
def test_no_vector_takes_less_than_the_least(coder: Codec) -> None:
    raw = coder.encode(np.zeros(1 << 20, np.float32))
    assert len(raw) == pytest.approx(coder.sizes(1 << 20)[0], rel=0.002)
    assert len(raw) in coder.sizes(1 << 20)


def test_what_is_not_packed_is_read_all_the_same() -> None:
    values = gaussian(N)
    plain = values.astype("<f4").tobytes()
    assert codec("fp32").decode(plain, N).tobytes() == plain
    short = (values.view(np.uint32) >> np.uint32(16)).astype("<u2")
    decoded = codec("bf16").decode(short.tobytes(), N)
    np.testing.assert_array_equal(decoded.view(np.uint32) >> np.uint32(16), short)


# -- damage ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, N // 2, N - 1])
def test_nan_and_infinity_are_neither_sent_nor_taken(coder: Codec, bad: float, place: int) -> None:
    values = gaussian(N)
    values[place] = bad
    for sending in (coder.encode, coder.send):
        with pytest.raises(CorruptData, match="diverged"):
            sending(values.copy())
    bits = values.view(np.uint32)
    raw = pack(bits) if coder.name == "fp32" else pack((bits >> np.uint32(16)).astype(np.uint16))
    assert not is_plain(raw, N, WIDTHS[coder.name])
    with pytest.raises(CorruptData, match=f"{coder.name} hold NaN or infinity"):
        coder.decode(raw, N)


@both
@pytest.mark.parametrize("vector", [gaussian, lambda n: np.zeros(n, np.float32)])
def test_what_is_cut_off_is_refused(coder: Codec, vector: object) -> None:
    assert callable(vector)
    raw = coder.encode(vector(N))
    least = coder.sizes(N)[0]
    lengths = [*range(least - 3, len(raw), 1 + (len(raw) - least) // 200), *range(len(raw) - 20, len(raw)), 0]
    for length in lengths:
        said = "packed values" if length >= least else f"{N} values in {coder.name} take {least} to"
        with pytest.raises(CorruptData, match=said):
            coder.decode(raw[:length], N)


@both
def test_what_follows_its_end_is_refused(coder: Codec) -> None:
    raw = coder.encode(gaussian(N))
    room = coder.sizes(N)[-1] - len(raw)
    for extra in (1, 2, 100, room - 1, room + 1):
        for filled in (b"\0", b"\xff", raw[-1:]):
            with pytest.raises(CorruptData):
                coder.decode(raw + filled * extra, N)


@both
@pytest.mark.parametrize("many", [0, N - 1, N + 1, 2 * N])
def test_any_other_number_of_values_is_refused(coder: Codec, many: int) -> None:
    lower = bytes((WIDTHS[coder.name] - 1) * N)
    upper = raw_deflate(bytes(many))
    raw = (lower + upper).ljust(coder.sizes(N)[0], b"\0")
    with pytest.raises(CorruptData, match="packed values"):
        coder.decode(raw, N)


@both
def test_a_bomb_takes_no_memory(coder: Codec) -> None:
    """Runs of zeros come to a thousandth; the smallest content that is taken could hold 130 times as many."""
    lower = (WIDTHS[coder.name] - 1) * N
    bomb = raw_deflate(bytes(130 * N), zlib.Z_DEFAULT_STRATEGY)
    raw = (bytes(lower) + bomb).ljust(coder.sizes(N)[0], b"\0")
    assert len(raw) in coder.sizes(N)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptData, match=f"of another length than the {N} bytes"):
            coder.decode(raw, N)
        assert tracemalloc.get_traced_memory()[1] < 4 * N
    finally:
        tracemalloc.stop()


@both
def test_flipped_bits_give_finite_values_or_are_refused(coder: Codec) -> None:
    raw, chosen = coder.encode(mixed(N)), np.random.default_rng(5)
    assert not is_plain(raw, N, WIDTHS[coder.name])
    lower, refused = (WIDTHS[coder.name] - 1) * N, 0
    for start in (0, lower, lower, len(raw) - 50) * 60:
        damaged = bytearray(raw)
        for place in chosen.integers(start, len(raw), chosen.integers(1, 4)):
            damaged[place] ^= 1 << chosen.integers(0, 8)
        try:
            decoded = coder.decode(bytes(damaged), N)
        except CorruptData:
            refused += 1
            continue
        assert decoded.shape == (N,)
        assert np.isfinite(decoded).all()
    assert refused > 20
