"""Snapshots: the state after a round as safetensors, which other tools read, the same bytes on all peers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from potluck.errors import CorruptData, ModelMismatch
from potluck.store.tensors import opened
from potluck.wire.records import TensorSpec

MODEL = "model.safetensors"
MOMENTUM = "momentum.safetensors"
METADATA = {"format": "pt"}
"""What Hugging Face transformers looks for before it loads a file."""


def snapshot_files(
    tensors: Sequence[TensorSpec], theta: NDArray[np.float32], momentum: NDArray[np.float32]
) -> dict[str, bytes]:
    """The files of a snapshot by name, in fp32.

    ``theta`` and ``momentum`` are [n], the trained tensors one after another in the order of ``tensors``.

    Raises:
        ModelMismatch: the specs and the values do not fit each other.
    """
    total = sum(math.prod(spec.shape) for spec in tensors)
    if theta.shape != (total,) or momentum.shape != (total,):
        raise ModelMismatch(
            f"the run's tensors hold {total} values, but the state has {theta.size} and {momentum.size}"
        )
    if len({spec.name for spec in tensors}) < len(tensors):
        raise ModelMismatch("two of the run's tensors have the same name; give each its own")
    named: dict[str, NDArray[np.float32]] = {}
    start = 0
    for spec in tensors:
        stop = start + math.prod(spec.shape)
        named[spec.name] = theta[start:stop].reshape(spec.shape)
        start = stop
    return {
        MODEL: save(dict(sorted(named.items())), METADATA),
        MOMENTUM: save({"momentum": momentum}, METADATA),
    }


def load_snapshot(
    tensors: Sequence[TensorSpec], files: Mapping[str, bytes | bytearray]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Theta and momentum [n] out of a snapshot's files, in the order of ``tensors``; in the files' own memory
    where that can be.

    Raises:
        CorruptData: a file lacks, is not whole, or has other names, shapes or types than ``tensors``.
    """
    theta = _read(MODEL, tensors, files)
    momentum = _read(MOMENTUM, [TensorSpec("momentum", (theta.size,))], files)
    return theta, momentum


def _read(
    name: str, tensors: Sequence[TensorSpec], files: Mapping[str, bytes | bytearray]
) -> NDArray[np.float32]:
    """The values of a file's tensors, one after another in the order of ``tensors``."""
    if name not in files:
        raise CorruptData(f"the snapshot has no {name}; take it from another peer")
    try:
        found, _, data = opened(files[name])
    except CorruptData as error:
        raise CorruptData(
            f"{name} of the snapshot can't be read, take it from another peer: {error}"
        ) from error
    if found.keys() != {spec.name for spec in tensors}:
        odd = sorted(found.keys() ^ {spec.name for spec in tensors})
        raise CorruptData(f"{name} does not hold the run's tensors: {', '.join(odd[:8])} missing or too many")
    for spec in tensors:
        entry = found[spec.name]
        if entry.dtype != "F32" or entry.shape != spec.shape:
            raise CorruptData(f"{spec.name} in {name} is {entry.dtype} {entry.shape}, not F32 {spec.shape}")
    pieces = [data[slice(*found[spec.name].data_offsets)].view("<f4") for spec in tensors]
    if len(pieces) == 1 and pieces[0].flags.writeable and pieces[0].flags.aligned:
        return pieces[0]
    return np.concatenate(pieces, dtype=np.float32) if pieces else np.empty(0, np.float32)
