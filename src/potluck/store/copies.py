"""A copy of a run to read from, which reading leaves as it is: a peer's directory, or an archive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

from potluck.errors import StoreError
from potluck.store.journal import NAME, chained, read_frames
from potluck.store.store import Store, in_words
from potluck.wire.codec import digest as digest_of
from potluck.wire.records import Blob, Entry

STORE = "store"
"""Where a peer's directory has its content."""


class Copy(ABC):
    """Journal and content of a run, to be read only. ``damaged`` are digests whose bytes are not theirs."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.damaged: set[str] = set()
        self.intact: set[str] = set()
        """Digests whose bytes were read and are right."""

    @abstractmethod
    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Sequence and bytes of each record, in order.

        Raises:
            CorruptData: the journal is damaged.
            StoreError: it can't be read.
        """

    @abstractmethod
    def digests(self) -> set[str]:
        """All content that is here, unverified."""

    @abstractmethod
    def read(self, digest: str) -> bytes | None:
        """Content as it is here, unverified; None if it is not."""

    @abstractmethod
    def has(self, digest: str) -> bool:
        """Whether there is content under that name, and is not known to be damaged."""

    def records(self) -> Iterator[tuple[Entry, bytes]]:
        """Every record with its bytes, checked to be a chain; one in memory at a time.

        Raises:
            CorruptData: damaged or altered, and where.
            StoreError: it can't be read.
        """
        return chained(self.frames(), f"in {self.where}")

    def get(self, digest: str) -> bytes | None:
        """Content that is what its digest says, or None."""
        raw = self.read(digest)
        if raw is None:
            return None
        if digest_of(raw) != digest:
            self.damaged.add(digest)
            return None
        self.intact.add(digest)
        return raw

    def lacking(self, digests: Iterable[str]) -> list[str]:
        """Those that are not here, each once, in order."""
        return [name for name in dict.fromkeys(digests) if not self.has(name)]

    def present(self, digests: Iterable[str]) -> list[str]:
        """Those that are here, each once, in order."""
        return [name for name in dict.fromkeys(digests) if self.has(name)]

    def lacking_of(self, files: Iterable[Blob]) -> list[str]:
        """Chunks of some files that are not here."""
        return self.lacking(chunk for blob in files for chunk in blob.chunks)

    def put(self, raw: bytes | memoryview, name: str = "") -> str:
        """Never: it is read only."""
        raise StoreError(f"{self.where} is only read from")

    def put_all(self, raws: Sequence[bytes | memoryview]) -> tuple[str, ...]:
        """As ``put``."""
        raise StoreError(f"{self.where} is only read from")

    def delete(self, digest: str) -> None:
        """As ``put``."""
        raise StoreError(f"{self.where} is only read from")

    def keep_only(self, digests: Set[str]) -> None:
        """As ``put``."""
        raise StoreError(f"{self.where} is only read from")


class DiskCopy(Copy):
    """A peer's directory: ``journal``, and ``store`` with the content.

    Raises:
        StoreError: the disk refuses, in any method.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self.directory = directory
        self._store = Store(directory / STORE, create=False)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        path = self.directory / NAME
        with in_words(path, "read"), path.open("rb") as file:
            yield from read_frames(file)

    def digests(self) -> set[str]:
        return self._store.digests()

    def read(self, digest: str) -> bytes | None:
        path = self._store.path(digest)
        with in_words(self.directory, "read from"):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def has(self, digest: str) -> bool:
        return digest not in self.damaged and self._store.has(digest)
