"""Snapshots: the state after a round as safetensors, which other tools read, the same bytes on all peers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray
from safetensors.numpy import save

from potluck.errors import CorruptData, ModelMismatch
from potluck.wire.records import TensorSpec

MODEL = "model.safetensors"
MOMENTUM = "momentum.safetensors"
METADATA = {"format": "pt"}
"""What Hugging Face transformers looks for before it loads a file."""

LENGTH_BYTES = 8
"""Before the header of a file: how long it is."""


class _Entry(Struct, frozen=True):
    """What a file's header says of a tensor; its bytes are at these offsets behind the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


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
    found, data = _opened(name, files[name])
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


def _opened(name: str, raw: bytes | bytearray) -> tuple[dict[str, _Entry], NDArray[np.uint8]]:
    """What a file says of its tensors, which lie one behind the other in all that follows; and that, not
    copied.
    """
    try:
        start = LENGTH_BYTES + int.from_bytes(raw[:LENGTH_BYTES], "little")
        header = msgspec.json.decode(raw[LENGTH_BYTES:start], type=dict[str, Raw])
        header.pop("__metadata__", None)
        found = {key: msgspec.json.decode(entry, type=_Entry) for key, entry in header.items()}
    except (ValueError, RecursionError) as error:  # what msgspec raises
        raise _unreadable(name, error) from error
    ends = [0]
    for begin, end in sorted(entry.data_offsets for entry in found.values()):
        if begin != ends[-1] or end < begin:
            raise _unreadable(name, f"a tensor is at byte {begin}, where {ends[-1]} is due")
        ends.append(end)
    if ends[-1] != len(raw) - start:
        raise _unreadable(name, f"it should end at byte {start + ends[-1]}, and has {len(raw)}")
    for entry in found.values():
        begin, end = entry.data_offsets
        if entry.dtype == "F32" and end - begin != 4 * math.prod(entry.shape):
            raise _unreadable(name, f"a tensor of {entry.shape} has {end - begin} bytes")
    return found, np.frombuffer(raw, np.uint8, offset=start) if start < len(raw) else np.empty(0, np.uint8)


def _unreadable(name: str, why: object) -> CorruptData:
    return CorruptData(f"{name} of the snapshot can't be read, take it from another peer: {why}")
