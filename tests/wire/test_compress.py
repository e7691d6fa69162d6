"""Content that travels compressed comes back as it was, or is refused."""

from __future__ import annotations

import contextlib
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.errors import CorruptData
from potluck.wire.compress import compress, decompress

SIZES = [0, 1, 3, 4, 5, 7, 8, 1 << 16, (1 << 20) - 1, 1 << 20]


def weights(n: int) -> bytes:
    """Values as a model has them."""
    return (np.random.default_rng(0).standard_normal(n) * 0.02).astype(np.float32).tobytes()


def deflated(planes: bytes) -> bytes:
    """What a sender could say, in the format."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(planes) + packer.flush()


@pytest.mark.parametrize("size", SIZES)
def test_zeros_come_back_and_nearly_nothing_travels(size: int) -> None:
    small = compress(bytes(size))
    if size > 100:
        assert small is not None
        assert len(small) < size / 50
    if small is not None:
        assert decompress(small, size) == bytes(size)


@pytest.mark.parametrize("rest", [b"", b"a", b"abc"])
def test_trained_weights_are_a_sixth_smaller(rest: bytes) -> None:
    raw = weights(1 << 18) + rest
    small = compress(raw)
    assert small is not None
    assert 0.80 < len(small) / len(raw) < 0.85
    assert decompress(small, len(raw)) == raw


@given(unit=st.binary(min_size=1, max_size=40), times=st.integers(100, 400))
def test_whatever_is_compressed_comes_back(unit: bytes, times: int) -> None:
    raw = unit * times
    small = compress(raw)
    assert small is None or decompress(small, len(raw)) == raw


def test_what_can_hardly_be_made_smaller_is_left_as_it_is() -> None:
    assert compress(np.random.default_rng(0).bytes(1 << 20)) is None
    assert compress(b"") is None


@given(garbage=st.binary(max_size=200), size=st.integers(0, 1 << 20))
def test_garbage_is_refused_or_has_the_size_that_was_said(garbage: bytes, size: int) -> None:
    with contextlib.suppress(CorruptData):
        assert len(decompress(garbage, size)) == size


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 3])
def test_a_cut_or_longer_content_and_another_size_are_refused(size: int) -> None:
    small = compress(bytes(size))
    assert small is not None
    for damaged, said in [
        *((small[:end], size) for end in range(len(small))),
        (small + b"\0", size),
        (small, size - 1),
        (small, size + 1),
        (small, 0),
    ]:
        with pytest.raises(CorruptData, match="compressed content"):
            decompress(damaged, said)


def test_what_swells_beyond_its_size_takes_no_memory() -> None:
    bomb = deflated(bytes(1 << 28))
    with pytest.raises(CorruptData, match="of another length than the 100 bytes"):
        decompress(bomb, 100)
