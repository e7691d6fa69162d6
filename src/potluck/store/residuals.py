"""What a peer owes when it leaves, kept on its disk until it comes back: one file of safetensors.

It holds what lossy encoding took from contributions and results and no commit has counted yet. It is good for
one life only, so whoever takes it up removes it first.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import blake3
import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from potluck.errors import CorruptData
from potluck.store.store import in_words, sync_directory
from potluck.store.tensors import LENGTH_BYTES, opened

NAME = "residuals.safetensors"
"""The file's name in a peer's directory."""

HEADER_BYTES, PART_BYTES = 1 << 20, 400
"""Names and figures take no more than this, and this for each range."""

KINDS = 4
"""Vectors of the model's size that the file may hold, at most: each range once in each."""

_NAMES = re.compile(r"up|(down|counted|result)\.(0|[1-9][0-9]{0,6})")

Vector = NDArray[np.float32]


class Whose(Struct, frozen=True):
    """Of which peer in which run residuals are, and how its vectors [n] are encoded and cut into ranges."""

    run: str
    peer: str
    codec: str
    n: int
    ranges: int


@dataclass(frozen=True)
class Owed:
    """What a peer owes after ``round``, whose state has the digest ``state``: fp32, as it is to be added.

    ``up`` [n] goes with its next contribution, ``down`` with its next result of a range. Of a contribution or
    a result in flight nobody knows yet whether it counts. If the contribution ``flying`` (round, attempt,
    index of the member) does, ``counted`` is owed in its ranges instead of ``up``; if a range's result with
    the digest in ``results`` does, what is beside it there instead of ``down``.
    """

    round: int
    state: str
    up: Vector
    down: Mapping[int, Vector] = field(default_factory=dict)
    flying: tuple[int, int, int] | None = None
    counted: Mapping[int, Vector] = field(default_factory=dict)
    results: Mapping[int, tuple[str, Vector]] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """Of all that is owed if nothing in flight counts."""
        return math.sqrt(sum(float(np.vdot(v, v)) for v in (self.up, *self.down.values())))

    @property
    def nothing(self) -> bool:
        """Whether there is nothing in it that a codec took, whatever counts."""
        results = (values for _, values in self.results.values())
        return not any(v.any() for v in (self.up, *self.down.values(), *self.counted.values(), *results))


class _Said(Struct, frozen=True):
    """What stands beside the vectors."""

    whose: Whose
    round: int
    state: str
    flying: tuple[int, int, int] | None
    results: dict[int, str]


def packed(whose: Whose, owed: Owed) -> bytes:
    """A file's bytes."""
    return b"".join(pieces(whose, owed))


def pieces(whose: Whose, owed: Owed) -> list[bytes | memoryview]:
    """A file's bytes, one piece after the other; the vectors' are not copied."""
    vectors = {"up": owed.up}
    vectors |= {f"down.{place}": values for place, values in owed.down.items()}
    vectors |= {f"counted.{place}": values for place, values in owed.counted.items()}
    vectors |= {f"result.{place}": values for place, (_, values) in owed.results.items()}
    digests = {place: digest for place, (digest, _) in owed.results.items()}
    said = msgspec.json.encode(_Said(whose, owed.round, owed.state, owed.flying, digests))
    header: dict[str, object] = {
        "__metadata__": {"residuals": said.decode(), "digest": _digest(said, vectors)}
    }
    end = 0
    for name, values in vectors.items():
        begin, end = end, end + 4 * values.size
        header[name] = {"dtype": "F32", "shape": [values.size], "data_offsets": [begin, end]}
    head = msgspec.json.encode(header)
    head += b" " * (-len(head) % 8)
    return [len(head).to_bytes(LENGTH_BYTES, "little") + head, *map(_raw, vectors.values())]


def unpacked(raw: bytes | bytearray, whose: Whose) -> Owed:
    """What ``packed`` was given.

    Raises:
        CorruptData: not whole, or not of this peer and this run, and why.
    """
    found, metadata, data = opened(raw)
    try:
        said = msgspec.json.decode(metadata["residuals"], type=_Said)
    except (KeyError, ValueError) as error:
        raise CorruptData(f"it does not say whose residuals it holds: {error}") from error
    for name in Whose.__struct_fields__:
        theirs, ours = getattr(said.whose, name), getattr(whose, name)
        if theirs != ours:
            raise CorruptData(f"it is of the {name} {theirs}, and this peer's is {ours}")
    if any(entry.dtype != "F32" or not _NAMES.fullmatch(name) for name, entry in found.items()):
        raise CorruptData("it holds something else than residuals")
    vectors = {name: data[slice(*entry.data_offsets)].view("<f4") for name, entry in found.items()}
    if _digest(metadata["residuals"].encode(), vectors) != metadata.get("digest"):
        raise CorruptData("its bytes are not those that were written")
    if not all(np.isfinite(values).all() for values in vectors.values()):
        raise CorruptData("it holds NaN or infinity")
    down, counted, results = (_by_place(kind, vectors) for kind in ("down", "counted", "result"))
    if results.keys() != said.results.keys() or "up" not in vectors:
        raise CorruptData("it holds other residuals than it says")
    pairs = {place: (said.results[place], values) for place, values in results.items()}
    return Owed(said.round, said.state, vectors["up"], down, said.flying, counted, pairs)


def _by_place(kind: str, vectors: Mapping[str, Vector]) -> dict[int, Vector]:
    named = (name.partition(".") for name in vectors)
    return {int(place): vectors[f"{kind}.{place}"] for what, _, place in named if what == kind}


def _digest(said: bytes, vectors: Mapping[str, Vector]) -> str:
    hasher = blake3.blake3(said)
    for name, values in sorted(vectors.items()):
        hasher.update(f"\n{name} {values.size}\n".encode())
        hasher.update(_raw(values))
    return hasher.hexdigest()


def _raw(values: Vector) -> memoryview:
    return np.ascontiguousarray(values, dtype="<f4").view(np.uint8).data


class Kept(Protocol):
    """Where what is owed is kept from one life to the next.

    Raises:
        StoreError: the disk refuses, in any method.
    """

    path: Path

    def write(self, owed: Owed) -> None:
        """Keep it so that it survives a crash of the machine, instead of what is there."""

    def read(self) -> Owed | None:
        """What was written; None if nothing is there.

        Raises:
            CorruptData: as ``unpacked``.
        """

    def remove(self) -> None:
        """Return once it is gone, also after a crash of the machine."""


class ResidualsFile:
    """The file in a peer's ``directory``; see ``Kept``. Of one larger than it can be nothing is read."""

    def __init__(self, directory: Path, whose: Whose) -> None:
        self.path, self._whose = directory / NAME, whose

    def write(self, owed: Owed) -> None:
        found = pieces(self._whose, owed)
        temporary = self.path.with_suffix(".writing")
        with in_words(self.path.parent, f"write {sum(map(len, found))} bytes to"):
            try:
                with temporary.open("wb") as file:
                    file.writelines(found)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_directory(self.path.parent)

    def read(self) -> Owed | None:
        whose = self._whose
        most = HEADER_BYTES + PART_BYTES * whose.ranges + KINDS * 4 * whose.n
        with in_words(self.path.parent, "read from"):
            try:
                size = self.path.stat().st_size
                raw = self.path.read_bytes() if size <= most else b""
            except FileNotFoundError:
                return None
        if size > most:
            raise CorruptData(f"it has {size} bytes, and at most {most} are due")
        return unpacked(raw, whose)

    def remove(self) -> None:
        with in_words(self.path.parent, "delete from"):
            if self.path.exists():
                self.path.unlink()
                sync_directory(self.path.parent)
