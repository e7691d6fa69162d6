from __future__ import annotations

import struct

import blake3
import numpy as np

from potluck.optim.state import state_digest

THETA = np.array([1.5, -2.0, 0.0], np.float32)
MOMENTUM = np.array([0.25, 3.0, -0.0], np.float32)


def test_it_is_blake3_over_round_and_bytes() -> None:
    raw = struct.pack("<q3f3f", 7, *THETA, *MOMENTUM)
    assert state_digest(7, THETA, MOMENTUM) == blake3.blake3(raw).hexdigest()


def test_every_bit_counts() -> None:
    before = {state_digest(7, THETA, MOMENTUM), state_digest(8, THETA, MOMENTUM)}
    for which in range(2):
        for place in range(3):
            both = [THETA.copy(), MOMENTUM.copy()]
            both[which].view(np.uint32)[place] ^= 1
            before.add(state_digest(7, *both))
    before.add(state_digest(7, MOMENTUM, THETA))
    before.add(state_digest(7, THETA, np.abs(MOMENTUM)))  # 0 and -0 differ
    assert len(before) == 10


def test_order_in_memory_does_not_count() -> None:
    strided = np.repeat(THETA, 2)[::2]
    swapped = THETA.astype(">f4")
    assert state_digest(1, strided, MOMENTUM) == state_digest(1, THETA, MOMENTUM)
    assert state_digest(1, swapped, MOMENTUM) == state_digest(1, THETA, MOMENTUM)


def test_nothing_is_trained() -> None:
    none = np.empty(0, np.float32)
    assert state_digest(0, none, none) == blake3.blake3(bytes(8)).hexdigest()
