"""Memory of vectors that is used again, and never while somebody has it."""

from __future__ import annotations

import numpy as np
import torch

from potluck.peer.spare import KEPT, Spare


def address(vector: np.ndarray) -> int:
    return int(vector.__array_interface__["data"][0])


def test_memory_is_used_again_once_nobody_refers_to_it() -> None:
    spare = Spare()
    vector = spare.take(1000)
    assert (vector.shape, vector.dtype) == ((1000,), np.float32)
    first = address(vector)
    del vector
    assert address(spare.take(1000)) == first


def test_what_somebody_has_is_nobody_elses() -> None:
    spare = Spare()
    vectors = [spare.take(8) for _ in range(3 * KEPT)]
    assert len({address(vector) for vector in vectors}) == 3 * KEPT


def test_a_view_or_a_tensor_of_it_keeps_it() -> None:
    spare = Spare()
    view, tensor = spare.take(8)[2:4], torch.from_numpy(spare.take(8))
    view[:], tensor[:] = 1.0, 2.0
    for _ in range(2 * KEPT):
        spare.take(8)[:] = 3.0
    assert (view == 1.0).all()
    assert bool((tensor == 2.0).all())


def test_another_size_is_another_vector() -> None:
    spare = Spare()
    assert spare.take(8).size == 8
    assert spare.take(9).size == 9
    assert spare.take(8).size == 8
