"""The weights of a model that a run does not train, such as the base of LoRA: told by their digest, kept as a
file of the run that every peer can give, and put into the models of those who have others.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from blake3 import blake3

from potluck.errors import CorruptData, ModelMismatch, UsageError
from potluck.peer.files import Files
from potluck.peer.place import BASE
from potluck.peer.values import named
from potluck.store.blobs import read_pieces, write_pieces
from potluck.store.contents import Contents
from potluck.store.tensors import LENGTH_BYTES
from potluck.wire.records import Blob, Genesis

MAX_BYTES = 4 << 30
"""A larger one is not handed out: each peer brings it, and its digest is checked all the same."""

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Frozen:
    """The parameters of a model without ``requires_grad``, as a file of safetensors: one after the other in
    the model's own order, each in its own type.

    Raises:
        UsageError: one is of a type that such a file has no name for.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = {name: p for name, p in named(model) if not p.requires_grad}
        self.header = _header(self._parameters)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(map(_bytes, self._parameters.values()))

    @property
    def handed_out(self) -> bool:
        """Whether peers give it to those who lack it: there is something in it, and not too much."""
        return bool(self._parameters) and self.size <= MAX_BYTES

    def digest(self) -> str:
        """BLAKE3 of the file, by which names, types, shapes and values are compared at once."""
        hasher = blake3()
        for piece in self.pieces():
            hasher.update(piece)
        return hasher.hexdigest()

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The file: its header, then a tensor at a time."""
        yield self.header
        for parameter in self._parameters.values():
            yield _raw(parameter.detach().cpu()).numpy().data

    def write(self, store: Contents) -> Blob:
        """Keep the file in the store.

        Raises:
            StoreError: the disk refuses.
        """
        return write_pieces(store, BASE, self.size, self.pieces())

    def fill(self, pieces: Iterable[bytes]) -> None:
        """Put the file's values into the model, a tensor at a time.

        Raises:
            CorruptData: it has fewer bytes.
        """
        reader = _Reader(pieces)
        reader.read(len(self.header))
        with torch.no_grad():
            for parameter in self._parameters.values():
                raw = reader.read(_bytes(parameter))
                if raw:
                    values = torch.frombuffer(raw, dtype=parameter.dtype)
                    parameter.copy_(values.reshape(parameter.shape))

    def difference(self, header: bytes) -> str:
        """The first difference to the file that begins with this header, in words."""
        theirs, ours = _said(header), _said(self.header)
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            if ours.get(name) != theirs.get(name):
                return (
                    f"{name} is {ours.get(name, 'absent')} here and {theirs.get(name, 'absent')} in the run"
                )
        return "they are in another order"


async def meet(ours: Frozen, genesis: Genesis, files: Files) -> None:
    """Compare a model's frozen weights with the run's. Others are replaced by the run's, from peers; those
    that are right are kept for peers that lack them.

    Raises:
        ModelMismatch: they are other tensors, or other values that nobody hands out.
        CorruptData: what the run hands out is not what its genesis says.
        StoreError: the disk refuses.
    """
    if not genesis.base:
        return  # founded by a release that did not compare
    offered = next((blob for blob in genesis.assets if blob.name == BASE), None)
    digest = await asyncio.to_thread(ours.digest)
    if digest == genesis.base:
        if offered is not None and await files.lacks(offered):
            files.has(await asyncio.to_thread(ours.write, files.store))
    elif offered is None:
        raise ModelMismatch(
            f"the frozen weights of this model are not the run's: digest {digest[:12]} of {ours.size:,} "
            f"bytes here, {genesis.base[:12]} in the run, which does not hand them out; freeze the same "
            "parameters as the host, and load them from the same checkpoint in the same dtype"
        )
    else:
        await _compare(ours, offered, files)
        size = f"{offered.size / 1e6:,.1f} MB"
        files.note(f"the frozen weights of this model are not the run's: taking those ({size}) from peers")
        await files.fetch(offered)
        await asyncio.to_thread(restore, ours, genesis, files.store)
        files.note("the frozen weights of this model are the run's now")


def restore(ours: Frozen, genesis: Genesis, copy: Contents) -> None:
    """Put the run's frozen weights into a model, from a copy of the run.

    Raises:
        ModelMismatch: they are others, and the copy does not have the run's.
        CorruptData: what the copy has is not what its genesis says.
        StoreError: something is missing there.
    """
    if not genesis.base or ours.digest() == genesis.base:
        return
    offered = next((blob for blob in genesis.assets if blob.name == BASE), None)
    if offered is None:
        raise ModelMismatch(
            "the frozen weights of this model are not the run's, which does not hand them out: run this "
            "where the checkpoint of its recipe is"
        )
    ours.fill(read_pieces(copy, offered))
    if ours.digest() != genesis.base:
        raise CorruptData(f"{BASE} of the run is not what its genesis says: its host made it wrongly")


async def _compare(ours: Frozen, offered: Blob, files: Files) -> None:
    """Names, types and shapes, before all of it is fetched.

    Raises:
        ModelMismatch: the first difference.
    """
    chunks = -(-len(ours.header) // offered.chunk_bytes)
    await files.fetch(offered, chunks)
    begin = b"".join(itertools.islice(read_pieces(files.store, offered), chunks))
    if offered.size != ours.size or begin[: len(ours.header)] != ours.header:
        raise ModelMismatch(
            f"this model's frozen weights are not the run's: {ours.difference(begin)}; build the model as "
            "the host did, in the same dtype and with the same parameters frozen"
        )


def _header(parameters: dict[str, torch.nn.Parameter]) -> bytes:
    """As safetensors has it: its length, then JSON, which blanks fill up to eight bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, parameter in parameters.items():
        if parameter.dtype not in _TYPES:
            raise UsageError(
                f"the frozen parameter {name} is of type {parameter.dtype}, which safetensors does not hold: "
                "convert it, or make it a buffer"
            )
        stop = start + _bytes(parameter)
        entries[name] = {
            "dtype": _TYPES[parameter.dtype],
            "shape": list(parameter.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _said(header: bytes) -> dict[str, str]:
    """Type and shape of each tensor that a file begins with; none if it can't be read."""
    stop = LENGTH_BYTES + int.from_bytes(header[:LENGTH_BYTES], "little")
    try:
        found = json.loads(header[LENGTH_BYTES:stop])
        return {
            name: f"{entry['dtype']} {_shape(entry['shape'])}"
            for name, entry in found.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _bytes(parameter: torch.Tensor) -> int:
    return parameter.numel() * parameter.element_size()


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor [n · size], in its own memory where they are in order there."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


class _Reader:
    """Reads so many bytes at a time of what comes in pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytearray:
        """The next bytes.

        Raises:
            CorruptData: there are fewer.
        """
        found = bytearray()
        while len(found) < size:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    raise CorruptData(f"{BASE} of the run ends too early: its host made it wrongly")
                self._rest = memoryview(piece)
            some = self._rest[: size - len(found)]
            found += some
            self._rest = self._rest[len(some) :]
        return found
