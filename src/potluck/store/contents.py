"""What is asked of a store: content by digest. The real one is ``store.Store``."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Protocol

from potluck.errors import StoreError
from potluck.wire.codec import digest


class Contents(Protocol):
    """Content by its BLAKE3 digest."""

    def put(self, raw: bytes | memoryview, name: str = "") -> str:
        """Keep content; returns its digest, which is ``name`` if the caller has just computed it."""

    def put_all(self, raws: Sequence[bytes | memoryview]) -> tuple[str, ...]:
        """As ``put``, of several."""

    def get(self, digest: str) -> bytes | None:
        """Content that is what its digest says, or None."""

    def has(self, digest: str) -> bool:
        """Whether there is content under that name, unverified."""

    def digests(self) -> set[str]:
        """All names."""

    def keep_only(self, digests: Set[str]) -> None:
        """Drop everything else."""

    def delete(self, digest: str) -> None:
        """Drop content, if it is there."""


class MemoryStore:
    """A store in memory, for simulations: content survives as long as the object does.

    While it is ``full``, ``put`` raises ``StoreError``, as a disk does that has no room.
    """

    def __init__(self) -> None:
        self._found: dict[str, bytes] = {}
        self.beside: dict[str, bytes] = {}
        """Other files of the same disk, by name."""
        self.full = False

    def put(self, raw: bytes | memoryview, name: str = "") -> str:
        name = name or digest(raw)
        if self.full:
            raise StoreError(f"{len(raw)} bytes can't be stored: the disk is full")
        self._found[name] = bytes(raw)
        return name

    def put_all(self, raws: Sequence[bytes | memoryview]) -> tuple[str, ...]:
        return tuple(map(self.put, raws))

    def get(self, digest: str) -> bytes | None:
        return self._found.get(digest)

    def has(self, digest: str) -> bool:
        return digest in self._found

    def digests(self) -> set[str]:
        return set(self._found)

    def delete(self, digest: str) -> None:
        self._found.pop(digest, None)

    def keep_only(self, digests: Set[str]) -> None:
        self._found = {name: raw for name, raw in self._found.items() if name in digests}
